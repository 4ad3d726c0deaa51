"""Counts against figures that four other counters agree on, and against arithmetic done by hand."""

from __future__ import annotations

import lzma
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from edgecompress import masks
from edgecompress.cost import count, packed_bytes, parameter_counts, weight_bytes
from edgecompress.errors import UserError
from edgecompress.models import build
from edgecompress.study import ModelSpec

pytestmark = pytest.mark.heavy

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "in_shape", "params", "macs"),
    [
        ("torchvision:resnet18", IMAGENET, 11_689_512, 1_814_073_344),
        ("torchvision:resnet34", IMAGENET, 21_797_672, 3_663_761_408),
        ("torchvision:resnet50", IMAGENET, 25_557_032, 4_089_184_256),
        ("torchvision:vgg16", IMAGENET, 138_357_544, 15_470_264_320),
        ("torchvision:alexnet", IMAGENET, 61_100_840, 714_188_480),
        ("torchvision:mobilenet_v2", IMAGENET, 3_504_872, 300_774_272),  # grouped: depth-wise convolutions
        ("resnet20", CIFAR, 269_722, 40_551_040),
        ("resnet32", CIFAR, 464_154, 68_862_592),
        ("resnet44", CIFAR, 658_586, 97_174_144),
        ("resnet56", CIFAR, 853_018, 125_485_696),
        ("resnet110", CIFAR, 1_727_962, 252_887_680),
        ("vgg16_bn", CIFAR, 14_728_266, 313_201_664),
        ("vgg19_bn", CIFAR, 20_040_522, 398_136_320),
    ],
)
def test_published_figures(name, in_shape, params, macs):
    model = build(ModelSpec(name=name), num_classes=1000 if in_shape == IMAGENET else 10, in_shape=in_shape)
    cost = count(model, in_shape)
    assert (cost.params, cost.macs) == (params, macs)


def test_it_agrees_with_torchs_own_counter_where_both_count():
    model = nn.Sequential(
        nn.Conv2d(6, 12, (3, 5), stride=(2, 1), padding=1, dilation=(1, 2), groups=3), nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 3, stride=2, groups=2), nn.Flatten(), nn.LazyLinear(7),
    )  # fmt: skip
    x = torch.zeros(1, 6, 17, 19)
    model(x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * count(model, (6, 17, 19)).macs == counter.get_total_flops() > 0


class Functional(nn.Module):
    """The same layer as a module, twice (shared), and functional calls with weights of its own or derived from them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(2, 4, 1, 1))
        self.matrix = nn.Parameter(torch.randn(5, 2 * 64))

    def forward(self, x):
        x = self.shared(self.shared(x))
        x = F.conv2d(x, self.kernel * 2).flatten(1)
        x = x @ self.matrix.t()
        attention = torch.softmax(x.unsqueeze(2) @ x.unsqueeze(1), -1)  # two activations: no layer
        return attention.sum(2) + F.linear(x, torch.eye(5))


def test_functional_and_shared_layers():
    cost = count(Functional(), (4, 8, 8))
    shared, kernel, matrix, eye = 2 * 64 * (4 * 4 * 9), 64 * 8, 5 * 128, 0
    assert cost.macs == shared + kernel + matrix + eye
    assert cost.params == 4 * 4 * 9 + 4 + 8 + 5 * 128


def test_zeros_are_taken_off_where_they_are_used():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(2 * 16, 3))
    dense = count(model, (1, 4, 4))
    assert dense.macs == dense.effective_macs == 16 * 18 + 96
    keep = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    keep[0, 0, 0, :2] = True
    masks.put(model, {"0.weight": keep})
    pruned = count(model, (1, 4, 4))
    assert pruned.macs == dense.macs and pruned.params == dense.params
    assert pruned.effective_macs == 16 * 2 + 96
    assert pruned.nonzero_params == dense.nonzero_params - 16


def test_the_peak_of_activations_and_that_nothing_is_changed():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert count(model, (1, 10, 10)).peak_activation_bytes == 4 * (8 * 100 + 2 * 64)
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_attention_counts_its_projections():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    assert count(Block(), (10, 16)).macs == 10 * 16 * 48 + 10 * 16 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_input_that_does_not_fit_is_a_clear_message():
    with pytest.raises(UserError, match=r"input of shape \(4, 8, 8\)"):
        count(nn.Conv2d(3, 4, 3), (4, 8, 8))


def test_bytes(tmp_path):
    file = tmp_path / "weights"
    content = bytes(3_000_000) + os.urandom(200_000)
    file.write_bytes(content)
    assert packed_bytes(file) == len(lzma.compress(content, preset=6))
    (tmp_path / "empty").write_bytes(b"")
    assert packed_bytes(tmp_path / "empty") == len(lzma.compress(b"", preset=6))
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert weight_bytes(model) == 4 * (12 + 4 + 4 * 4) + 8
    nn.init.zeros_(model[0].weight)
    assert parameter_counts(model)[0] == 24
