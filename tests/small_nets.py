"""A small network and a small piece of real data (scikit-learn's digits) that the tests of training and methods share."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.data import Dataset, load
from edgecompress.study import DataSpec


class SmallNet(nn.Module):
    """Convolutions with batch norm, a grouped one, dropout and two linear layers, for images (1, 32, 32)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, stride=4, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.2)
        self.fc1 = nn.Linear(16 * 16, 24)
        self.fc2 = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(torch.relu(self.fc1(self.drop(x.flatten(1)))))


def small_net(seed: int = 0, classes: int = 10) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(classes)


def few_digits(train: int = 200, test: int = 120) -> Dataset:
    """The first images of each part of the digits."""
    whole = load(DataSpec(name="digits", calibration_images=32), seed=0)
    return dataclasses.replace(
        whole,
        train=whole.train.subset(np.arange(train)),
        test=whole.test.subset(np.arange(test)),
        calibration_indices=tuple(range(32)),
    )


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Every parameter and buffer of the two is equal, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[k].view(torch.uint8), right[k].view(torch.uint8)) if left[k].ndim else left[k] == right[k]
        for k in left
    )
