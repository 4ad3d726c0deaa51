"""Training with rounding: what is rounded where, how gradients pass, and that the int8 file computes what was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecompress as ec
from edgecompress import codebooks, data, masks, quantization, sites
from edgecompress.compress.qat.network import Rounding
from edgecompress.compress.quantize.rounding import rounded
from edgecompress.compress.quantize.simulation import simulated
from edgecompress.errors import UserError
from edgecompress.export.contract import export_artifact
from edgecompress.models import build
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.study import ModelSpec
from tests.file_weights import channels
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    torch.set_num_threads(1)
    return few_digits()


@pytest.fixture(scope="module")
def trained(digits: data.Dataset) -> nn.Module:
    model = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(1, 32, 32), seed=1)
    masks.put(model, {"layer1.0.conv1.weight": torch.arange(144).reshape(4, 4, 3, 3) % 2 == 0})
    return ec.compress(model, "qat", data=digits, epochs=1, lr=0.05, batch_norm="updated").model


def test_sites_are_where_engines_put_scales() -> None:
    traced = sites.trace(small_net())
    assert [(site.node, site.like) for site in sites.find(traced)] == [
        ("x", "x"), ("relu", "relu"), ("relu_1", "relu_1"), ("relu_2", "relu_2"), ("fc2", "fc2"),
    ]  # fmt: skip
    assert sites.scales(traced)["flatten"] == "relu_1"  # through the pooling


def test_an_addition_and_an_average_have_their_scales() -> None:
    model = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(1, 32, 32))
    found = {site.node: site.like for site in sites.find(sites.trace(model))}
    assert found["layer1_0_bn2"] == "layer1_0_bn2"  # without a ReLU of its own
    assert found["pool"] == "relu_18"
    assert len(found) == 1 + 19 + 9 + 1 + 1


def test_gradients_pass_inside_and_move_the_end_that_clips() -> None:
    rounding = Rounding(-1.0, 2.0, learned=True)
    x = torch.tensor([-5.0, 0.3, 1.0, 7.0, 8.0], requires_grad=True)
    out = rounding(x)
    step = 3 / 255
    torch.testing.assert_close(out / step, torch.round(out / step), rtol=0, atol=1e-3)
    out.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0, 0]
    assert rounding.ends.grad is not None and rounding.ends.grad.tolist() == [1, 2]


def test_observed_ranges_follow_training_and_stand_still_afterwards() -> None:
    rounding = Rounding(0.0, 1.0, learned=False)
    rounding(torch.tensor([-1.0, 11.0]))
    torch.testing.assert_close(rounding.ends, torch.tensor([-0.01, 1.1]))
    rounding.eval()(torch.tensor([100.0]))
    torch.testing.assert_close(rounding.ends, torch.tensor([-0.01, 1.1]))


@pytest.mark.parametrize(("low", "high"), [(-1.3, 0.9), (0.0, 0.7), (-0.8, 0.0)])
def test_rounding_in_one_pass_is_rounding_in_its_parts(low: float, high: float) -> None:
    x, pull = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 384)
    pull = pull.reshape(x.shape)
    rounding, inputs = Rounding(low, high, learned=True), x.clone().requires_grad_()
    out = rounding(inputs)
    torch.testing.assert_close(out, rounded(x, torch.tensor(low), torch.tensor(high)), rtol=0, atol=1e-6)
    (out * pull).sum().backward()
    step = (high - low) / 255
    level = torch.round(x / step) + round(-low / step)
    below, above = level < 0, level > 255
    assert inputs.grad is not None and rounding.ends.grad is not None
    torch.testing.assert_close(inputs.grad, pull.masked_fill(below | above, 0))
    wanted = torch.stack([pull[below].sum(), pull[above].sum()])
    torch.testing.assert_close(rounding.ends.grad, wanted, rtol=1e-4, atol=1e-4)


def test_fixed_statistics_stay_and_updated_ones_follow_the_batches(digits: data.Dataset) -> None:
    model = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(1, 32, 32), seed=1)
    for choice in ("fixed", "updated"):
        again = ec.compress(model, "qat", data=digits, epochs=1, lr=1e-4, batch_norm=choice).model
        assert torch.equal(again.bn1.running_var, model.bn1.running_var) == (choice == "fixed")
        assert not torch.equal(again.bn1.weight, model.bn1.weight)
        assert not any("forward" in module.__dict__ for module in again.modules())


def test_masks_hold_and_the_model_keeps_its_own_forward(trained: nn.Module) -> None:
    weight = dict(trained.named_parameters())["layer1.0.conv1.weight"].detach()
    assert not weight.reshape(-1)[1::2].any() and weight.reshape(-1)[::2].all()
    assert not any("forward" in module.__dict__ for module in trained.modules())
    assert not any(isinstance(module, Rounding) for module in trained.modules())


@pytest.mark.parametrize("form", ["onnx-int8", "tflite-int8"])
def test_the_file_computes_what_was_trained(
    trained: nn.Module, digits: data.Dataset, tmp_path: Path, form: str
) -> None:
    if form.startswith("tflite"):
        pytest.importorskip("litert_torch")
    artifact = export_artifact(
        trained, form, tmp_path, dataset=digits, activation_type="int8", cache=tmp_path / "cache"
    )
    images = data.normalise(digits.test.images(np.arange(100)), digits.mean, digits.std)
    with torch.no_grad():
        network = simulated(trained, engine="onnxruntime" if form == "onnx-int8" else "litert")
        expected = network(torch.from_numpy(images)).numpy()
    low, high = quantization.get(trained).ranges["linear"]
    got, scale = outputs(tmp_path / artifact.file, images)
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    steps = np.abs(got - expected) / scale
    # Not all: a value on the border of two steps falls to either side with the order of a sum, and 20 layers pass it on.
    assert (steps < 1.01).mean() >= 0.95 and steps.max() < 8


def outputs(path: Path, images: np.ndarray) -> tuple[np.ndarray, float]:
    """The file's outputs by exact integer sums, and the scale of the output."""
    if path.suffix == ".onnx":
        import onnx
        import onnxruntime

        graph = onnx.load(str(path)).graph
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        (last,) = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] == graph.output[0].name]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(str(path), options)
        return session.run(None, {"input": images})[0], float(stored[last.input[1]])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (out_scale, out_zero) = entry["quantization"], exit_["quantization"]
    found = []
    for image in images.transpose(0, 2, 3, 1):
        interpreter.set_tensor(entry["index"], np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8)[None])
        interpreter.invoke()
        found.append((interpreter.get_tensor(exit_["index"])[0].astype(np.float32) - out_zero) * out_scale)
    return np.array(found), float(out_scale)


