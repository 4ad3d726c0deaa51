"""ONNX in int8: ONNX Runtime's static quantisation of the float32 file, in QDQ form.

Weights int8, symmetric, one scale per output channel (or per tensor); activations one scale per tensor, from the true minimum
and maximum over the calibration images unless the step `quantize` chose another rule (histograms.py). The activations' type
is the device's choice and decides the speed: `uint8` on x86 (with int8 activations ONNX Runtime leaves half of the
convolutions there in float), `uint8-reduced` (weights of 7 bits) on x86 without VNNI, `int8` on ARM, `symmetric-int8` (zero
point 0) on GPUs and TensorRT: see `edgecompress/activations.py`. Input and output stay float32, as in `onnx-fp32`. What is
done for layers that stay in float: onnx_float_layers.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import histograms, quantization
from edgecompress.errors import StepFailed
from edgecompress.export import census_onnx, onnx_float_layers, onnx_fp32
from edgecompress.export.contract import ExportContext, check_calibration
from edgecompress.export.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".onnx"
FILE_TYPE = "onnx"
INT8 = True
PACKAGES = ("torch", "onnx", "onnxruntime")

_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Slice", "Pad", "Squeeze", "Unsqueeze")

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
            _quantise(source, prepared, destination, context, model)


def _quantise(source: Path, prepared: Path, destination: Path, context: ExportContext, model: nn.Module) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Shapes must be known and constants folded first: otherwise residual additions stay float.
    quant_pre_process(str(source), str(prepared))
    settings = quantization.get(model)
    quantize_static(
        str(prepared),
        str(destination),
        _Reader(context.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=settings.weights == "channel",
        nodes_to_exclude=_nodes(prepared, settings.float_layers),
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8 if context.activation_type.startswith("uint8") else QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        reduce_range=context.activation_type == "uint8-reduced",
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": context.activation_type == "symmetric-int8",
            "TensorQuantOverrides": _ranges(prepared, context, model),
        },
    )
    if settings.float_layers:
        onnx_float_layers.keep(destination, settings.float_layers, settings.float_precision)


def _nodes(prepared: Path, layers: tuple[str, ...]) -> list[str]:
    """The nodes of the layers that stay in float. StepFailed when the file has none for one of them."""
    import onnx

    if not layers:
        return []
    found: dict[str, list[str]] = {layer: [] for layer in layers}
    for node in census_onnx.graph_nodes(onnx.load(str(prepared), load_external_data=False).graph):
        if node.op_type in census_onnx.LAYERS and census_onnx.layer_name(node) in found:
            found[census_onnx.layer_name(node)].append(node.name)
    lost = [layer for layer, nodes in found.items() if not nodes]
    if lost:
        raise StepFailed(
            f"the layers {', '.join(lost)} are to stay in float, and have no node of their own in the file"
        )
    return [name for nodes in found.values() for name in nodes]


def _ranges(prepared: Path, context: ExportContext, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Tensor name → its range, for `quantize_static`; empty where that finds the same range (minimum and maximum) itself."""
    settings = quantization.get(model)
    ranges: dict[str, tuple[float, float]] = {}
    if settings.calibration != "minmax":
        symmetric = context.activation_type == "symmetric-int8"
        kept = histograms.collect(lambda: _activations(prepared, context.calibration))
        ranges = {
            name: histograms.covered(histogram, settings, symmetric=symmetric) for name, histogram in kept.items()
        }
    if settings.ranges:
        from edgecompress.export import trained_ranges

        trained = trained_ranges.of_tensors(
            model, settings.ranges, context.calibration, lambda images: _activations(prepared, images), nhwc=False
        )
        ranges |= _handed_on(prepared, trained)
    return {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in ranges.items()
        if high > low
    }


def _handed_on(prepared: Path, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges, and those of the tensors that a node makes by only moving values: the same, so that nothing rounds twice."""
    import onnx

    known = dict(ranges)
    for node in onnx.load(str(prepared), load_external_data=False).graph.node:
        if node.op_type in _MOVES and node.input[0] in known:
            known.setdefault(node.output[0], known[node.input[0]])
    return known


def _activations(prepared: Path, images: np.ndarray) -> Iterable[dict[str, np.ndarray]]:
    """Every float tensor that a node of the file makes, and the input, batch by batch."""
    import onnx
    import onnxruntime

    model = onnx.load(str(prepared))
    known = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    present = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            value = known.get(name)
            if value is not None and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and name not in present:
                model.graph.output.append(value)
                present.add(name)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [item.name for item in session.get_outputs()]
    reader = _Reader(images)
    while (batch := reader.get_next()) is not None:
        yield {**batch, **dict(zip(wanted, session.run(wanted, batch), strict=True))}


class _Reader:
    """Calibration images in batches, as `onnxruntime.quantization.CalibrationDataReader` asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        size = max(1, min(32, _BATCH_ELEMENTS // int(images[0].size)))
        self._batches: Iterator[np.ndarray] = iter([images[k : k + size] for k in range(0, len(images), size)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}
