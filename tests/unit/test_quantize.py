"""Quantisation after training: what the step changes, what the exporters make of its settings, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgecompress as ec
from edgecompress import data, quantization
from edgecompress.compress.quantize import equalisation
from edgecompress.compress.quantize.bias import batch_norms
from edgecompress.compress.quantize.rounding import rounded, rounded_weight
from edgecompress.errors import UserError
from edgecompress.export import census
from edgecompress.export.contract import export_artifact
from edgecompress.models import build
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.study import ModelSpec
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    torch.set_num_threads(1)
    return few_digits()


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[2] *= 50
        model[1].running_var.uniform_(0.5, 2)
        model[1].bias.uniform_(-1, 1)
    return model.eval()


def test_equalisation_keeps_the_function_and_evens_the_ranges() -> None:
    model = chain()
    images = torch.randn(4, 1, 8, 8)
    before = model(images)
    assert equalisation.equalise(model) == 2  # 0 → 3 (depth-wise) and 3 → 5; the flatten ends the chain
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    gain = (model[1].weight / torch.sqrt(model[1].running_var + model[1].eps)).abs()
    first = model[0].weight.abs().amax((1, 2, 3)) * gain
    torch.testing.assert_close(first, model[3].weight.abs().amax((1, 2, 3)), rtol=0.02, atol=0)
    torch.testing.assert_close(
        model[3].weight.abs().amax((1, 2, 3)), model[5].weight.abs().amax((0, 2, 3)), rtol=0.02, atol=0
    )


def test_a_branch_or_another_activation_is_no_pair() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return self.b(x) + x

    assert equalisation.equalise(Branched()) == 0
    assert equalisation.equalise(nn.Sequential(nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 3))) == 0


def test_bias_correction_takes_out_the_mean_error(digits: data.Dataset) -> None:
    model = small_net().eval()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}
    images = torch.from_numpy(data.calibration_images(digits))
    exact = model(images).detach()

    def shift(net: nn.Module) -> float:
        coarse = copy.deepcopy(net)
        for layer in (coarse.conv1, coarse.conv2, coarse.fc1, coarse.fc2):
            layer.weight.data = rounded_weight(layer, 7, "tensor")
        return float((coarse(images).detach() - exact).mean(0).abs().mean())

    before = shift(model)
    corrected = ec.compress(model, "quantize", data=digits, correct_bias=True, weights="tensor", weight_bits=7)
    assert corrected.report.steps[0].notes["corrected_layers"] == ["conv1", "conv2", "fc1", "fc2"]
    assert shift(corrected.model) < before / 100
    for name, weight in weights.items():  # the weights themselves are rounded by the export only
        assert torch.equal(dict(corrected.model.named_parameters())[name], weight)


def test_a_batch_norm_is_found_by_the_tensor_that_it_takes() -> None:
    model = small_net().eval()
    found = batch_norms(model, torch.zeros(1, 1, 32, 32))
    assert found == {"conv1": model.bn1, "conv2": model.bn2}


def test_rounding_leaves_whole_steps() -> None:
    layer = nn.Conv2d(3, 5, 3)
    weight = rounded_weight(layer, 8, "channel")
    step = layer.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    assert torch.allclose(weight / step, torch.round(weight / step), atol=1e-4)
    assert float((weight - layer.weight.detach()).abs().max()) <= float(step.max()) / 2 + 1e-7
    values = torch.tensor([-1.0, -0.001, 0.0, 0.5, 3.0, 9.0])
    assert torch.equal(rounded(values, torch.tensor(0.0), torch.tensor(3.0))[[0, 2, 5]], torch.tensor([0.0, 0.0, 3.0]))


@pytest.mark.parametrize("form", ["onnx-int8", "tflite-int8"])
def test_layers_that_stay_in_float_do_and_no_others(digits: data.Dataset, tmp_path: Path, form: str) -> None:
    if form.startswith("tflite"):
        pytest.importorskip("litert_torch")
    model = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(1, 32, 32), seed=1)
    wanted = ["layer2.1.conv2", "linear"]
    model = ec.compress(
        model, "quantize", data=digits, float_layers=["layer2.1.conv2", "lin*"], calibration="mse"
    ).model
    artifact = export_artifact(model, form, tmp_path, dataset=digits, activation_type="uint8", cache=tmp_path / "cache")
    assert list(census.count(tmp_path / artifact.file).float_layers) == wanted
    assert not any("in float" in warning for warning in artifact.warnings)


@pytest.mark.parametrize("rule", ["percentile", "mse", "entropy"])
def test_the_rule_of_calibration_reaches_the_file(digits: data.Dataset, tmp_path: Path, rule: str) -> None:
    scales = {}
    for name in ("minmax", rule):
        model = ec.compress(small_net(), "quantize", data=digits, calibration=name, percentile=95.0).model
        artifact = export_artifact(
            model, "onnx-int8", tmp_path / name, dataset=digits, activation_type="int8", cache=tmp_path / "cache"
        )
        scales[name] = activation_scales(tmp_path / name / artifact.file)
    assert scales["minmax"].keys() == scales[rule].keys()
    narrower = [scales[rule][t] < scales["minmax"][t] * 0.999 for t in scales[rule]]
    assert any(narrower)
    assert all(scales[rule][t] <= scales["minmax"][t] * 1.001 for t in scales[rule])


def activation_scales(path: Path) -> dict[str, float]:
    import onnx

    graph = onnx.load(str(path)).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {
        node.input[0]: float(stored[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored
    }


def test_one_scale_per_tensor_reaches_the_file(digits: data.Dataset, tmp_path: Path) -> None:
    import onnx

    model = ec.compress(small_net(), "quantize", data=digits, weights="tensor").model
    artifact = export_artifact(
        model, "onnx-int8", tmp_path, dataset=digits, activation_type="int8", cache=tmp_path / "cache"
    )
    graph = onnx.load(str(tmp_path / artifact.file)).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    scale_of = {n.output[0]: stored[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear"}
    scales = [scale_of[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [scale.size for scale in scales] == [1, 1, 1, 1]


def test_the_most_sensitive_layers_stay_in_float(digits: data.Dataset) -> None:
    model = small_net()
    with torch.no_grad():
        model.fc1.weight[0, 0] = 400.0  # its tensor's scale leaves the other weights a handful of steps
    result = ec.compress(model, "quantize", data=digits, float_worst=1, weights="tensor")
    assert quantization.get(result.model).float_layers == ("fc1",)
    effects = result.report.steps[0].notes["effect_of_each_layer"]
    assert set(effects) == {"conv1", "conv2", "fc1", "fc2"} and max(effects, key=effects.__getitem__) == "fc1"


def test_settings_survive_a_model_directory(digits: data.Dataset, tmp_path: Path) -> None:
    model = build(ModelSpec(name="lenet5"), num_classes=10, in_shape=(1, 32, 32))
    model = ec.compress(model, "quantize", data=digits, calibration="entropy", float_layers="fc1").model
    save_model(tmp_path / "m", model)
    settings = quantization.Quantization("entropy", float_layers=("fc1",))
    assert quantization.get(load_model(tmp_path / "m")) == settings == quantization.get(copy.deepcopy(model))


def test_bad_requests_are_refused_in_one_message(digits: data.Dataset) -> None:
    with pytest.raises(UserError, match=r"float_layers: 'cnv1' matches no"):
        ec.compress(small_net(), "quantize", data=digits, float_layers="cnv1")
    with pytest.raises(UserError, match="float_worst: 4 leaves no layer"):
        ec.compress(small_net(), "quantize", data=digits, float_worst=4)
    with pytest.raises(UserError, match="data"):
        ec.compress(small_net(), "quantize", correct_bias=True)
    with pytest.raises(UserError, match="percentile"):
        ec.compress(small_net(), "quantize", data=digits, percentile=30)
    with pytest.raises(UserError, match="calibration"):
        ec.compress(small_net(), "quantize", data=digits, calibration="median")
