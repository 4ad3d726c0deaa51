"""ONNX files: what is in them, what ONNX Runtime makes of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompress import data, masks
from edgecompress.errors import StepFailed, UserError
from edgecompress.export import census, onnx_int8
from edgecompress.export.census_onnx import as_run
from edgecompress.export.contract import ExportContext, export_artifact
from edgecompress.models import build
from edgecompress.records import Artifact
from edgecompress.study import DataSpec, ModelSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.heavy

SHAPE = (1, 32, 32)
Export = Callable[..., tuple[Artifact, Path]]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load(DataSpec(name="digits", calibration_images=48), seed=0)


def resnet() -> torch.nn.Module:
    return build(ModelSpec(name="resnet20", width=0.5), num_classes=10, in_shape=SHAPE, seed=1).eval()


@pytest.fixture
def export(digits: data.Dataset, tmp_path: Path) -> Export:
    def run(model: torch.nn.Module, form: str, activations: str = "uint8") -> tuple[Artifact, Path]:
        artifact = export_artifact(
            model, form, tmp_path / "out", dataset=digits, activation_type=activations, cache=tmp_path / "cache"
        )
        return artifact, tmp_path / "out" / artifact.file

    return run


class Sliced(torch.nn.Module):
    """A small network whose forward is given."""

    def __init__(self, forward: Callable[..., object]) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.linear = torch.nn.Linear(4, 10)
        self.ending = forward

    def forward(self, x: torch.Tensor) -> object:
        return self.ending(self, self.conv(x).mean((2, 3)), x)


def test_float_file_has_a_free_batch_and_no_batch_norm(export: Export) -> None:
    import onnxruntime

    model = resnet()
    artifact, path = export(model, "onnx-fp32")
    assert artifact.operators["Conv"] == 19
    assert "BatchNormalization" not in artifact.operators
    assert artifact.input_shape == (-1, 1, 32, 32)
    assert artifact.activation_type is None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for size in (1, 5):
        x = torch.randn(size, *SHAPE)
        (got,) = session.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(got, model(x).detach().numpy(), atol=1e-4)


def test_layers_are_counted_and_named_as_in_torch(export: Export) -> None:
    model = resnet()
    artifact, path = export(model, "onnx-fp32")
    named = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    assert set(census.count(path).float_layers) == named
    assert artifact.weights == sum(p.numel() for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("activations", ["uint8", "uint8-reduced", "int8", "symmetric-int8"])
def test_int8_file_runs_in_integers(export: Export, activations: str) -> None:
    artifact, path = export(resnet(), "onnx-int8", activations)
    assert artifact.file == f"onnx-int8-{activations}.onnx"
    assert artifact.activation_type == activations
    assert census.count(path).float_layers == ()
    assert not [w for w in artifact.warnings if "in float" in w]
    run = as_run(path, int8_activations=not activations.startswith("uint8"))
    assert run.float_layers == ()
    assert (run.operators["QLinearConv"], run.operators["QGemm"], run.operators["QLinearAdd"]) == (19, 1, 9)
    assert not {"Conv", "Gemm", "Add"} & set(run.operators)


def test_int8_activations_are_half_float_on_x86(export: Export) -> None:
    """Why the type is a choice of the device profile."""
    _, path = export(resnet(), "onnx-int8", "int8")
    assert len(as_run(path, int8_activations=False).float_layers) > 5


def test_symmetric_activations_have_zero_points_of_zero(export: Export) -> None:
    import onnx

    points = {}
    for activations in ("int8", "symmetric-int8"):
        _, path = export(resnet(), "onnx-int8", activations)
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        points[activations] = [int(v) for n, v in tensors.items() if n.endswith("zero_point") and v.ndim == 0]
    assert set(points["symmetric-int8"]) == {0}
    assert len(set(points["int8"])) > 1


def test_reduced_weights_have_seven_bits(export: Export) -> None:
    """Two products of 8 and 7 bits fit into 16: no sum saturates on x86 without VNNI."""
    import onnx

    largest = {}
    for activations in ("uint8", "uint8-reduced"):
        _, path = export(resnet(), "onnx-int8", activations)
        tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
        largest[activations] = max(int(abs(t.astype(int)).max()) for t in tensors if t.dtype == "int8" and t.ndim > 1)
    assert largest == {"uint8": 127, "uint8-reduced": 64}


def test_a_real_file_with_a_float_convolution_is_refused_by_name(
    export: Export, digits: data.Dataset, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, path = export(resnet(), "onnx-fp32")
    quant_pre_process(str(path), str(tmp_path / "prepared.onnx"))
    quantize_static(
        str(tmp_path / "prepared.onnx"),
        str(tmp_path / "mixed.onnx"),
        onnx_int8._Reader(data.calibration_images(digits)[:8]),
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=["/layer2/layer2.1/conv1/Conv"],
    )
    counted = census.count(tmp_path / "mixed.onnx")
    assert counted.float_layers == ("layer2.1.conv1",)
    with pytest.raises(StepFailed, match=r"in float in: layer2\.1\.conv1; it is not an int8 file"):
        census.refuse_float_layers(counted, "onnx-int8")


def test_masked_weights_stay_zero_and_the_model_is_left_alone(export: Export) -> None:
    model = resnet().train()
    generator = torch.Generator().manual_seed(0)
    chosen = {n: torch.rand(p.shape, generator=generator) > 0.7 for n, p in model.named_parameters() if p.ndim > 1}
    masks.put(model, chosen)
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    float_artifact, _ = export(model, "onnx-fp32")
    assert float_artifact.zeros == zeros
    int8_artifact, _ = export(model, "onnx-int8")
    assert int8_artifact.weights == float_artifact.weights
    assert zeros <= int8_artifact.zeros < 0.9 * int8_artifact.weights
    assert int8_artifact.packed_bytes < int8_artifact.file_bytes
    assert model.training
    assert set(masks.get(model)) == set(chosen)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_float_conversion_is_shared_until_the_weights_change(export: Export, tmp_path: Path) -> None:
    model = resnet()
    export(model, "onnx-fp32")
    export(model, "onnx-int8")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with torch.no_grad():
        model.linear.weight[0, 0] += 1
    export(model, "onnx-fp32")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (lambda net, y, x: (net.linear(y), y), "returns a tuple; a model that is exported returns one tensor"),
        (lambda net, y, x: net.linear(y)[:, :9], r"returns shape \(32, 9\) for 32 images; \(32, 10\) is needed"),
        (lambda net, y, x: net.linear(y)[y.sum(1) > y.sum(1).mean()], r"returns shape .* is needed"),
        (lambda net, y, x: net.linear(y) * float("nan"), "gives NaN or infinity on"),
        (lambda net, y, x: net.linear(torch.special.i1e(y)), "cannot be exported to onnx-fp32: .*i1e"),
        (lambda net, y, x: net.linear(y) * (2 if x.abs().sum() > 0 else 1), "is not the model: a logit differs"),
    ],
    ids=["tuple", "classes", "dynamic", "nan", "operator", "branch"],
)
def test_models_that_cannot_be_exported_say_why_and_leave_no_file(
    export: Export, tmp_path: Path, ending: Callable[..., object], message: str
) -> None:
    with pytest.raises(StepFailed, match=message):
        export(Sliced(ending), "onnx-fp32")
    assert list((tmp_path / "out").iterdir()) == []


def test_unfit_calibration_stops_before_the_conversion(tmp_path: Path) -> None:
    context = ExportContext(SHAPE, np.full((4, *SHAPE), np.nan, np.float32), "uint8", tmp_path / "cache")
    with pytest.raises(UserError, match="NaN"):
        onnx_int8.export(resnet(), tmp_path / "x.onnx", context)
    assert not (tmp_path / "cache").exists()
