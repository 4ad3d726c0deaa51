"""What each operator of a profile costs, read in the exported file: multiply-accumulates, and bytes of stored weights.

MACs are those of convolution and fully connected layers, bias excluded, as in `cost`; every other operator has none. An
operator that an engine made by itself and that the file does not know by name has None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress_agent.wire import OpTime

if TYPE_CHECKING:
    import onnx

    from edgecompress.export.census_onnx import Constants

Cost = tuple[str | None, int | None, int | None]
"""What the file calls the layer (None: it is no layer), MACs of one call, bytes of stored inputs."""

_ONNX_LAYERS = (
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QLinearConv", "QGemm",
    "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
)  # fmt: skip
"""Types under which ONNX Runtime runs a layer."""

_TRAIL = 8
"""How many operators an engine may have put into a layer, whose last output it then bears as its name."""


def costs(path: Path, operators: Sequence[OpTime], batch: int) -> list[Cost]:
    """The cost of each operator of a profile of this file, for so many inputs at once."""
    return _onnx(path, operators, batch) if path.suffix == ".onnx" else _tflite(path, operators, batch)


def _tflite(path: Path, operators: Sequence[OpTime], batch: int) -> list[Cost]:
    from edgecompress.export.census_tflite import LAYERS, builtin_names, operator_name, read_model, widened

    model, schema, _ = read_model(path)
    graph, builtin = model.subgraphs[0], builtin_names(schema)
    made_of = widened(model, graph, builtin)
    present = [o for o in graph.operators if int(o.outputs[0]) not in made_of]
    types = [operator_name(model.operatorCodes[o.opcodeIndex], builtin) for o in present]
    if types != [o.type for o in operators]:  # the pieces are this file's operators, in its order
        return [(None, None, None)] * len(operators)
    first = [int(d) for d in graph.tensors[graph.inputs[0]].shape[:1]] if len(graph.inputs) else []
    factor = batch // first[0] if batch > 1 and first and first[0] else 1
    found: list[tuple[str | None, int | None, int | None]] = []
    for operator, kind, told in zip(present, types, operators, strict=True):
        macs = _tflite_macs(graph, operator, kind)
        stored = sum(_buffer_bytes(model, graph.tensors[made_of.get(int(i), i)]) for i in operator.inputs if i >= 0)
        found.append((told.name if kind in LAYERS else None, None if macs is None else macs * factor, stored))
    return found


def _buffer_bytes(model: Any, tensor: Any) -> int:
    buffer = model.buffers[tensor.buffer]
    return int(buffer.size or 0) if buffer.data is None else len(buffer.data)


def _tflite_macs(graph: Any, operator: Any, kind: str) -> int | None:
    from edgecompress.export.census_tflite import LAYERS

    if kind not in LAYERS:
        return None if kind.startswith(("CUSTOM", "OPERATOR")) else 0
    data = graph.tensors[operator.inputs[2 if kind == "TRANSPOSE_CONV" else 0]]
    out = graph.tensors[operator.outputs[0]]
    weights = [int(d) for d in graph.tensors[operator.inputs[1]].shape]
    for tensor in (data, out):
        if tensor.shapeSignature is not None and any(int(d) < 0 for d in tensor.shapeSignature[1:]):
            return None  # the size is known only when it runs
    outputs, inputs = math.prod(int(d) for d in out.shape), math.prod(int(d) for d in data.shape)
    if kind == "TRANSPOSE_CONV":
        return inputs * math.prod(weights[:-1])
    if kind == "BATCH_MATMUL":
        options = operator.builtinOptions
        return outputs * int(data.shape[-2 if options is not None and options.adjX else -1])
    per_output = {"DEPTHWISE_CONV_2D": weights[1:3], "CONV_3D": weights[:-1]}.get(kind, weights[1:])
    return outputs * math.prod(per_output)


def _onnx(path: Path, operators: Sequence[OpTime], batch: int) -> list[Cost]:
    import onnx

    from edgecompress.export.census_onnx import Constants, graph_nodes

    model = onnx.load(str(path))
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (ValueError, onnx.shape_inference.InferenceError):
        return [(None, None, None)] * len(operators)
    nodes = list(graph_nodes(graph))
    file = _OnnxFile(graph, nodes, Constants(graph, nodes), batch)
    return [file.cost(operator) for operator in operators]


class _OnnxFile:
    """The layers of an .onnx file, found under the names that ONNX Runtime gives them when it has rewritten the graph."""

    def __init__(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: Constants, batch: int) -> None:
        self._named = {node.name: node for node in nodes if node.name}
        self._maker = {output: node for node in nodes for output in node.output}
        self._constants = constants
        self._bytes = {t.name: _tensor_bytes(t) for t in graph.initializer}
        self._shapes: dict[str, list[int | None]] = {t.name: list(t.dims) for t in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            known = [d.dim_value if d.HasField("dim_value") else None for d in dims]
            self._shapes[value.name] = [batch, *known[1:]] if known and known[0] is None else known

    def cost(self, operator: OpTime) -> Cost:
        from edgecompress.export.census_onnx import layer_name

        if operator.type not in _ONNX_LAYERS:
            return None, 0, operator.parameter_bytes
        node = self._layer(operator.name)
        if node is None:
            return None, None, None  # not even the engine's: it has packed the weights away, and counts the rest
        stored = dict.fromkeys(self._constants.stored(name) for name in node.input[1:] if name)
        known = [self._bytes[name] for name in stored if name in self._bytes]
        return layer_name(node), self._macs(node), sum(known) if known else operator.parameter_bytes

    def _layer(self, name: str) -> onnx.NodeProto | None:
        """The layer of this name, of this output, or the one that the engine has put the maker of this output into."""
        plain = re.sub(r"^fused |(_token_\d+|_nchwc|_quant|_nhwc)+$", "", name)
        return next((n for n in self._trail(plain) if n.op_type in _ONNX_LAYERS), None)

    def _trail(self, name: str) -> Iterator[onnx.NodeProto]:
        node = self._named.get(name) or self._maker.get(name)
        for _ in range(_TRAIL):
            if node is None:
                return
            yield node
            node = self._maker.get(node.input[0]) if node.input else None

    def _macs(self, node: onnx.NodeProto) -> int | None:
        data, weights = self._shape(node.input[0]), self._shape(node.input[3 if node.op_type == "QLinearConv" else 1])
        out = self._shape(node.output[0])
        if data is None or weights is None or out is None or not weights:
            return None
        if node.op_type == "ConvTranspose":
            return math.prod(data) * math.prod(weights[1:])
        if "Conv" in node.op_type:
            return math.prod(out) * math.prod(weights[1:])
        if node.op_type == "Gemm":
            transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
            return math.prod(out) * data[0 if transposed else -1]
        return math.prod(out) * data[-1]

    def _shape(self, name: str) -> list[int] | None:
        """None where a size is not known. A weight may come from its stored tensor by DequantizeLinear."""
        shape = self._shapes.get(name)
        if shape is None:
            stored = self._constants.stored(name)
            shape = None if stored is None else self._shapes.get(stored)
        return None if shape is None or None in shape else [d for d in shape if d is not None]


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    import onnx

    return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
