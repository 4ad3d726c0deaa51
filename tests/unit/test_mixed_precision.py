"""Mixed precision: layers in float by a budget of accuracy, float16 in the files, and fewer bits that are only simulated."""

from __future__ import annotations

import copy
import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from edgecompress_agent import wire
from edgecompress_agent.engines import litert
from edgecompress_agent.profiling import _Cut
from torch import Tensor, nn

import edgecompress as ec
from edgecompress import data, masks, quantization, sites
from edgecompress.activations import ActivationType
from edgecompress.compress.quantize.folding import Engine
from edgecompress.compress.quantize.rounding import few_bits_weight
from edgecompress.compress.quantize.simulation import calibrated, simulated
from edgecompress.errors import StepFailed, UserError
from edgecompress.evaluate import accuracy
from edgecompress.export import census, cut_tflite, operator_costs, parity
from edgecompress.export.census_onnx import as_run
from edgecompress.export.contract import export_artifact
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.recipe import run_steps
from edgecompress.records import Artifact
from edgecompress.study import Step, TrainSpec
from edgecompress.train import fit
from tests.file_weights import channels
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy

FORMS = ["onnx-int8", pytest.param("tflite-int8", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    torch.set_num_threads(1)
    return few_digits(400)


@pytest.fixture(scope="module")
def spoiled(digits: data.Dataset) -> nn.Module:
    """A network that knows something, masked, with a weight in fc1 that is of no effect and leaves one scale per tensor no step
    for the others."""
    model = small_net()
    masks.put(model, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 3 == 0})
    fit(model, digits, TrainSpec(epochs=4, batch_size=32, lr=0.05))
    with torch.no_grad():
        model.fc1.weight[0, 0] = 400.0
        model.fc1.bias[0] = -1e5
        model.fc2.weight[:, 0] = 0.0
    return model.eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of float files, which the tests share: a conversion to TFLite takes seconds."""
    return tmp_path_factory.mktemp("cache")


def quantised(model: nn.Module, digits: data.Dataset, **params: object) -> tuple[nn.Module, dict]:
    step = Step(method="quantize", params=params)
    made, (record,) = run_steps(copy.deepcopy(model), (step,), data=digits, seed=0, scratch=Path())
    return made, record.notes


def exported(model: nn.Module, form: str, folder: Path, digits: data.Dataset, cache: Path) -> tuple[Artifact, Path]:
    if form.startswith("tflite"):
        pytest.importorskip("litert_torch")
    artifact = export_artifact(model, form, folder, dataset=digits, activation_type="int8", cache=cache)
    return artifact, folder / artifact.file


def computes_what_was_simulated(model: nn.Module, path: Path, digits: data.Dataset) -> bool:
    settings = quantization.get(model)
    ranges = calibrated(model, torch.from_numpy(data.calibration_images(digits)), settings)
    images = data.normalise(digits.val.images(np.arange(len(digits.val))), digits.mean, digits.std)
    with torch.no_grad():
        engine: Engine = "litert" if path.suffix == ".tflite" else "onnxruntime"
        network = simulated(model, dataclasses.replace(settings, ranges=ranges), engine=engine)
        expected = network(torch.from_numpy(images)).numpy()
    # A layer in float may put a value to the other side of the border of two steps: nearly all, not all.
    return bool((np.abs(parity.file_logits(path, images) - expected) < 1e-4).mean() > 0.98)


def test_a_budget_puts_the_most_sensitive_layers_into_float(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path
) -> None:
    unseen = dataclasses.replace(digits, test=None)  # type: ignore[arg-type]  # whatever looks at the test part fails
    step = Step(method="quantize", params={"max_drop": 0.05, "weights": "tensor"})
    model, (record,) = run_steps(copy.deepcopy(spoiled), (step,), data=unseen, seed=0, scratch=tmp_path)
    assert quantization.get(model).float_layers == ("fc1",) == tuple(record.notes["float_layers"])
    budget, effects = record.notes["budget"], record.notes["effect_of_each_layer"]
    assert budget["order"] == sorted(effects, key=lambda name: -effects[name]) and budget["order"][0] == "fc1"
    before, after = budget["moves"]
    assert (before["layer_put_into_float"], after["layer_put_into_float"]) == (None, "fc1")
    assert before["drop"] > 0.1 and after["drop"] <= 0.05 and after["extra_bytes"] == 3 * 24 * 256
    assert budget["float_top1"] == accuracy(spoiled, digits, "val").top1 and budget["validation_images"] == len(
        digits.val
    )
    assert budget["simulated_top1"] == after["simulated_top1"] == pytest.approx(budget["float_top1"] - budget["drop"])


def test_a_budget_that_is_met_at_once_leaves_nothing_in_float(spoiled: nn.Module, digits: data.Dataset) -> None:
    model, notes = quantised(spoiled, digits, max_drop=0.05)
    assert quantization.get(model).float_layers == () and len(notes["budget"]["moves"]) == 1


def test_a_budget_out_of_reach_says_what_is_in_reach(spoiled: nn.Module, digits: data.Dataset) -> None:
    model = copy.deepcopy(spoiled)
    with pytest.raises(UserError, match=r"max_drop: 0 is out of reach.*with 3 layers in float") as caught:
        ec.compress(model, "quantize", data=digits, max_drop=0.0, weights="tensor", float_layers=["c*", "fc2"])
    assert 0.1 < float(str(caught.value).partition("Ask for max_drop: ")[2].split()[0]) < 1
    assert quantization.get(model) == quantization.DEFAULT
    with pytest.raises(UserError, match="leave no layer to quantise"):
        ec.compress(model, "quantize", data=digits, max_drop=0.0, float_layers="*")


def pieces_compute_what_the_whole_does(path: Path, folder: Path) -> None:
    """Cut for a profile: what the engine does once at loading is no piece, and a layer's bytes are those in the file."""
    cut_tflite.cut(path, folder / "cut.zip")
    with zipfile.ZipFile(folder / "cut.zip") as archive:
        plan = json.loads(archive.read("plan.json"))
        pieces = _Cut(plan, [litert.Piece(archive.read(piece["file"]), 1) for piece in plan["pieces"]])
    image = (np.arange(1024) % 251 - 120).astype(np.int8).reshape(1, 32, 32, 1)
    whole = litert.load(path, 1, ())
    (expected,), (got,) = whole.step(whole.prepare((image,))), pieces.outputs((image,))
    assert np.abs(np.asarray(expected, float) - np.asarray(got, float)).max() <= 1
    times = [wire.OpTime(piece["name"], piece["type"], 1, 1, 1, activation_bytes=1) for piece in plan["pieces"]]
    costs = {name: (macs, stored) for name, macs, stored in operator_costs.costs(path, times, 1)}
    assert costs["fc1"] == (24 * 256, 2 * 24 * 256 + 4 * 24)  # float16 weights, float32 biases


@pytest.mark.parametrize("form", FORMS)
def test_float16_layers_take_half_the_bytes_in_the_file(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path, cache: Path, form: str
) -> None:
    sizes = {}
    for precision in ("float32", "float16"):
        model, _ = quantised(spoiled, digits, float_layers="fc1", float_precision=precision)
        artifact, path = exported(model, form, tmp_path / precision, digits, cache)
        found = census.count(path)
        assert found.float_layers == ("fc1",)
        assert found.float16_layers == (("fc1",) if precision == "float16" else ())
        assert found.denormals == 0 and artifact.weights == sum(p.numel() for p in spoiled.parameters() if p.ndim > 1)
        assert artifact.zeros >= 24 * 256 * 2 // 3 and artifact.warnings == ()
        assert computes_what_was_simulated(model, path, digits)
        sizes[precision] = artifact.file_bytes
    if form.startswith("tflite"):
        pieces_compute_what_the_whole_does(path, tmp_path)
    weights = spoiled.fc1.weight.numel()
    assert 0 <= 2 * weights - (sizes["float32"] - sizes["float16"]) < 1000


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_onnx_runtime_leaves_in_float_what_is_to_stay_there(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path, cache: Path, kind: ActivationType
) -> None:
    """It quantises float weights between integers by itself unless the file keeps it from that."""
    for layers in (("conv2",), ("fc1", "fc2"), ("conv1", "fc1")):
        model, _ = quantised(spoiled, digits, float_layers=layers)
        artifact = export_artifact(model, "onnx-int8", tmp_path, dataset=digits, activation_type=kind, cache=cache)
        assert as_run(tmp_path / artifact.file, int8_activations=kind == "int8").float_layers == layers
        assert not any("float" in warning for warning in artifact.warnings)


def test_a_weight_that_float16_cannot_hold_is_refused(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path, cache: Path
) -> None:
    model, _ = quantised(spoiled, digits, float_layers="fc1", float_precision="float16")
    with torch.no_grad():
        model.fc1.weight[0, 0] = 7e4
    with pytest.raises(StepFailed, match=r"fc1 has a weight of 7e\+04 and float16 ends at 65504"):
        exported(model, "onnx-int8", tmp_path, digits, cache)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [*FORMS, "onnx-fp32"])
