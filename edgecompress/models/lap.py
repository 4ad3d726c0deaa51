"""The two small networks of lookahead pruning (Park et al., ICLR 2020): the MLP of MNIST and Conv-6 of CIFAR-10.

Conv-6 is that of the lottery-ticket paper (Frankle and Carbin 2019). Layers and Xavier initialisation as in the authors'
code (alinlab/lookahead_pruning).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecompress.models.initialise import scaled, xavier

InShape = tuple[int, int, int]


class LapMLP(nn.Module):
    """Linear layers inputs-500-500-500-500-classes with ReLU between (784-500×4-10 for MNIST). Keys `fc.0`, `fc.2`, …"""

    def __init__(self, num_classes: int, in_shape: InShape, width: float, depth: float) -> None:
        super().__init__()
        inputs = in_shape[0] * in_shape[1] * in_shape[2]
        sizes = [inputs, *[scaled(500, width)] * scaled(4, depth), num_classes]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.fc = nn.Sequential(*layers[:-1])
        xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class LapConv6(nn.Module):
    """Pairs of 3×3 convolutions to 64, 128, 256 channels, a 2×2 max pool after each pair, then 256, 256, classes. No BN."""

    def __init__(self, num_classes: int, in_shape: InShape, width: float) -> None:
        super().__init__()
        channels, height, breadth = in_shape
        c1, c2, c3 = (scaled(c, width) for c in (64, 128, 256))
        hidden = scaled(256, width)
        self.conv1 = nn.Conv2d(channels, c1, 3, padding=1)
        self.conv2 = nn.Conv2d(c1, c1, 3, padding=1)
        self.conv3 = nn.Conv2d(c1, c2, 3, padding=1)
        self.conv4 = nn.Conv2d(c2, c2, 3, padding=1)
        self.conv5 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv6 = nn.Conv2d(c3, c3, 3, padding=1)
        self.fc1 = nn.Linear(c3 * max(1, height // 8) * max(1, breadth // 8), hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, num_classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        relu = self.relu
        x = self.pool(relu(self.conv2(relu(self.conv1(x)))))
        x = self.pool(relu(self.conv4(relu(self.conv3(x)))))
        x = self.pool(relu(self.conv6(relu(self.conv5(x)))))
        x = relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(relu(self.fc2(x)))
        return logits


def lap_mlp(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return LapMLP(num_classes, in_shape, width, depth)


def lap_conv6(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return LapConv6(num_classes, in_shape, width)
