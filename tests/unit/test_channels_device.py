"""Channel pruning by what a device says: its multiple, and a budget in latency. The device is made up, and known."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from edgecompress import cost
from edgecompress.compress import channels
from edgecompress.compress.contract import Asked, Context, asked_of_device, parse_params
from edgecompress.errors import UserError
from edgecompress.latency_search import LatencyRatio
from edgecompress.models import kept
from tests.small_nets import few_digits, same_state
from tests.unit.test_channels import SHAPE, tiny_resnet

pytestmark = pytest.mark.heavy


class MadeUp:
    """A device that takes 2 ms and 1 ms for each million multiply-accumulates, and likes multiples of 4."""

    def __init__(self) -> None:
        self.asked, self.measured, self.spread = [], 0, 0.02

    def __call__(self, device, format):
        self.asked.append((device, format))
        return self

    def multiple(self, model, in_shape):
        assert in_shape == SHAPE
        return {"multiple": 4, "agreement": 1.0}

    @contextmanager
    def against(self, dense, in_shape):
        self.dense = self.takes(dense)
        yield self.Against(self)

    @staticmethod
    def takes(model: nn.Module) -> float:
        return 2 + cost.count(model, SHAPE).macs / 1e6

    class Against:
        def __init__(self, device) -> None:
            self.device = device

        def dense_ms(self) -> float:
            return self.device.dense

        def __call__(self, model, target=None):
            self.device.measured += 1
            ms = self.device.takes(model)
            ratio = ms / self.device.dense
            return LatencyRatio(ratio, 0.99 * ratio, 1.01 * ratio, self.device.dense, ms, 3, self.device.spread)


def prune(model, tmp_path, benches, **params):
    torch.set_num_threads(1)
    context = Context(data=few_digits(64), seed=0, teacher=copy.deepcopy(model), scratch=tmp_path, benches=benches)
    return channels.apply(model, parse_params("channels", params), context).eval(), context.notes


def test_the_multiple_that_the_device_likes_is_taken_and_its_evidence_kept(tmp_path):
    device = MadeUp()
    cut, notes = prune(
        tiny_resnet(width=1), tmp_path, device, macs=0.5, multiple="auto", device="pi", format="tflite-int8"
    )
    assert device.asked == [("pi", "tflite-int8")] and device.measured == 0
    assert notes["multiple"] == 4 and notes["multiple_measured"] == {"multiple": 4, "agreement": 1.0}
    assert notes["budget_met"] and all(left % 4 == 0 for left, _ in notes["widths"].values())
    assert cost.count(cut, SHAPE).macs < cost.count(tiny_resnet(width=1), SHAPE).macs


@pytest.mark.parametrize("which", ["inner", "all"])
def test_a_fraction_of_the_latency_is_met(tmp_path, which):
    device, dense = MadeUp(), tiny_resnet(width=1)
    whole = device.takes(dense)
    cut, notes = prune(dense, tmp_path, device, latency=0.7, multiple=2, which=which)
    assert device.takes(cut) / whole == pytest.approx(0.7, rel=0.02)
    assert notes["latency"]["met"] and notes["budget_met"] and notes["latency"]["target"] == 0.7
    assert notes["latency"]["latency_ratio"] == pytest.approx(device.takes(cut) / whole)
    assert notes["latency"]["low"] < notes["latency"]["latency_ratio"] < notes["latency"]["high"]
    assert len(notes["latency"]["measured"]) == device.measured <= 5 and "latency_warning" not in notes


def test_a_device_that_does_other_work_is_said(tmp_path):
    device = MadeUp()
    device.spread = 1.5
    _, notes = prune(tiny_resnet(width=1), tmp_path, device, latency=0.7, multiple=2)
    assert "150% apart" in notes["latency_warning"]


def test_a_latency_in_milliseconds_is_met(tmp_path):
    device, dense = MadeUp(), tiny_resnet(width=1)
    wanted = 0.75 * device.takes(dense)
    cut, notes = prune(dense, tmp_path, device, latency=f"{wanted:.4f} ms", multiple=2, which="all")
    assert device.takes(cut) == pytest.approx(wanted, rel=0.02)
    assert notes["dense_ms"] == pytest.approx(wanted / 0.75) and notes["latency"]["target"] == pytest.approx(
        0.75, rel=1e-3
    )


def test_the_latency_goes_down_in_equal_parts_over_the_steps(tmp_path):
    device, dense = MadeUp(), tiny_resnet(width=1)
    whole, reached = device.takes(dense), []

    class Watched(Context):
        def train(self, model, spec, **kwargs):
            reached.append(device.takes(model) / whole)

    torch.set_num_threads(1)
    context = Watched(data=few_digits(64), seed=0, teacher=copy.deepcopy(dense), scratch=tmp_path, benches=device)
    given = {"latency": 0.7, "multiple": 2, "which": "all", "steps": 2, "finetune": {"epochs": 2}}
    channels.apply(dense, parse_params("channels", given), context)
    assert reached == pytest.approx([0.85, 0.7], rel=0.02)


def test_what_cannot_be_met_is_one_clear_message_and_changes_nothing(tmp_path):
    for params, words in [
        ({"latency": 0.05}, "latency: 0.05 is out of reach: the deepest cut still takes"),
        ({"latency": "900 ms"}, r"900 ms was asked for; the network as it is takes"),
        ({"latency": 0.7, "multiple": 64}, "multiple that widths are rounded to"),
    ]:
        model = tiny_resnet(width=1)
        with pytest.raises(UserError, match=words):
            prune(model, tmp_path, MadeUp(), **{"multiple": 2, **params})
        assert same_state(model, tiny_resnet(width=1)) and not kept.get(model)
    with pytest.raises(UserError, match="measures on a device, and none was given"):
        prune(tiny_resnet(), tmp_path, None, latency=0.5)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"latency": 0.5, "macs": 0.5}, "one budget at a time: macs and latency"),
        ({"latency": 1.0}, "latency"),
        ({"latency": "fast"}, "latency"),
        ({"multiple": "often"}, "multiple"),
        ({"macs": 0.5, "device": "pi"}, "neither is asked for"),
        ({"macs": 0.5, "format": "tflite-fp32"}, "neither is asked for"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("channels", params)


def test_which_steps_need_a_device_is_known_before_they_run():
    assert asked_of_device("channels", {"macs": 0.5}) is None
    assert asked_of_device("magnitude", {"sparsity": 0.5}) is None
    assert asked_of_device("channels", {"multiple": "auto"}) == Asked(None, "onnx-fp32")
    given = {"latency": 0.5, "device": "pi", "format": "tflite-int8"}
    assert asked_of_device("channels", given) == Asked("pi", "tflite-int8")