def test_simulated_bits_are_values_of_few_bits_and_said_to_be_simulated(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path, cache: Path, form: str
) -> None:
    whole, _ = exported(spoiled, form, tmp_path / "whole", digits, cache)
    model, notes = quantised(spoiled, digits, simulated_bits={"fc*": 4, "conv2": 3, "fc2": 8}, correct_bias=True)
    assert notes["simulated_bits_of_each_layer"] == {"conv2": 3, "fc1": 4}
    apart = 16 * 18 * 3 // 8 + 4 * 16 + 24 * 256 // 2 + 4 * 24
    assert notes["bytes_apart_if_stored_in_these_bits"] == apart
    artifact, path = exported(model, form, tmp_path, digits, cache)
    (note,) = artifact.notes
    assert f"simulated: 3-bit and 4-bit values in {'an 8-bit' if 'int8' in form else 'a float32'} file" in note
    assert f"{apart:,} bytes if they were stored apart" in note and whole.notes == ()
    assert abs(artifact.file_bytes - whole.file_bytes) < 200  # the size stays that of the file's own type
    assert artifact.zeros >= whole.zeros >= 24 * 256 * 2 // 3
    if "int8" in form:
        stored = channels(path)
        assert max(len(np.unique(row)) for row in stored["conv2"]) <= 7
        assert 7 < max(len(np.unique(row)) for row in stored["fc1"]) <= 15
        assert max(len(np.unique(row)) for row in stored["conv1"]) > 15
        assert computes_what_was_simulated(model, path, digits)