def test_ranges_survive_a_model_directory(trained: nn.Module, tmp_path: Path) -> None:
    save_model(tmp_path / "m", trained)
    again = quantization.get(load_model(tmp_path / "m")).ranges
    assert dict(again) == quantization.get(trained).ranges


def test_bad_requests_are_refused_in_one_message(digits: data.Dataset) -> None:
    class Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1024, 10)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.layer(x.flatten(1)))

    class Branching(Sigmoid):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))

    before = copy.deepcopy(small_net())
    with pytest.raises(UserError, match="sigmoid"):
        ec.compress(Sigmoid(), "qat", data=digits)
    with pytest.raises(UserError, match="cannot be traced"):
        ec.compress(Branching(), "qat", data=digits)
    with pytest.raises(UserError, match="data"):
        ec.compress(before, "qat")
    with pytest.raises(ValueError, match="method qat"):
        simulated(small_net())


def test_shared_values_and_zeros_hold_and_the_dense_model_can_teach(digits: data.Dataset) -> None:
    steps = [
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "codebook", "values": 8},
        {"method": "qat", "finetune": {"epochs": 1, "lr": 0.02, "distill": {"temperature": 3}}},
    ]
    result = ec.compress(small_net(), steps, data=digits)
    dense, weights = dict(small_net().named_parameters()), dict(result.model.named_parameters())
    assert "codebooks_ended" not in result.report.steps[-1].notes
    assert result.report.steps[-1].notes["distilled"]
    for name in ("conv2.weight", "fc1.weight"):
        values = weights[name].detach().unique()
        assert len(values[values != 0]) <= 8
        assert int((weights[name] == 0).sum()) == round(0.5 * weights[name].numel())
        assert not torch.equal(weights[name], dense[name])


@pytest.mark.parametrize("form", ["onnx-int8", pytest.param("tflite-int8", marks=pytest.mark.slow)])
def test_masks_and_shared_values_reach_the_int8_files(digits: data.Dataset, tmp_path: Path, form: str) -> None:
    """Of equal weights of a channel the file has one integer, and of a zero a zero; its scales are those of channels."""
    if form.startswith("tflite"):
        pytest.importorskip("litert_torch")
    steps = [
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "codebook", "values": 6},
        {"method": "qat", "lr": 0.02},
    ]
    model = ec.compress(small_net(), steps, data=digits).model
    assert (
        set(masks.get(model)) == set(codebooks.get(model)) == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}
    )
    artifact = export_artifact(model, form, tmp_path, dataset=digits, activation_type="int8", cache=tmp_path / "c")
    stored = channels(tmp_path / artifact.file)
    assert artifact.model_zeros is not None and artifact.zeros >= artifact.model_zeros >= artifact.weights // 2
    for name, codes in codebooks.get(model).items():
        integers, shared = stored[name.removesuffix(".weight")], codes.flatten(1).numpy()
        if form.startswith("tflite") and codes.dim() == 4:
            shared = codes.permute(0, 2, 3, 1).flatten(1).numpy()  # channels last, as the file has them
        for row, codes_of_row in zip(integers, shared, strict=True):
            assert not row[codes_of_row == 0].any()
            assert all(len(np.unique(row[codes_of_row == code])) == 1 for code in np.unique(codes_of_row))
            assert len(np.unique(row[row != 0])) <= 6


def test_two_steps_that_say_how_int8_files_are_made_are_refused(digits: data.Dataset) -> None:
    with pytest.raises(UserError, match="method qat after method quantize"):
        ec.compress(small_net(), [{"method": "quantize", "float_layers": "fc2"}, "qat"], data=digits)
    with pytest.raises(UserError, match="method quantize after method qat"):
        ec.compress(
            small_net(), [{"method": "qat", "epochs": 1}, {"method": "quantize", "calibration": "mse"}], data=digits
        )
