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
    """Option A: every second pixel, and zero channels on both sides up to `out_channels`. No weights.

    Once channels were cut, each output channel still takes the input channel that it took before, or zero where that one is
    gone: the two sides may be cut independently of each other.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        source = [k - before if 0 <= k - before < in_channels else -1 for k in range(out_channels)]
        self._take(source, in_channels, torch.device("cpu"))

    def _take(self, source: list[int], in_channels: int, device: torch.device) -> None:
        """source: for each output channel the input channel that it takes, -1 for zero."""
        self.source, self.in_channels, self.out_channels = tuple(source), in_channels, len(source)
        before = source.index(0) if 0 in source else 0
        after = self.out_channels - before - in_channels
        padded = [-1] * before + list(range(in_channels)) + [-1] * after
        self.padding = (before, after) if source == padded else None
        # Not persistent: it follows from the kept channels, and the keys stay those of the widespread checkpoints.
        index = None if self.padding else torch.tensor([in_channels if k < 0 else k for k in source], device=device)
        self.register_buffer("index", index, persistent=False)

    def narrow(self, kept_in: Tensor | None, kept_out: Tensor | None, device: torch.device) -> None:
        """Leave only these of the present channels on either side (None: all), in this order."""
        place = {int(k): new for new, k in enumerate(range(self.in_channels) if kept_in is None else kept_in)}
        outputs = range(self.out_channels) if kept_out is None else [int(k) for k in kept_out]
        self._take([place.get(self.source[k], -1) for k in outputs], len(place), device)

    def silence(self, kept_in: list[int], kept_out: list[int], device: torch.device) -> None:
        """Read and write zero in place of every channel that is not among these: what a cut will do, at the present width."""
        source = [k if j in kept_out and k in kept_in else -1 for j, k in enumerate(self.source)]
        self._take(source, self.in_channels, device)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        if self.padding is not None:
            return F.pad(x, (0, 0, 0, 0, *self.padding))
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self.index)


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


def resnet20(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarResNet(scaled(3, depth), num_classes, in_shape[0], width)


def resnet32(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarResNet(scaled(5, depth), num_classes, in_shape[0], width)


def resnet44(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarResNet(scaled(7, depth), num_classes, in_shape[0], width)


def resnet56(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarResNet(scaled(9, depth), num_classes, in_shape[0], width)


def resnet110(num_classes: int, in_shape: InShape, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return CifarResNet(scaled(18, depth), num_classes, in_shape[0], width)
