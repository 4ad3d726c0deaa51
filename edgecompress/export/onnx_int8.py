"""ONNX in int8: ONNX Runtime's static quantisation of the float32 file, in QDQ form.

Weights int8, symmetric, one scale per output channel; activations one scale per tensor from the true minimum and maximum
over the calibration images. The activations' type is the device's choice and decides the speed: `uint8` on x86 (with int8
activations ONNX Runtime leaves half of the convolutions there in float), `uint8-reduced` (weights of 7 bits) on x86 without
VNNI, `int8` on ARM, `symmetric-int8` (zero point 0) on GPUs and TensorRT: see `edgecompress/activations.py`. Input and output
stay float32, as in `onnx-fp32`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.export import onnx_fp32
from edgecompress.export.contract import ExportContext, check_calibration
from edgecompress.export.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".onnx"
FILE_TYPE = "onnx"
INT8 = True
PACKAGES = ("torch", "onnx", "onnxruntime")

_BATCH_ELEMENTS = 2_000_000
"""Input elements that calibration runs at a time: 8 MB of float32, some hundred MB of activations."""


def export(model: nn.Module, destination: Path, context: ExportContext) -> None:
    """Write `model` to `destination`, calibrated on `context.calibration`. UserError when those images do not fit."""
    check_calibration(context)
    context.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.cache) as scratch:
        source, prepared = Path(scratch) / "float.onnx", Path(scratch) / "prepared.onnx"
        onnx_fp32.export(model, source, context)
        with quiet():
            _quantise(source, prepared, destination, context)


def _quantise(source: Path, prepared: Path, destination: Path, context: ExportContext) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Shapes must be known and constants folded first: otherwise residual additions stay float.
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(destination),
        _Reader(context.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8 if context.activation_type.startswith("uint8") else QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        reduce_range=context.activation_type == "uint8-reduced",
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": context.activation_type == "symmetric-int8",
        },
    )


class _Reader:
    """Calibration images in batches, as `onnxruntime.quantization.CalibrationDataReader` asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        size = max(1, min(32, _BATCH_ELEMENTS // int(images[0].size)))
        self._batches: Iterator[np.ndarray] = iter([images[k : k + size] for k in range(0, len(images), size)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}
