"""Layers of an int8 .onnx file that stay in float: that they really do in the engine, and weights of theirs stored as float16.

ONNX Runtime (since 1.21) quantises the float weights of a convolution or Gemm whose input comes from a DequantizeLinear and whose
output goes to a QuantizeLinear, per tensor, when it loads a file (its optimizer WeightBiasQuantization): what was kept in
float would run in int8, and worse than if it had been quantised here. A Clip at the lowest float32 before the layer, which
changes nothing, takes it out of that pattern on every device.

float16: the weights are stored as such, with a Cast to float32 before the layer, not a float16 convolution. The Cast of a
constant is computed once, at loading (constant folding), so the layer costs what a float32 one does, in every version and on
every processor; half of the bytes are saved. TFLite's float16 quantisation is the same, with DEQUANTIZE.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import StepFailed
from edgecompress.export.census_onnx import LAYERS, Constants, layer_name
from edgecompress.quantization import Precision

_LOWEST = "lowest_float32"
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def keep(path: Path, layers: Collection[str], precision: Precision) -> None:
    """Rewrite a quantised file in which these layers have float weights. StepFailed when float16 cannot hold one of them."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type in LAYERS and layer_name(node) in layers]
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    _guard(graph, [node for node in nodes if node.input[0] in dequantised])
    if precision == "float16":
        constants = Constants(graph, list(graph.node))
        stored = {name: layer_name(node) for node in nodes if (name := constants.stored(node.input[1])) is not None}
        for tensor in [tensor for tensor in graph.initializer if tensor.name in stored]:
            _narrow(graph, tensor, stored[tensor.name])
    onnx.save(model, str(path))


def _guard(graph: Any, nodes: list[Any]) -> None:
    """Put a Clip that changes nothing before each of these layers."""
    import onnx

    if not nodes:
        return
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(np.finfo(np.float32).min), _LOWEST))
    for node in nodes:
        clipped = f"{node.input[0]}_for_{node.name}"
        clip = onnx.helper.make_node("Clip", [node.input[0], _LOWEST], [clipped], name=f"{node.name}_stays_in_float")
        node.input[0] = clipped
        graph.node.insert(list(graph.node).index(node), clip)


def _narrow(graph: Any, tensor: Any, layer: str) -> None:
    """Make an initializer float16, and let what read it read a Cast of it."""
    import onnx

    name, weights = tensor.name, onnx.numpy_helper.to_array(tensor)
    largest = float(np.abs(weights).max(initial=0.0))
    if largest > _LARGEST_FLOAT16:
        raise StepFailed(
            f"the layer {layer} has a weight of {largest:.4g} and float16 ends at {_LARGEST_FLOAT16:.0f}: keep it in float32"
        )
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float16), name))
    wide = f"{name}_float32"
    for node in graph.node:
        for place, given in enumerate(node.input):
            if given == name:
                node.input[place] = wide
    graph.node.insert(0, onnx.helper.make_node("Cast", [name], [wide], name=f"{name}_cast", to=onnx.TensorProto.FLOAT))
