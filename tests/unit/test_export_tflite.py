"""TFLite files: types, the calibration trap, refusals, and what happens without the extra."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from edgecompress import data
from edgecompress.errors import StepFailed
from edgecompress.export import census, parity, tflite_fp32, tflite_int8
from edgecompress.export.contract import ExportContext
from edgecompress.models import build
from edgecompress.study import DataSpec, ModelSpec

torch = pytest.importorskip("torch")
pytest.importorskip("litert_torch")
pytestmark = pytest.mark.heavy

SHAPE = (1, 32, 32)


class Pooled(torch.nn.Module):
    """A stem like ResNet-18's: the max-pooling is padded with the lowest number there is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(3, 2, padding=1)
        self.stage = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1))
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stage(self.pool(self.conv1(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def calibration() -> np.ndarray:
    return data.calibration_images(data.load(DataSpec(name="digits", calibration_images=48), seed=0))


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    return build(ModelSpec(name="resnet20", width=0.5), num_classes=10, in_shape=SHAPE, seed=1).eval()


def converted(model: torch.nn.Module, folder: Path, calibration: np.ndarray) -> Path:
    path = folder / "float.tflite"
    tflite_fp32.export(model, path, ExportContext(SHAPE, calibration, "int8", folder / "cache"))
    return path


@pytest.fixture(scope="module")
def resnet_file(resnet: torch.nn.Module, calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(resnet, tmp_path_factory.mktemp("resnet"), calibration)


@pytest.fixture(scope="module")
def pooled_file(calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return converted(Pooled().eval(), tmp_path_factory.mktemp("pooled"), calibration)


def quantizer_of(path: Path) -> object:
    from ai_edge_quantizer import quantizer, recipe

    return quantizer.Quantizer(str(path), recipe.static_wi8_ai8())


def test_float_file_is_channels_last_without_transposition(resnet: torch.nn.Module, resnet_file: Path) -> None:
    counted = census.count(resnet_file)
    assert counted.input_shape == (1, 32, 32, 1)
    assert (counted.input_dtype, counted.output_dtype) == ("float32", "float32")
    assert "TRANSPOSE" not in counted.operators
    assert {"MUL", "RELU"} & set(counted.operators) == set()  # batch norm and ReLU are inside the convolutions
    named = {n for n, m in resnet.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    assert set(counted.float_layers) == named
    assert counted.weights == sum(p.numel() for p in resnet.parameters() if p.ndim > 1)


def test_int8_file_is_int8_from_end_to_end(resnet_file: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    tflite_int8.quantise(resnet_file, tmp_path / "int8.tflite", calibration)
    counted = census.count(tmp_path / "int8.tflite")
    assert (counted.input_dtype, counted.output_dtype) == ("int8", "int8")
    assert counted.float_layers == ()
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(counted.operators)
    assert counted.weights == census.count(resnet_file).weights
    census.refuse_float_layers(counted, "tflite-int8")


def test_calibration_is_the_true_range_and_not_a_moving_average(
    resnet: torch.nn.Module, resnet_file: Path, calibration: np.ndarray, tmp_path: Path
) -> None:
    """The quantizer's own calibration clips; ours must stay well below its error, and see the input's exact range."""
    reference = parity.torch_logits(resnet, calibration, classes=10)
    work = quantizer_of(resnet_file)
    images = [{"args_0": image[None]} for image in calibration.transpose(0, 2, 3, 1)]
    work.quantize(work.calibrate({"serving_default": images})).export_model(str(tmp_path / "moving.tflite"))
    tflite_int8.quantise(resnet_file, tmp_path / "true.tflite", calibration)
    errors = {
        name: np.abs(parity.file_logits(tmp_path / f"{name}.tflite", calibration) - reference).mean()
        for name in ("moving", "true")
    }
    assert errors["true"] < 0.7 * errors["moving"]
    found = tflite_int8.ranges(resnet_file, calibration, quantizer_of(resnet_file))
    source = found["serving_default_args_0"]
    assert float(source["min"].ravel()[0]) == calibration.min()
    assert float(source["max"].ravel()[0]) == calibration.max()


def test_the_fast_calibration_sees_what_the_slow_one_sees(resnet_file: Path, calibration: np.ndarray) -> None:
    from ai_edge_quantizer.calibrator import CalibrationMode

    fast, slow = (
        tflite_int8._ranges(resnet_file, calibration, quantizer_of(resnet_file), mode)
        for mode in (CalibrationMode.CALIBRATION_PROFILER_BASED, CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS)
    )
    assert set(fast) == set(slow)
    for name, item in slow.items():
        for key, value in item.items():
            np.testing.assert_allclose(fast[name][key].ravel(), value.ravel(), rtol=1e-6, err_msg=name)


def test_the_padding_of_a_max_pooling_is_no_data(pooled_file: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    from ai_edge_quantizer.calibrator import CalibrationMode

    mode = CalibrationMode.CALIBRATION_PROFILER_BASED
    naive = tflite_int8._ranges(pooled_file, calibration, quantizer_of(pooled_file), mode)
    assert min(float(item["min"].min()) for item in naive.values()) < -1e38  # the trap is real
    found = tflite_int8.ranges(pooled_file, calibration, quantizer_of(pooled_file))
    assert all(np.abs(value).max() < 1e3 for item in found.values() for value in item.values())
    tflite_int8.quantise(pooled_file, tmp_path / "int8.tflite", calibration)
    reference = parity.file_logits(pooled_file, calibration)
    record = parity.compare(reference, parity.file_logits(tmp_path / "int8.tflite", calibration), int8=True)
    assert record.mean_abs_diff < 0.1 * np.abs(reference).mean()


def test_a_real_file_with_a_float_convolution_is_refused_by_name(
    pooled_file: Path, calibration: np.ndarray, tmp_path: Path
) -> None:
    from ai_edge_quantizer import qtyping

    work = quantizer_of(pooled_file)
    work.update_quantization_recipe(
        regex=r".*Sequential_stage/torch\.nn\.modules\.conv\.Conv2d_2.*",
        operation_name=qtyping.TFLOperationName.CONV_2D,
        algorithm_key="no_quantize",
    )
    work.quantize(tflite_int8.ranges(pooled_file, calibration, work)).export_model(str(tmp_path / "mixed.tflite"))
    counted = census.count(tmp_path / "mixed.tflite")
    assert counted.float_layers == ("stage.2",)
    with pytest.raises(StepFailed, match=r"in float in: stage\.2; it is not an int8 file"):
        census.refuse_float_layers(counted, "tflite-int8")


def test_float_input_is_refused(pooled_file: Path) -> None:
    counted = census.count(pooled_file)
    without_layers = census.Census(**{**vars(counted), "float_layers": ()})
    with pytest.raises(StepFailed, match="float32 input and float32 output instead of int8"):
        census.refuse_float_layers(without_layers, "tflite-int8")


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path) -> None:
    """A real environment without it: this one's packages by links, less those of the extra."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("litert_torch", "ai_edge_", "__editable__", "edgecompress")):
            (packages / entry.name).symlink_to(entry)
    root = Path(tflite_fp32.__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'device_agents')!r}, {str(packages)!r}]\n"
        "from pathlib import Path\n"
        "from edgecompress.errors import UserError\n"
        "from edgecompress.export import census, contract, tflite_fp32\n"
        "print(contract.available_formats())\n"
        "for call in (lambda: tflite_fp32.export(None, None, None), lambda: census.count(Path('x.tflite'))):\n"
        "    try: call()\n"
        "    except UserError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "['onnx-fp32', 'onnx-int8']",
        "the format tflite-fp32 needs litert-torch, ai-edge-litert, which is not installed",
        "  pip install 'edgecompress[tflite]'",
        "reading a .tflite file needs ai-edge-litert, which is not installed",
        "  pip install 'edgecompress[tflite]'",
    ]
