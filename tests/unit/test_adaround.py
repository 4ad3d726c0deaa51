"""AdaRound: the formulas, what learning may change, and that both int8 files hold exactly the integers that were learned."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecompress as ec
from edgecompress import codebooks, data, masks, quantization
from edgecompress.compress.contract import full_params
from edgecompress.compress.quantize.adaround import Learned, beta_at, learn, soft, start, undecided
from edgecompress.compress.quantize.adaround_spec import AdaRoundSpec
from edgecompress.compress.quantize.grids import grid, learnable
from edgecompress.errors import StepFailed, UserError
from edgecompress.export import census_onnx, census_tflite
from edgecompress.export.contract import export_artifact
from edgecompress.models import build
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.recipe import run_steps
from edgecompress.study import ModelSpec, Step
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

SHORT = {"iterations": 40, "lr": 0.1, "batch_size": 16}
"""Enough for small networks on 32 images."""


class Varied(nn.Module):
    """Every kind of layer that both exporters fold a batch norm into, negative factors and dead channels among the norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 5, stride=4, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.norm3 = nn.BatchNorm2d(12, affine=False)
        self.point = nn.Conv2d(8, 12, 1)
        self.hidden = nn.Linear(12 * 4, 16)
        self.norm4 = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = nn.functional.relu6(self.norm2(self.depthwise(x)))
        x = torch.relu(self.norm3(self.grouped(x)) + self.point(x))
        x = nn.functional.avg_pool2d(x, 4).flatten(1)
        return self.last(torch.relu(self.norm4(self.hidden(x))))


def varied() -> Varied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Varied()
        for norm in (model.norm1, model.norm2, model.norm3, model.norm4):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.3, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.3, 1.5)
                nn.init.uniform_(norm.bias, -0.2, 0.5)
        with torch.no_grad():
            model.norm1.weight[1] *= -1
            model.norm1.weight[2] = 0
    masks.put(model, {"grouped.weight": torch.arange(12 * 36).reshape(12, 4, 3, 3) % 3 > 0})
    return model.eval()


LAYERS = ["stem", "depthwise", "grouped", "point", "hidden", "last"]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    torch.set_num_threads(1)
    return few_digits()


@pytest.fixture(scope="module")
def images(digits: data.Dataset) -> Tensor:
    return torch.from_numpy(data.calibration_images(digits))


def learned(model: nn.Module, images: Tensor, names: list[str], **settings: Any) -> Learned:
    given = {"most": 127, "granularity": "channel", "seed": 0, "spec": AdaRoundSpec(**SHORT), **settings}
    return learn(model, images, names, **given)


def test_h_and_the_term_that_decides_it_are_the_papers() -> None:
    v = torch.tensor([-3.0, 0.0, 2.0, 3.0])
    torch.testing.assert_close(soft(v), torch.tensor([0.0, 0.5, 0.9569565, 1.0]))  # 1.2 / (1 + e^-2) - 0.1
    assert float(start(torch.tensor(0.25))) == pytest.approx(-0.8873032)  # -ln(1.2 / 0.35 - 1)
    fractions = torch.linspace(0, 1, 11)
    torch.testing.assert_close(soft(start(fractions)), fractions)
    h = torch.tensor([0.0, 0.5, 0.75, 1.0])
    assert float(undecided(h, 2)) == 1.75
    assert float(undecided(h, 4)) == 1.9375
    spec = AdaRoundSpec()
    assert (beta_at(0.0, spec), beta_at(0.199, spec)) == (None, None)
    assert [beta_at(done, spec) for done in (0.2, 0.6, 1.0)] == [pytest.approx(b) for b in (20, 11, 2)]


def test_what_is_fused_is_inside_the_reconstruction() -> None:
    model = varied()
    found = learnable(model, LAYERS, "channel")
    assert [(layer.name, layer.norm, layer.activation) for layer in found] == [
        ("stem", model.norm1, "relu"), ("depthwise", model.norm2, "relu6"), ("grouped", model.norm3, None),
        ("point", None, None), ("hidden", model.norm4, "relu"), ("last", None, None),
    ]  # fmt: skip
    assert [layer.name for layer in learnable(model, LAYERS, "tensor")] == [
        "stem", "depthwise", "grouped", "point", "last",
    ]  # fmt: skip


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_learning_moves_no_weight_by_a_step_and_helps_every_layer(images: Tensor, granularity: str) -> None:
    model, before = varied(), varied()
    found = learned(model, images, LAYERS, most=7, granularity=granularity)
    assert found.kept and found.output_errors[1] < 0.8 * found.output_errors[0]
    assert all(now <= nearest for nearest, now in found.errors.values())
    assert sum(now < nearest for nearest, now in found.errors.values()) >= 3
    after = {layer.name: layer for layer in learnable(model, LAYERS, granularity)}
    for layer in learnable(before, LAYERS, granularity):
        old, new = grid(layer, 7, granularity), grid(after[layer.name], 7, granularity)
        torch.testing.assert_close(new.step, old.step, rtol=1e-5, atol=0)  # so an exporter finds the same scale again
        distance = (found.integers[layer.name] - old.weight / old.step).abs()
        assert float(distance.max()) < 1
        assert int(found.integers[layer.name].abs().max()) == 7
        assert not found.integers[layer.name][old.weight == 0].any()
        torch.testing.assert_close(new.weight / new.step, found.integers[layer.name].float(), rtol=0, atol=1e-4)
    assert sum(float(share) > 0 for share in found.moved.values()) >= 3
    dropped = ~masks.get(model)["grouped.weight"]
    assert not model.grouped.weight.detach()[dropped].view(torch.int32).any()  # +0, bit for bit
    assert torch.equal(model.stem.weight[2], before.stem.weight[2])  # behind a factor of 0 nothing is known