def test_the_note_ends_when_a_later_step_changes_the_weights(
    spoiled: nn.Module, digits: data.Dataset, tmp_path: Path, cache: Path
) -> None:
    model, _ = quantised(spoiled, digits, simulated_bits={"fc1": 4, "fc2": 4})
    with torch.no_grad():
        model.fc1.weight.mul_(1 + 0.1 * torch.rand_like(model.fc1.weight))
    artifact, _ = exported(model, "onnx-fp32", tmp_path, digits, cache)
    assert artifact.notes == ("not on the grids of fewer bits any more, as a later step changed their weights: fc1",)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3), nn.Linear(40, 5)])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_grids_of_few_bits(layer: nn.Module, bits: int) -> None:
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[1] = 0.0  # an output channel, or an input one
        weight = layer.weight.detach().clone()
    found = few_bits_weight(layer, bits)
    axis, most = (1 if isinstance(layer, nn.ConvTranspose2d) else 0), 2 ** (bits - 1) - 1
    for exact, rows in zip(weight.unbind(axis), found.unbind(axis), strict=True):
        assert len(rows.unique()) <= 2 * most + 1
        step = exact.abs().max() / most
        plain = torch.round(exact / step).nan_to_num() * step
        assert (rows - exact).square().sum() <= (plain - exact).square().sum() + 1e-9
    assert not found[1].any()
    layer.weight.data = found
    torch.testing.assert_close(few_bits_weight(layer, bits), found, rtol=0, atol=1e-6)


def test_what_lies_between_float_layers_is_not_rounded() -> None:
    traced = sites.trace(small_net())
    assert sites.in_integers(traced, ()) == ("x", "relu", "relu_1", "relu_2", "fc2")
    assert sites.in_integers(traced, ("conv1",)) == ("relu", "relu_1", "relu_2", "fc2")
    assert sites.in_integers(traced, ("conv2", "fc1")) == ("x", "relu", "relu_2", "fc2")
    assert sites.in_integers(traced, ("fc1", "fc2")) == ("x", "relu", "relu_1")


def test_settings_survive_a_model_directory(spoiled: nn.Module, digits: data.Dataset, tmp_path: Path) -> None:
    model, _ = quantised(spoiled, digits, float_layers="fc1", float_precision="float16", simulated_bits=4)
    settings = quantization.get(model)
    assert settings.float_precision == "float16" and settings.simulated_bits == {"conv1": 4, "conv2": 4, "fc2": 4}
    save_model(tmp_path / "m", model, num_classes=10, in_shape=(1, 32, 32))
    assert quantization.get(load_model(tmp_path / "m", small_net())) == settings


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_drop": 0.01, "float_worst": 1}, "float_worst and max_drop both choose"),
        ({"max_drop": 1.5}, "max_drop"),
        ({"max_drop": -0.1}, "max_drop"),
        ({"float_precision": "float16"}, "float_precision is for layers that stay in float"),
        ({"float_precision": "fp8", "float_layers": "fc1"}, "float_precision"),
        ({"simulated_bits": 1}, "simulated_bits"),
        ({"simulated_bits": {"fc1": 9}}, "simulated_bits"),
        ({"simulated_bits": {}}, "name at least one layer"),
        ({"simulated_bits": {"cnv": 4}}, "simulated_bits: 'cnv' matches no"),
        ({"simulated_bits": 4, "weights": "tensor"}, "not with weights: tensor"),
        ({"simulated_bits": 4, "adaround": True}, "not with simulated_bits"),
    ],
)
def test_bad_requests_are_refused_in_one_message(digits: data.Dataset, params: dict, message: str) -> None:
    model = small_net()
    with pytest.raises(UserError, match=message):
        ec.compress(model, "quantize", data=digits, **params)
    assert quantization.get(model) == quantization.DEFAULT


def test_what_cannot_be_simulated_is_refused(digits: data.Dataset) -> None:
    class Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(1024, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sigmoid(self.layer(x.flatten(1))))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1024, 10)
            self.one, self.two = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.conv(self.one(self.conv(x)))).flatten(1))

    with pytest.raises(UserError, match=r"(?s)sigmoid.*without max_drop"):
        ec.compress(Sigmoid(), "quantize", data=digits, max_drop=0.01)
    with pytest.raises(UserError, match="conv computes twice"):
        ec.compress(Twice(), "quantize", data=digits, max_drop=0.01)
    with pytest.raises(UserError, match="data"):
        ec.compress(small_net(), "quantize", max_drop=0.01)
