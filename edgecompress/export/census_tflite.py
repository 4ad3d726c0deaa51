"""The census of a .tflite file."""

from __future__ import annotations

import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import UserError
from edgecompress.export.census import Census, denormals_of, unique, zeros_of

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL")
"""Their weights are input 1; the other operand is input 0, but input 2 for TRANSPOSE_CONV."""

_IDENTIFIER = b"TFL3"


def read_model(path: Path) -> tuple[Any, Any, bytes]:
    """(the file as objects, the module of the schema, the bytes). UserError as in `count_tflite`."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError:
        fix = "pip install 'edgecompress[tflite]'"
        raise UserError("reading a .tflite file needs ai-edge-litert, which is not installed", fix=fix) from None
    try:
        raw = path.read_bytes()
        if raw[4:8] != _IDENTIFIER:
            raise ValueError("it does not begin as a TFLite flatbuffer")
        model = schema.ModelT.InitFromPackedBuf(raw, 0)
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise UserError(
            f"cannot be read as TFLite: {error}", where=str(path), fix="Give a whole .tflite file."
        ) from None
    return model, schema, raw


def count_tflite(path: Path) -> Census:
    """The census of a .tflite file. UserError when it cannot be read, or the package that knows the format is missing."""
    model, schema, raw = read_model(path)
    builtin = builtin_names(schema)
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    operators: Counter[str] = Counter()
    float_layers: list[str] = []
    float16_layers: list[str] = []
    seen: set[int] = set()
    weights = zeros = denormals = 0
    for graph in model.subgraphs:
        made_of = widened(model, graph, builtin)
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = operator_name(code, builtin)
            operators[name] += 1
            if name not in LAYERS:
                continue
            data = graph.tensors[operator.inputs[2 if name == "TRANSPOSE_CONV" else 0]]
            index = int(operator.inputs[1])
            weight = graph.tensors[made_of.get(index, index)]
            if types[data.type].startswith("float"):
                float_layers.append(layer_name(weight.name, graph.tensors[operator.outputs[0]].name))
                if types[weight.type] == "float16":
                    float16_layers.append(float_layers[-1])
            values = _values(raw, model.buffers[weight.buffer], types[weight.type])
            if values is not None and weight.buffer not in seen:
                seen.add(weight.buffer)
                quantisation = weight.quantization
                points = None if quantisation is None else quantisation.zeroPoint
                weights += values.size
                zeros += zeros_of(values.reshape(weight.shape), *_zero_points(points, quantisation))
                denormals += denormals_of(values)
    main = model.subgraphs[0]
    source, target = main.tensors[main.inputs[0]], main.tensors[main.outputs[0]]
    return Census(
        operators=dict(sorted(operators.items())),
        float_layers=unique(float_layers),
        weights=weights,
        zeros=zeros,
        input_shape=tuple(int(d) for d in (source.shape if source.shapeSignature is None else source.shapeSignature)),
        input_dtype=types[source.type],
        output_dtype=types[target.type],
        denormals=denormals,
        float16_layers=unique(float16_layers),
    )


def widened(model: Any, graph: Any, builtin: dict[int, str]) -> dict[int, int]:
    """Tensor → the stored one that a DEQUANTIZE makes it of: weights that are kept as float16. Engines do that once, at loading."""
    found = {}
    for operator in graph.operators:
        if operator_name(model.operatorCodes[operator.opcodeIndex], builtin) == "DEQUANTIZE":
            buffer = model.buffers[graph.tensors[operator.inputs[0]].buffer]
            if (buffer.data is not None and len(buffer.data)) or (buffer.offset or 0) > 1:
                found[int(operator.outputs[0])] = int(operator.inputs[0])
    return found


def _zero_points(points: Any, quantisation: Any) -> tuple[np.ndarray | None, int]:
    if points is None or len(points) == 0:
        return None, 0
    return np.asarray(points), int(quantisation.quantizedDimension)


def builtin_names(schema: Any) -> dict[int, str]:
    """The number of a built-in operator → its name."""
    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def operator_name(code: Any, builtin: dict[int, str]) -> str:
    """Old files hold the code in an 8-bit field, newer ones in a 32-bit one: the larger is meant (as in the schema)."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if code.customCode:
        return f"CUSTOM {code.customCode.decode(errors='replace')}"
    return builtin.get(number, f"OPERATOR {number}")


def _values(raw: bytes, buffer: Any, kind: str) -> np.ndarray | None:
    """The elements of a stored tensor; None for one that is computed, or of a type that numpy has not (int4)."""
    known = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64")
    if kind not in known:
        return None
    data = buffer.data
    if data is None and buffer.offset > 1:  # files above 2 GB keep it behind the flatbuffer
        data = np.frombuffer(raw, np.uint8, count=buffer.size, offset=buffer.offset)
    return None if data is None or len(data) == 0 else np.asarray(data, np.uint8).view(np.dtype(kind))


def layer_name(*names: bytes) -> str:
    """`…Wrapper/m.Net_wrapped/…Sequential_layer1/m.Block_0/…Conv2d_conv1;` → `layer1.0.conv1`; other names as they are.

    litert-torch writes the path of each module that was fused into a tensor, `class_name` by `class_name`. The last path of
    the weight's name is the layer's own.
    """
    for name in names:
        for path in reversed(name.decode(errors="replace").split(";")):
            steps = [re.sub(r"^[^_]*_", "", step.rpartition(".")[2]) for step in path.split("/")[2:] if "." in step]
            if steps:
                return ".".join(steps)
    return names[0].decode(errors="replace") or names[-1].decode(errors="replace")
