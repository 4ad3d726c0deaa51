"""The stored integers of the layers of an int8 file, for tests: what became of shared values and zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def channels(path: Path) -> dict[str, np.ndarray]:
    """Layer → its stored weights, (output channels, weights of each), of an .onnx or .tflite file."""
    return _onnx(path) if path.suffix == ".onnx" else _tflite(path)


def _onnx(path: Path) -> dict[str, np.ndarray]:
    import onnx

    from edgecompress.export.census_onnx import LAYERS, Constants, layer_name

    graph = onnx.load(str(path)).graph
    nodes = list(graph.node)
    constants = Constants(graph, nodes)
    found = {}
    for node in nodes:
        if node.op_type in LAYERS:
            values, _, _ = constants.weight(node.input[1], node, 1)
            found[layer_name(node)] = values.reshape(len(values), -1)
    return found


def _tflite(path: Path) -> dict[str, np.ndarray]:
    from edgecompress.export.census_tflite import LAYERS, builtin_names, layer_name, operator_name, read_model

    model, schema, _ = read_model(path)
    graph, builtin = model.subgraphs[0], builtin_names(schema)
    found = {}
    for operator in graph.operators:
        kind = operator_name(model.operatorCodes[operator.opcodeIndex], builtin)
        if kind in LAYERS:
            tensor = graph.tensors[operator.inputs[1]]
            values = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8).reshape(tensor.shape)
            axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
            name = layer_name(tensor.name, graph.tensors[operator.outputs[0]].name)
            found[name] = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return found
