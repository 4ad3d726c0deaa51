"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998) as Caffe defines them and Deep Compression measures them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.models.initialise import scaled, xavier

InShape = tuple[int, int, int]


class LeNet300(nn.Module):
    """Linear layers inputs-300-100-classes with ReLU between: 266,610 parameters for 28×28×1 and 10 classes."""

    def __init__(self, num_classes: int, in_shape: InShape, width: float) -> None:
        super().__init__()
        inputs = in_shape[0] * in_shape[1] * in_shape[2]
        first, second = scaled(300, width), scaled(100, width)
        self.fc1 = nn.Linear(inputs, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, num_classes)
        self.relu = nn.ReLU()
        xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(self.relu(self.fc2(x)))
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet: 5×5 convolutions to 20 and 50 channels without padding, each with a 2×2 max pool, then 500, classes.

    431,080 parameters for 28×28×1 and 10 classes. As in Caffe, the only ReLU follows the first linear layer.
    """

    def __init__(self, num_classes: int, in_shape: InShape, width: float) -> None:
        super().__init__()
        channels, height, breadth = in_shape
        first, second, hidden = scaled(20, width), scaled(50, width), scaled(500, width)
        positions = max(0, ((height - 4) // 2 - 4) // 2) * max(0, ((breadth - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool = nn.MaxPool2d(2)
        # An image below 16×16 leaves no position; the forward pass of `build` then says which size does not fit.
        self.fc1 = nn.Linear(second * max(1, positions), hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.relu = nn.ReLU()
        xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        logits: Tensor = self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))
        return logits


def lenet300(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return LeNet300(num_classes, in_shape, width)


def lenet5(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return LeNet5(num_classes, in_shape, width)
