"""ResNets for CIFAR (He et al. 2016, section 4.2): 6n+2 layers, 16/32/64 channels, shortcuts without weights (option A).

Keys of the parameters are those of the widespread checkpoints of akamaster/pytorch_resnet_cifar10: `conv1`, `bn1`,
`layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}`, `linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecompress.models.initialise import he, scaled

InShape = tuple[int, int, int]


class Shortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides up to `out_channels`. No weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        missing = out_channels - in_channels
        self.stride = stride
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut around them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut: nn.Module = nn.Identity() if same else Shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """3×3 stem, three stages of n blocks (stride 2 at the start of stages 2 and 3), global average pool, linear.

    Input (N, C, H, W) of any size from 4×4 up, output logits (N, num_classes).
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        stages = [scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, stages[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.layer1 = _stage(stages[0], stages[0], blocks, 1)
        self.layer2 = _stage(stages[0], stages[1], blocks, 2)
        self.layer3 = _stage(stages[1], stages[2], blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(stages[2], num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return CifarResNet(3, num_classes, in_shape[0], width)


def resnet32(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return CifarResNet(5, num_classes, in_shape[0], width)


def resnet44(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return CifarResNet(7, num_classes, in_shape[0], width)


def resnet56(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return CifarResNet(9, num_classes, in_shape[0], width)


def resnet110(num_classes: int, in_shape: InShape, width: float = 1.0) -> nn.Module:
    return CifarResNet(18, num_classes, in_shape[0], width)
