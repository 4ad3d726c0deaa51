"""TFLite in int8: ai-edge-quantizer's static quantisation of the float32 file.

Weights int8, symmetric, one scale per output channel (or per tensor); activations int8 from the true minimum and
maximum over the calibration images, unless the step `quantize` chose another rule (histograms.py); int8 input and output,
(1, H, W, C) and (1, classes), with their scales in the file. Layers that stay in float may have their weights stored as
float16, with a DEQUANTIZE to float32 before the layer, as TFLite's own float16 quantisation does. Needs the extra `tflite`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import histograms, quantization
from edgecompress.errors import StepFailed
from edgecompress.export import census_tflite, tflite_fp32
from edgecompress.export.contract import ExportContext, check_calibration, check_installed
from edgecompress.export.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".tflite"
FILE_TYPE = "tflite"
INT8 = True
PACKAGES = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")


_PADDING = 3e38
"""Values from here on are padding, not data (the quantizer's own limit)."""


def export(model: nn.Module, destination: Path, context: ExportContext) -> None:
    """Write `model` to `destination`, calibrated on `context.calibration`. UserError when those images do not fit."""
    check_installed("tflite-int8")
    check_calibration(context)
    context.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.cache) as scratch:
        source = Path(scratch) / "float.tflite"
        tflite_fp32.export(model, source, context)
        with quiet():
            quantise(source, destination, context.calibration, model)


def quantise(
    source: Path,
    destination: Path,
    calibration: np.ndarray,
    model: nn.Module | None = None,
) -> None:
    """Quantise the float .tflite `source` (one input, NHWC) with float32 NCHW calibration images.

    model: the network that the file was made of, for its settings; None: default settings.
    """
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName as Operation

    settings = quantization.DEFAULT if model is None else quantization.get(model)
    recipe = recipe_manager.RecipeManager()
    tensorwise = {"weight_granularity": qtyping.QuantGranularity.TENSORWISE} if settings.weights == "tensor" else {}
    recipe.add_static_config(
        regex=".*",
        operation_name=Operation.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        algorithm_key=AlgorithmName.MIN_MAX_UNIFORM_QUANT,
        **tensorwise,
    )
    if settings.float_precision == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        left = {"algorithm_key": AlgorithmName.FLOAT_CASTING,
                "op_config": qtyping.OpQuantizationConfig(weight_tensor_config=half)}  # fmt: skip
    else:
        left = {"algorithm_key": AlgorithmName.NO_QUANTIZE}
    for scope in _scopes(source, settings.float_layers):
        for operation in (Operation.CONV_2D, Operation.DEPTHWISE_CONV_2D, Operation.FULLY_CONNECTED,
                          Operation.CONV_2D_TRANSPOSE):  # fmt: skip
            recipe.add_quantization_config(scope, operation, **left)
        recipe.add_quantization_config(scope, Operation.BATCH_MATMUL, algorithm_key=AlgorithmName.NO_QUANTIZE)
    work = quantizer.Quantizer(str(source), recipe.get_quantization_recipe())
    found = ranges(source, calibration, work)
    if settings.calibration != "minmax":
        kept = histograms.collect(lambda: _activations(source, calibration, set(found)))
        _put(found, {name: histograms.covered(histogram, settings) for name, histogram in kept.items()})
    if model is not None and settings.ranges:
        from edgecompress.export import trained_ranges

        trained = trained_ranges.of_tensors(
            model, settings.ranges, calibration, lambda images: _activations(source, images, set(found)), nhwc=True
        )
        _put(found, trained)
    work.quantize(found).export_model(str(destination), overwrite=True)


def _scopes(source: Path, layers: tuple[str, ...]) -> list[str]:
    """For each layer that stays in float, a pattern that the quantizer finds its operators by (the names of their outputs).

    StepFailed when the file has no operator for one of them.
    """
    if not layers:
        return []
    model, schema, _ = census_tflite.read_model(source)
    builtin = census_tflite.builtin_names(schema)
    found: dict[str, list[str]] = {layer: [] for layer in layers}
    for graph in model.subgraphs:
        for operator in graph.operators:
            if (
                census_tflite.operator_name(model.operatorCodes[operator.opcodeIndex], builtin)
                not in census_tflite.LAYERS
            ):
                continue
            output = graph.tensors[operator.outputs[0]].name
            name = census_tflite.layer_name(graph.tensors[operator.inputs[1]].name, output)
            if name in found:
                found[name].append(f"^{re.escape(output.decode())}")
    lost = [layer for layer, scopes in found.items() if not scopes]
    if lost:
        raise StepFailed(
            f"the layers {', '.join(lost)} are to stay in float, and have no operator of their own in the file"
        )
    return [scope for scopes in found.values() for scope in scopes]


def _put(found: dict[str, dict[str, np.ndarray]], ranges: dict[str, tuple[float, float]]) -> None:
    """Replace the ranges of some tensors, in the shapes that the quantizer gave them."""
    for name, (low, high) in ranges.items():
        if high > low:
            shape = np.asarray(found[name]["min"]).shape
            found[name] = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}


def _activations(source: Path, calibration: np.ndarray, wanted: set[str]) -> Iterable[dict[str, np.ndarray]]:
    """The tensors named in `wanted` that change from image to image, one image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(source), num_threads=2, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    model, _, _ = census_tflite.read_model(source)
    made = {int(index) for operator in model.subgraphs[0].operators for index in operator.outputs}
    entry = int(interpreter.get_input_details()[0]["index"])
    tensors = {t["name"]: t["index"] for t in interpreter.get_tensor_details() if t["index"] in made | {entry}}
    tensors = {name: index for name, index in tensors.items() if name in wanted}
    for image in np.ascontiguousarray(calibration.transpose(0, 2, 3, 1)):
        interpreter.set_tensor(entry, image[None])
        interpreter.invoke()
        yield {name: interpreter.get_tensor(index) for name, index in tensors.items()}


def ranges(source: Path, calibration: np.ndarray, work: Any) -> dict[str, dict[str, np.ndarray]]:
    """Tensor name → {"min", "max"} over the calibration images, for the recipe of the Quantizer `work`.

    Not `work.calibrate`: that takes a moving average of each image's minimum and maximum (0.95 of the old), which clips, and
    costs six times the error on a ResNet-20. `_recipe_manager` is private: the quantizer's version is pinned, and
    tests/unit/test_export_tflite.py would notice.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode

    # The engine's own profiler sees the same ranges 2 to 6 times faster, but counts the lowest number or -inf that pads a
    # max-pooling; the other mode looks at the tensors from Python and leaves such values out.
    found = _ranges(source, calibration, work, CalibrationMode.CALIBRATION_PROFILER_BASED)
    if all((np.abs(value) < _PADDING).all() for item in found.values() for value in item.values()):
        return found
    return _ranges(source, calibration, work, CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS)


def _ranges(source: Path, calibration: np.ndarray, work: Any, mode: Any) -> dict[str, dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.utils import qsv_utils

    signatures = Interpreter(model_path=str(source)).get_signature_list()
    signature, tensors = next(iter(signatures.items()))
    (name,) = tensors["inputs"]
    images = np.ascontiguousarray(calibration.transpose(0, 2, 3, 1))
    calibrator = Calibrator(str(source), num_threads=2, mode=mode, qsv_update_func=qsv_utils.min_max_update)
    calibrator.calibrate({signature: [{name: image[None]} for image in images]}, work._recipe_manager)
    return {
        tensor: {key: np.asarray(value, np.float32) for key, value in item.items()}
        for tensor, item in calibrator.get_model_qsvs().items()
    }