def test_a_seed_decides_everything(images: Tensor) -> None:
    one, two, three = varied(), varied(), varied()
    a, b = (learned(model, images, LAYERS, most=7).integers for model in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in LAYERS) and same_state(one, two)
    c = learned(three, images, LAYERS, most=7, seed=1).integers
    assert any(not torch.equal(a[name], c[name]) for name in LAYERS)


def test_a_layer_that_learning_made_worse_is_rounded_to_the_nearest(images: Tensor) -> None:
    model = varied()
    wild = AdaRoundSpec(iterations=1, lr=1000.0)  # one step of Adam: every weight up or down by its gradient's sign
    found = learned(model, images, ["last"], spec=wild)
    assert found.moved["last"] == 0 and found.errors["last"][0] == found.errors["last"][1]
    nearest = grid(learnable(varied(), ["last"], "channel")[0], 127, "channel").nearest()
    assert torch.equal(found.integers["last"].float(), nearest)


def test_a_network_that_learning_made_worse_stays_as_it_was() -> None:
    class LeftOnly(nn.Module):
        """Learning sees both places of the layer's output, the network's output is the left one."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1, bias=False)
            self.layer.weight.data = torch.tensor([10.45, 5.7, 127.0]).reshape(1, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[..., 0].flatten(1)

    # nearest (10, 6): errors -0.15 at the left, where (1, 1) comes in, and -7.5 at the right, (10, -10); (11, 6): 0.85 and 2.5
    images = torch.tensor([[1.0, 10.0], [1.0, -10.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    model = LeftOnly()
    found = learned(model, images, ["layer"], spec=AdaRoundSpec(iterations=300, lr=0.1, regulariser=3.0))
    assert found.integers["layer"].flatten().tolist() == [11, 6, 127]
    assert found.output_errors == (pytest.approx(0.0225, rel=1e-3), pytest.approx(0.7225, rel=1e-3)) and not found.kept
    assert same_state(model, LeftOnly())


def onnx_integers(path: Path) -> dict[str, np.ndarray]:
    import onnx

    graph = onnx.load(str(path)).graph
    constants = census_onnx.Constants(graph, list(graph.node))
    found = {}
    for node in graph.node:
        if node.op_type in census_onnx.LAYERS and constants.dequantised(node):
            values, zeros, _ = constants.weight(node.input[1], node, 1)
            assert values.dtype == np.int8 and zeros is not None and not zeros.any()
            found[census_onnx.layer_name(node)] = values
    return found


def tflite_integers(path: Path) -> dict[str, np.ndarray]:
    model, schema, _ = census_tflite.read_model(path)
    builtin = census_tflite.builtin_names(schema)
    (graph,) = model.subgraphs
    found: dict[str, np.ndarray] = {}
    for operator in graph.operators:
        kind = census_tflite.operator_name(model.operatorCodes[operator.opcodeIndex], builtin)
        if kind not in census_tflite.LAYERS:
            continue
        weight = graph.tensors[operator.inputs[1]]
        if weight.type != schema.TensorType.INT8:
            continue
        values = np.asarray(model.buffers[weight.buffer].data, np.uint8).view(np.int8).reshape(weight.shape)
        order = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}[kind]
        name = census_tflite.layer_name(weight.name, graph.tensors[operator.outputs[0]].name)
        name = {"norm4": "hidden"}.get(name, name)  # of a linear layer the file keeps the name of its batch norm
        assert name not in found
        found[name] = values.transpose(order)
    return found


@pytest.mark.parametrize(
    ("form", "granularity"),
    [
        ("onnx-int8", "channel"), ("onnx-int8-reduced", "channel"), ("onnx-int8-reduced", "tensor"),
        ("tflite-int8", "channel"), ("tflite-int8", "tensor"),
    ],
)  # fmt: skip
def test_the_files_hold_the_integers_that_were_learned(
    digits: data.Dataset, images: Tensor, tmp_path: Path, form: str, granularity: Any
) -> None:
    if form.startswith("tflite"):
        pytest.importorskip("litert_torch")
    reduced = form.endswith("reduced")
    names = [name for name in LAYERS if name != "point"]
    expected = learned(varied(), images, names, most=64 if reduced else 127, granularity=granularity)
    bits = 7 if reduced else 8
    model = ec.compress(
        varied(), "quantize", data=digits, adaround=SHORT, weights=granularity, weight_bits=bits, float_layers="point"
    ).model
    assert torch.equal(model.point.weight, varied().point.weight)
    artifact = export_artifact(
        model, form.removesuffix("-reduced"), tmp_path, dataset=digits,
        activation_type="uint8-reduced" if reduced else "uint8", cache=tmp_path / "cache",
    )  # fmt: skip
    found = (onnx_integers if form.startswith("onnx") else tflite_integers)(tmp_path / artifact.file)
    assert sorted(found) == sorted(names)
    for name, integers in expected.integers.items():
        np.testing.assert_array_equal(found[name].reshape(integers.shape), integers.numpy(), err_msg=name)
    assert any(share > 0 for share in expected.moved.values())
    assert len(expected.integers) == (5 if granularity == "channel" else 4)
    assert not any("learned for" in warning for warning in artifact.warnings)


def test_a_file_of_other_bits_says_that_the_rounding_is_lost(digits: data.Dataset, tmp_path: Path) -> None:
    model = ec.compress(small_net(), "quantize", data=digits, adaround=SHORT).model
    artifact = export_artifact(
        model, "onnx-int8", tmp_path, dataset=digits, activation_type="uint8-reduced", cache=tmp_path / "cache"
    )
    assert [w for w in artifact.warnings if "learned for 8 bits" in w and "weights of 7" in w]


def test_settings_and_record_say_what_was_learned(digits: data.Dataset, tmp_path: Path) -> None:
    model = build(ModelSpec(name="lenet5"), num_classes=10, in_shape=(1, 32, 32))
    result = ec.compress(model, "quantize", data=digits, adaround={**SHORT, "images": 8}, weight_bits=7)
    notes = result.report.steps[0].notes
    assert notes["adaround_kept"] and notes["adaround_left_nearest"] == []
    assert notes["adaround_output_error"]["learned"] <= notes["adaround_output_error"]["nearest"]
    for layer in notes["adaround_layers"].values():
        assert layer["error_learned"] <= layer["error_nearest"] and 0 <= layer["not_nearest"] < 0.5
    save_model(tmp_path / "m", result.model)
    assert quantization.get(load_model(tmp_path / "m")).rounded_bits == 7
    assert full_params("quantize", {"adaround": True})["adaround"] == AdaRoundSpec().model_dump()
    assert full_params("quantize", {"adaround": False})["adaround"] is None


def test_a_layer_that_computes_twice_or_shares_its_weight_is_left(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1024, 8)
            self.twice = nn.Linear(8, 8)
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
            self.other.weight = self.one.weight
            self.up = nn.ConvTranspose2d(2, 4, 1, groups=2)
            self.last = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(self.one(self.twice(self.twice(self.first(x.flatten(1))))))
            return self.last(self.up(x.reshape(-1, 2, 2, 2)).flatten(1))

    torch.manual_seed(0)
    model = Twice().eval()
    names = ["first", "twice", "one", "other", "up", "last"]
    before = copy.deepcopy(model)
    found = learned(model, images, names)
    assert found.left == ["twice", "one", "other", "up"] and set(found.integers) == {"first", "last"}
    for name in found.left:
        assert torch.equal(model.get_submodule(name).weight, before.get_submodule(name).weight)
    with pytest.raises(UserError, match="adaround: no layer of this model can be learned"):
        learned(model, images, ["twice"])


def test_bad_requests_are_refused_in_one_message(digits: data.Dataset, tmp_path: Path) -> None:
    def refused(pattern: str, model: nn.Module | None = None, dataset: data.Dataset | None = digits, **params: Any):
        given = model or small_net()
        before = copy.deepcopy(given)
        with pytest.raises(UserError, match=pattern):
            step = Step(method="quantize", params={"adaround": True, **params})
            run_steps(given, (step,), data=dataset, seed=0, scratch=tmp_path)
        assert same_state(given, before)

    refused("needs data", dataset=None)
    refused("calibration images: shape", dataset=dataclasses.replace(digits, calibration_indices=()))
    refused("32 of 32 images hold NaN", dataset=dataclasses.replace(digits, mean=(float("nan"),)))
    with pytest.raises(ValueError, match="adaround and correct_bias both"):
        full_params("quantize", {"adaround": True, "correct_bias": True})
    wrong = {"adaround.iterations: .*greater than or equal to 1": {"iterations": 0}, "adaround.steps": {"steps": 5}}
    for message, settings in wrong.items():
        with pytest.raises(ValueError, match=message):
            full_params("quantize", {"adaround": settings})
    shared = small_net()
    codebooks.put(shared, {"fc2.weight": torch.ones(10, 24, dtype=torch.int32)})
    refused("the weights of fc2 share values", shared)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1024, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x.flatten(1))
            return x if x.sum() > 0 else -x

    refused("cannot be traced", Branching())


def test_outputs_that_are_not_finite_fail_the_step(images: Tensor) -> None:
    model = small_net()
    with torch.no_grad():
        model.fc2.bias[0] = float("inf")
    with pytest.raises(StepFailed, match="outputs for the calibration images are not finite"):
        learned(model, images, ["fc1"])
