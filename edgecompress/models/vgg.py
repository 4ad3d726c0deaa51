"""VGG with batch norm for CIFAR: the convolutions of Simonyan and Zisserman 2015, and one linear layer 512 → classes.

The form that the pruning literature measures on CIFAR (LAP among it): convolutions with bias, batch norm, ReLU, five 2×2
max pools, keys `features.*` and `classifier`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.models.initialise import he, scaled

InShape = tuple[int, int, int]

STAGES = (64, 128, 256, 512, 512)
"""Channels of the five stages; a max pool ends each."""


class CifarVGG(nn.Module):
    """depths: convolutions in each of the five stages. Input (N, C, H, W) with H, W ≥ 32; output logits (N, num_classes)."""

    def __init__(
        self, depths: tuple[int, ...], num_classes: int, in_shape: InShape, width: float, depth: float = 1.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, height, breadth = in_shape
        for stage, convolutions in zip(STAGES, depths, strict=True):
            for _ in range(scaled(convolutions, depth)):
                out = scaled(stage, width)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        if (height // 32, breadth // 32) != (1, 1):
            # Larger images than CIFAR's: pool to one position, so that the linear layer keeps its shape.
            layers.append(nn.AdaptiveAvgPool2d(1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg11_bn(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarVGG((1, 1, 2, 2, 2), num_classes, in_shape, width, depth)


def vgg13_bn(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarVGG((2, 2, 2, 2, 2), num_classes, in_shape, width, depth)


def vgg16_bn(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarVGG((2, 2, 3, 3, 3), num_classes, in_shape, width, depth)


def vgg19_bn(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarVGG((2, 2, 4, 4, 4), num_classes, in_shape, width, depth)
