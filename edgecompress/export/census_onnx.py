"""The census of an .onnx file, and of what ONNX Runtime makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.errors import UserError
from edgecompress.export.census import Census, denormals_of, unique, zeros_of

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER_LAYERS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}
"""Operator → which input holds the weights."""

_FUSED_LAYERS = ("FusedConv", "FusedGemm", "FusedMatMul")
"""ONNX Runtime's own names for a float layer with its activation."""

_VIEWS = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity", "Reshape")
"""What may stand between a stored weight and its layer."""


def count_onnx(path: Path) -> Census:
    """The census of an .onnx file. UserError when it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"cannot be read as ONNX: {error}", where=str(path), fix="Give a whole .onnx file.") from None
    graph = model.graph
    if not graph.input or not graph.output:
        raise UserError("has no input or no output", where=str(path), fix="Give an .onnx file of a network.")
    nodes = list(graph_nodes(graph))
    constants = Constants(graph, nodes)
    float_layers: list[str] = []
    float16_layers: list[str] = []
    seen: set[str] = set()
    weights = zeros = denormals = 0
    for node in nodes:
        index = 1 if node.op_type in LAYERS else _INTEGER_LAYERS.get(node.op_type)
        if index is None:
            continue
        stored = constants.stored(node.input[index])
        if node.op_type in LAYERS and not constants.dequantised(node):
            float_layers.append(layer_name(node))
            if stored is not None and constants.is_float16(stored):
                float16_layers.append(layer_name(node))
        if stored is not None and stored not in seen:
            seen.add(stored)
            values, zero_points, axis = constants.weight(node.input[index], node, index)
            weights += values.size
            zeros += zeros_of(values, zero_points, axis)
            denormals += denormals_of(values)
    initialised = {tensor.name for tensor in graph.initializer}
    source = next((i for i in graph.input if i.name not in initialised), graph.input[0]).type.tensor_type
    return Census(
        operators=dict(sorted(Counter(node.op_type for node in nodes).items())),
        float_layers=unique(float_layers),
        weights=weights,
        zeros=zeros,
        input_shape=tuple(d.dim_value if d.HasField("dim_value") else -1 for d in source.shape.dim),
        input_dtype=_type_name(source.elem_type),
        output_dtype=_type_name(graph.output[0].type.tensor_type.elem_type),
        denormals=denormals,
        float16_layers=unique(float16_layers),
    )


@dataclass(frozen=True)
class AsRun:
    """What ONNX Runtime executes once it has optimised a graph: operators type → count, and the layers it does in float."""

    operators: dict[str, int]
    float_layers: tuple[str, ...]


def as_run(path: Path, *, int8_activations: bool) -> AsRun:
    """The operators that ONNX Runtime makes of an .onnx file.

    int8_activations: as on ARM, where its integer operators take int8 activations; otherwise as on x86, where only uint8
    ones. The processor of the device counts, so it is not left to this one.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # not ALL: that one rewrites the rest for this machine's vector length
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.qdqisint8allowed", "1" if int8_activations else "0")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = list(graph_nodes(onnx.load(str(optimised)).graph))
    layers = [layer_name(node) for node in nodes if node.op_type in (*LAYERS, *_FUSED_LAYERS)]
    return AsRun(dict(sorted(Counter(node.op_type for node in nodes).items())), unique(layers))


def graph_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in its attributes (branches, loops)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graph_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from graph_nodes(inner)


def _type_name(code: int) -> str:
    import onnx

    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)))


def layer_name(node: onnx.NodeProto) -> str:
    """`/layer1/layer1.0/conv1/Conv` → `layer1.0.conv1`: the exporter's scopes repeat the prefix inside a Sequential.

    "fused " is ONNX Runtime's: a Gemm with its activation.
    """
    scopes = [part for part in node.name.removeprefix("fused ").split("/") if part]
    if len(scopes) < 2:
        return node.name or node.output[0]
    path: list[str] = []
    for scope in scopes[:-1]:
        if path and scope.startswith(f"{path[-1]}."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)


class Constants:
    """The stored tensors of a graph, found from a layer's input through dequantisation and transposition."""

    def __init__(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {output: node for node in nodes for output in node.output}
        for node in nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t

    def dequantised(self, node: onnx.NodeProto) -> bool:
        """Whether a layer stands between DequantizeLinear nodes: both operands have been integers."""
        makers = [self._maker.get(name) for name in node.input[:2]]
        return all(self._from_integers(maker) for maker in makers)

    def _from_integers(self, maker: onnx.NodeProto | None) -> bool:
        while maker is not None and maker.op_type in ("Transpose", "Identity", "Reshape"):
            maker = self._maker.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def stored(self, name: str) -> str | None:
        """The name of the stored tensor behind an input; None for an activation."""
        while name not in self._tensors:
            maker = self._maker.get(name)
            if maker is None or maker.op_type not in _VIEWS:
                return None
            name = maker.input[0]
        return name

    def is_float16(self, stored: str) -> bool:
        """Whether the stored tensor of this name is one of float16."""
        import onnx

        return bool(self._tensors[stored].data_type == onnx.TensorProto.FLOAT16)

    def weight(self, name: str, node: onnx.NodeProto, index: int) -> tuple[np.ndarray, np.ndarray | None, int]:
        """(values, zero points or None, their axis) of the stored tensor behind the input `name` of `node`."""
        zero_name, axis = "", 0
        if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
            zero_name, axis = node.input[index + 2], 0 if node.op_type == "QLinearConv" else -1
        elif node.op_type in ("ConvInteger", "MatMulInteger") and len(node.input) > 3:
            zero_name, axis = node.input[3], 0 if node.op_type == "ConvInteger" else -1
        while name not in self._tensors:
            maker = self._maker[name]
            if maker.op_type == "DequantizeLinear" and len(maker.input) > 2:
                zero_name = maker.input[2]
                axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
            name = maker.input[0]
        return self._array(name), self._array(zero_name) if zero_name in self._tensors else None, axis

    def _array(self, name: str) -> np.ndarray:
        import onnx

        return np.asarray(onnx.numpy_helper.to_array(self._tensors[name]))
