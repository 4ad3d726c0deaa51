"""TFLite in int8: ai-edge-quantizer's static quantisation of the float32 file.

Weights int8, symmetric, one scale per output channel; activations int8 from the true minimum and maximum over the
calibration images; int8 input and output, (1, H, W, C) and (1, classes), with their scales in the file. Needs the extra
`tflite`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.export import tflite_fp32
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
            quantise(source, destination, context.calibration)


def quantise(source: Path, destination: Path, calibration: np.ndarray) -> None:
    """Quantise the float .tflite `source` (one input, NHWC) with float32 NCHW calibration images."""
    from ai_edge_quantizer import quantizer, recipe

    work = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    work.quantize(ranges(source, calibration, work)).export_model(str(destination), overwrite=True)


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
