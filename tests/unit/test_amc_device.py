"""AMC under a budget of latency or energy. The device is made up, and its truth is known: what layers cost alone and together."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from edgecompress import cost
from edgecompress.compress import amc
from edgecompress.compress.amc import measuring
from edgecompress.compress.amc.layer_networks import NOTHING, shapes
from edgecompress.compress.amc.layer_table import DeviceCost, Grid, widths
from edgecompress.compress.amc.spaces import ChannelSpace
from edgecompress.compress.channels.budget import layers
from edgecompress.compress.contract import Asked, Context, asked_of_device, parse_params
from edgecompress.errors import StepFailed, UserError
from edgecompress.latency_search import LatencyRatio
from edgecompress.models import kept
from tests.small_nets import few_digits, same_state
from tests.unit.test_channels import SHAPE, DepthWise, tiny_resnet

pytestmark = pytest.mark.heavy

QUICK = {"episodes": 14, "warmup": 9, "images": 20, "fit": 0, "multiple": 1, "baselines": ()}


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return few_digits(64)


class MadeUp:
    """Alone a layer takes 0.01 + 2 for each million multiply-accumulates, and any job 0.05 more; in a network 0.8 of that, and the
    network `own` of its own. fails: how many of the next questions are not answered."""

    own = 0.1

    def __init__(self) -> None:
        self.asked, self.alone, self.whole, self.fails, self.spread = [], [], 0, 0, 0.0

    def __call__(self, device, format):
        self.asked.append((device, format))
        return self

    def _answer(self) -> None:
        if self.fails:
            self.fails -= 1
            raise StepFailed("the board does not answer")

    @staticmethod
    def _layers(model: nn.Module, shape) -> float:
        count = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
        return 0.01 * count + 2 * cost.count(model, shape).macs / 1e6

    def takes(self, model: nn.Module) -> float:
        return self.own + 0.8 * self._layers(model, SHAPE)

    def small(self, what, networks):
        self._answer()
        self.alone.append((what, sorted(networks)))
        return {name: 0.05 + self._layers(*make()) for name, make in networks.items()}

    def energy_mj(self, model, in_shape):
        self._answer()
        self.whole += 1
        return 3 * self.takes(model)

    @contextmanager
    def against(self, dense, in_shape):
        yield Ratios(self, dense)

    def identity(self):
        return {"device": "made up"}


class Ratios:
    def __init__(self, device, dense) -> None:
        self.device, self.dense = device, device.takes(dense)

    def dense_ms(self) -> float:
        return self.dense

    def __call__(self, model, target=None):
        self.device._answer()
        self.device.whole += 1
        ratio = self.device.takes(model) / self.dense
        return LatencyRatio(ratio, ratio, ratio, self.dense, ratio * self.dense, 3, 0.01)


def compress(model, tmp_path, data, benches, **params):
    context = Context(data=data, seed=0, teacher=copy.deepcopy(model), scratch=tmp_path, benches=benches)
    return amc.apply(model, parse_params("amc", {**QUICK, **params}), context).eval(), context.notes


@pytest.mark.parametrize("make", [lambda: tiny_resnet(blocks=1), DepthWise])
def test_the_table_says_what_every_network_takes_up_to_a_scale(tmp_path, digits, make):
    """Without what a network has of its own, the sum over interpolated layers is exact: the made-up layers are bilinear."""
    model = make().eval()
    params = parse_params("amc", {**QUICK, "latency": 0.5})
    device = MadeUp()
    context = Context(data=digits, seed=0, teacher=model, scratch=tmp_path, benches=device)
    space = ChannelSpace(model, params, context, 1)
    budget = measuring.DeviceBudget(space, params, context)
    for share in (1.0, 0.83, 0.5, 0.3):
        units = tuple(max(c.lowest, round(share * c.size)) for c in space.choices)
        keep = [n / c.size for n, c in zip(units, space.choices, strict=True)]
        alone = device._layers(space.candidate(units), SHAPE)
        assert budget.cost.predicted(keep) == pytest.approx(alone / device._layers(model, SHAPE), rel=1e-6)
    names = device.alone[0][1]
    assert NOTHING in names and len(names) == len(set(names))
    assert len(names) <= 16 * len(set(shapes(model, SHAPE).values())) + 1


@pytest.mark.parametrize("what", ["latency", "energy"])
def test_a_share_of_what_the_device_takes_is_kept(tmp_path, digits, what):
    device, dense = MadeUp(), tiny_resnet(blocks=1)
    whole = device.takes(dense)
    cut, notes = compress(dense, tmp_path, digits, device, device="pi", format="tflite-int8", **{what: 0.6})
    assert device.asked == [("pi", "tflite-int8")] and kept.get(cut)
    assert device.takes(cut) / whole <= 0.6 * 1.02
    found = notes["on_device"]
    assert found["met"] and notes["budget_met"] and found["measured"] == pytest.approx(device.takes(cut) / whole)
    assert found["of"] == what and found["layers"][NOTHING] == 0.05 and found["identity"] == {"device": "made up"}
    probes = [w for w in found["whole_networks"] if w["evaluation"] == 0]
    assert 2 <= len(probes) <= 4 and found["median_error"] > 0
    # What a network has of its own is not in the table: predictions are too low, the slope puts them right.
    assert all(w["error"] < 0 for w in probes)
    assert found["slope"] == pytest.approx(1 - 0.1 / whole)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.4])
def test_a_policy_uses_its_budget_near_the_whole_network_as_far_below_it(tmp_path, digits, share):
    device, dense = MadeUp(), tiny_resnet(blocks=1)
    device.own = 2.0
    whole = device.takes(dense)
    cut, _ = compress(dense, tmp_path, digits, device, latency=share, unspent="spread")
    assert share - 0.03 < device.takes(cut) / whole <= share * 1.02


class Stepped(MadeUp):
    """An engine that computes blocks of 8 channels: between two multiples nothing becomes faster."""

    def takes(self, model: nn.Module) -> float:
        return self.own + 0.8 * self._layers(model, SHAPE)

    @staticmethod
    def _layers(model: nn.Module, shape) -> float:
        def up(channels: int) -> int:
            return channels if channels == 1 else -(-channels // 8) * 8

        facts = [layer for layer in layers(model, shape).values() if layer.into]
        return sum(0.01 + 2e-6 * up(f.out) * up(f.into // f.groups) * f.kernel * f.positions for f in facts)


@pytest.mark.parametrize("share", [0.98, 0.9, 0.7, 0.6])
def test_latency_that_goes_in_steps_is_no_budget_out_of_reach(tmp_path, digits, share):
    """Cuts near the whole network save nothing, which says nothing of deeper ones; every search ends with a measured policy."""
    device, dense = Stepped(), tiny_resnet(blocks=1)
    whole = device.takes(dense)
    cut, notes = compress(
        dense,
        tmp_path,
        digits,
        device,
        latency=share,
        unspent="spread",
        baselines=("uniform", "random", "evolutionary"),
    )
    found = notes["on_device"]
    assert (
        found["met"]
        and found["measured"] == pytest.approx(device.takes(cut) / whole)
        and found["measured"] <= share * 1.02
    )
    measured = [pytest.approx(w["measured"]) for w in found["whole_networks"]]
    best = {name: strategy["best"] for name, strategy in notes["search"]["strategies"].items()}
    assert best["uniform"] is not None, "it is asked again where its policy was above the budget"
    assert all(b is None or b["budget_used"] in [*measured, pytest.approx(share)] for b in best.values())


@pytest.mark.parametrize(("what", "unit", "factor"), [("latency", "ms", 1), ("energy", "mJ", 3)])
def test_a_budget_in_the_devices_own_unit(tmp_path, digits, what, unit, factor):
    device, dense = MadeUp(), tiny_resnet(blocks=1)
    whole = device.takes(dense)
    cut, notes = compress(dense, tmp_path, digits, device, **{what: f"{0.7 * factor * whole:.5f} {unit}"})
    assert device.takes(cut) <= 0.7 * whole * 1.02 and notes["on_device"]["share"] == pytest.approx(0.7, rel=1e-3)
    assert notes["on_device"]["whole"] == pytest.approx(factor * whole)
    with pytest.raises(UserError, match=f"was asked for; the network as it is takes .* {unit}"):
        compress(tiny_resnet(blocks=1), tmp_path, digits, MadeUp(), **{what: f"900 {unit}"})


def test_a_budget_that_the_least_exceeds_is_refused_before_the_search(tmp_path, digits):
    model = tiny_resnet(blocks=1)
    with pytest.raises(
        UserError, match=r"latency: 0.02 is out of reach: the least that may be kept was measured, and takes"
    ):
        compress(model, tmp_path, digits, MadeUp(), latency=0.02)
    assert same_state(model, tiny_resnet(blocks=1)) and not list(tmp_path.rglob("checkpoint.pt"))
    with pytest.raises(UserError, match="measures on a device, and none was given"):
        compress(model, tmp_path, digits, None, latency=0.5)


def test_a_device_that_fails_is_asked_again_then_the_search_pauses_and_goes_on(tmp_path, digits, monkeypatch):
    slept = []
    monkeypatch.setattr(measuring.time, "sleep", slept.append)
    monkeypatch.setattr(measuring, "LOOK_EVERY", 7)
    device = MadeUp()
    device.fails = 2
    whole, notes = compress(tiny_resnet(blocks=1), tmp_path / "whole", digits, device, latency=0.6)
    assert slept == [5.0, 30.0] and notes["budget_met"]

    class Dies(MadeUp):
        @contextmanager
        def against(self, dense, in_shape):
            if self.whole == 4:  # after the four networks before the search
                self.fails, self.whole = 3, 5
            yield Ratios(self, dense)

    failing = Dies()
    model = tiny_resnet(blocks=1)
    with pytest.raises(StepFailed, match=r"amc is paused: the device failed 3 times.*the same command goes on"):
        compress(model, tmp_path / "paused", digits, failing, latency=0.6)
    assert same_state(model, tiny_resnet(blocks=1))
    again, resumed = compress(model, tmp_path / "paused", digits, MadeUp(), latency=0.6)
    assert resumed["search"]["resumed_at"] >= 7 and resumed["policy"] == notes["policy"]
    assert same_state(whole, again)


def test_which_steps_need_a_device_or_a_sensor_is_known_before_they_run(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    assert asked_of_device("amc", {"macs": 0.5}) is None
    assert asked_of_device("amc", {"policy": str(file)}) is None
    assert asked_of_device("amc", {"latency": 0.5, "device": "pi"}) == Asked("pi", "onnx-fp32")
    assert asked_of_device("amc", {"multiple": "auto"}) == Asked(None, "onnx-fp32")
    assert asked_of_device("amc", {"energy": "3 mJ"}) == Asked(None, "onnx-fp32", energy=True)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"latency": 0.5, "energy": 0.5}, "one budget at a time"),
        ({"energy": "3 ms"}, "energy"),
        ({"macs": 0.5, "device": "pi"}, "none is asked for"),
        ({"latency": 0.5, "granularity": "weights"}, "no engine here skips single zeros"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("amc", params)


def test_grids_are_interpolated_and_widths_cover_a_side():
    grid = Grid((4, 8, 16), (10, 20), ((1.0, 2.0), (3.0, 5.0), (9.0, 9.0)))
    assert grid.at(4, 10) == 1.0 and grid.at(8, 15) == 4.0 and grid.at(6, 10) == 2.0 and grid.at(12, 20) == 7.0
    assert grid.at(1, 1) == 1.0 and grid.at(99, 99) == 9.0
    assert widths(64, 13) == (13, 30, 47, 64) and widths(64, 16, 8) == (16, 32, 48, 64)
    assert widths(16, 8, 8) == (8, 16) and widths(3, 3) == (3,)


def test_a_measured_network_costs_what_was_measured_and_moves_the_slope():
    known = DeviceCost(
        {"a": Grid((1,), (0, 10), ((0.0, 10.0),))}, lambda keep: lambda layer: (1, 10 * keep[0]), (10,), budget=0.5
    )
    assert known([0.4]) == pytest.approx(0.4)
    known.add((4,), 0.5, 0)
    assert known([0.4]) == 0.5 and known.slope == pytest.approx(0.5 / 0.6) and known([0.2]) == pytest.approx(1 / 3)
    assert known([1.0]) == 1.0, "the whole network is itself, whatever was measured"
    assert known.errors() == [pytest.approx(-0.2)]
    known.add((5,), 0.505, 3)
    assert known([0.5]) == 0.5, "what a measurement cannot tell apart from the budget keeps to it"
    known.add((6,), 0.7, 4)
    assert known([0.6]) == 0.7
    known.add((10,), 1.01, 5)
    assert known.slope == pytest.approx(0.5 / 0.6), "the whole network says nothing about it"


def test_below_the_measured_networks_the_line_goes_to_the_least_one():
    grid = {"a": Grid((1,), (0, 10), ((0.0, 10.0),))}
    known = DeviceCost(grid, lambda keep: lambda layer: (1, 10 * keep[0]), (10,), least=(2,))
    known.add((2,), 0.4, 0)
    assert known([0.2]) == 0.4 and known([0.6]) == pytest.approx(0.7) and known([1.0]) == 1.0
    known.add((8,), 1.0, 0)
    assert known.slope == 0 and known([0.9]) == 1.0 and known([0.5]) == pytest.approx(0.7)
    known.add((7,), 0.3, 0)  # less than the least network: no other is foretold to take less
    assert known([0.25]) >= 0.4


def test_a_slope_beyond_what_can_be_is_no_cost_below_zero_or_that_grows_as_more_is_cut():
    def known(*measured: tuple[int, float]) -> DeviceCost:
        grid = {"a": Grid((1,), (0, 10), ((0.0, 10.0),))}
        made = DeviceCost(grid, lambda keep: lambda layer: (1, 10 * keep[0]), (10,))
        for units, measured_cost in measured:
            made.add((units,), measured_cost, 0)
        return made

    assert known((5, 0.25))([0.6]) == pytest.approx(0.4) and known((5, 0.25))([0.1]) == 0
    assert known((5, 1.1)).slope == 0 and known((5, 1.1))([0.3]) == 1
