"""Cut a .tflite file into its operators, one small file each, so that a device can time them one by one.

LiteRT's Python runtime tells no operator's time. A piece is the operator itself with its own weights, and what it takes from
others as inputs. Run one after the other, each fed with what the ones before gave, the pieces compute what the whole file
computes; the agent checks that. What a cut takes away is what the engine does across operators (XNNPACK fuses a PAD into the
convolution behind it), and every piece costs one call of its own: a cut profile says where the time goes, not to the µs.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from edgecompress.errors import StepFailed
from edgecompress.export.census_tflite import LAYERS, builtin_names, layer_name, operator_name, read_model, widened

PLAN = "plan.json"
_REFERENCES = ("IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE")
"""Operators that run another graph of the file."""


def cut(path: Path, destination: Path) -> None:
    """Write a zip (stored, not packed) of the pieces of a .tflite file and of `plan.json`: which tensor goes where.

    UserError: the file cannot be read. StepFailed: it cannot be cut, with the reason.
    """
    model, schema, raw = read_model(path)
    _bring_in(model, raw)
    graph = model.subgraphs[0]
    builtin = builtin_names(schema)
    _widen(model, graph, schema, builtin)
    types = [operator_name(model.operatorCodes[o.opcodeIndex], builtin) for o in graph.operators]
    _check(graph, types)
    plan: dict[str, Any] = {
        "inputs": [int(i) for i in graph.inputs], "outputs": [int(i) for i in graph.outputs], "pieces": [],
    }  # fmt: skip
    with zipfile.ZipFile(destination, "w") as archive:
        for number, (operator, kind) in enumerate(zip(graph.operators, types, strict=True)):
            computed = _computed(model, graph, operator)
            outputs = [int(i) for i in operator.outputs]
            file = f"{number:05}.tflite"
            archive.writestr(zipfile.ZipInfo(file), _piece(schema, model, graph, operator, computed))
            named = [*(operator.inputs[1:2] if kind in LAYERS else []), outputs[0]]
            name = layer_name(*(graph.tensors[i].name or b"" for i in named))
            plan["pieces"].append({"file": file, "name": name, "type": kind, "inputs": computed, "outputs": outputs})
        archive.writestr(zipfile.ZipInfo(PLAN), json.dumps(plan))


def _bring_in(model: Any, raw: bytes) -> None:
    """Large constants may lie behind the flatbuffer, found by their offset in the file: put them where the others are."""
    import numpy as np

    for buffer in model.buffers:
        if buffer.data is None and (buffer.offset or 0) > 1:
            buffer.data = np.frombuffer(raw, np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0


def _widen(model: Any, graph: Any, schema: Any, builtin: dict[int, str]) -> None:
    """Weights that are stored as float16 pass through a DEQUANTIZE, which engines do once, at loading, and a piece of its own
    would have no input: store them as the float32 that it makes of them, and leave it out."""
    import numpy as np

    made_of = widened(model, graph, builtin)
    for index, stored in made_of.items():
        halves = model.buffers[graph.tensors[stored].buffer].data
        if graph.tensors[stored].type != schema.TensorType.FLOAT16:
            raise StepFailed("the graph cannot be cut: a stored tensor other than float16 passes through a DEQUANTIZE")
        buffer = schema.BufferT()
        buffer.data = np.asarray(halves, np.uint8).view(np.float16).astype(np.float32).view(np.uint8)
        model.buffers.append(buffer)
        graph.tensors[index].buffer = len(model.buffers) - 1
    graph.operators = [operator for operator in graph.operators if int(operator.outputs[0]) not in made_of]


def _check(graph: Any, types: list[str]) -> None:
    """StepFailed for what a cut would change the meaning of."""
    if not types:
        raise StepFailed("the file has no operators")
    found = [kind for kind in types if kind in _REFERENCES]
    if found:
        raise StepFailed(f"the graph cannot be cut: its {found[0]} runs another graph of the file")
    if any(tensor.isVariable for tensor in graph.tensors):
        raise StepFailed("the graph cannot be cut: it keeps a state from one inference to the next")
    for operator, kind in zip(graph.operators, types, strict=True):
        if operator.intermediates is not None and len(operator.intermediates):
            raise StepFailed(f"the graph cannot be cut: {kind} has tensors of its own inside")


def _computed(model: Any, graph: Any, operator: Any) -> list[int]:
    """The inputs of an operator that are computed or given, each once: all but its stored constants and the absent ones."""
    inputs = [int(i) for i in operator.inputs if i >= 0 and not _stored(model, graph.tensors[i])]
    return list(dict.fromkeys(inputs))


def _stored(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _piece(schema: Any, model: Any, graph: Any, operator: Any, computed: list[int]) -> bytes:
    """A file of this one operator. Its tensors and buffers are the whole's, renumbered; nothing else of them changes."""
    import copy

    import flatbuffers

    number: dict[int, int] = {}
    piece, own = schema.ModelT(), schema.SubGraphT()
    piece.buffers, own.tensors = [schema.BufferT()], []
    for index in (int(i) for i in (*operator.inputs, *operator.outputs)):
        if index < 0 or index in number:
            continue
        number[index] = len(own.tensors)
        tensor = copy.copy(graph.tensors[index])
        if _stored(model, tensor):
            piece.buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(piece.buffers) - 1
        else:
            tensor.buffer = 0
        own.tensors.append(tensor)
    alone = copy.copy(operator)
    alone.inputs = [number.get(int(i), -1) for i in operator.inputs]
    alone.outputs = [number[int(i)] for i in operator.outputs]
    alone.opcodeIndex = 0
    own.operators = [alone]
    own.inputs, own.outputs = [number[i] for i in computed], alone.outputs
    piece.version, piece.subgraphs = model.version, [own]
    piece.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    builder = flatbuffers.Builder(1024)
    try:
        builder.Finish(piece.Pack(builder), b"TFL3")
    except (struct.error, TypeError, ValueError) as error:
        raise StepFailed(f"the graph cannot be cut: an operator cannot be written alone: {error}") from None
    return bytes(builder.Output())
