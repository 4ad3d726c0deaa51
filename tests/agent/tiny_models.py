"""Models of one operator, made without torch: the output is the mean of each channel, so that what the agent must predict
can be computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MEAN, STD = (0.5, 0.25, 0.4), (0.2, 0.5, 0.3)
SIZE = 8


def images(count: int = 24, seed: int = 3) -> np.ndarray:
    """uint8 (count, SIZE, SIZE, 3) whose channels differ in brightness from image to image."""
    generator = np.random.default_rng(seed)
    level = generator.integers(20, 220, (count, 1, 1, 3))
    pixels: np.ndarray = (level + generator.integers(-15, 16, (count, SIZE, SIZE, 3))).astype(np.uint8)
    return pixels


def expected(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Channels by the mean of their normalised pixels, brightest first."""
    normalised = (pixels.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    return [tuple(int(i) for i in order) for order in np.argsort(-normalised.mean(axis=(1, 2)), axis=1, kind="stable")]


def write_onnx(
    path: Path,
    *,
    shape: tuple[int | str, ...] = ("n", 3, SIZE, SIZE),
    dtype: str = "FLOAT",
    repeat: int = 0,
    last: str = "Identity",
) -> Path:
    """A ReduceMean over the spatial axes. repeat: so many MatMuls of 256×256 before the output, to make it slow;
    last: the operator that gives the output."""
    from onnx import TensorProto, helper, numpy_helper, save

    axes = [2, 3] if shape[1] == 3 else [1, 2]
    kind = getattr(TensorProto, dtype)
    nodes, initialisers, at = [], [], "input"
    if dtype == "UINT8":
        nodes.append(helper.make_node("Cast", [at], ["cast"], to=TensorProto.FLOAT))
        at = "cast"
    nodes.append(helper.make_node("ReduceMean", [at], ["mean"], axes=axes, keepdims=0))
    at = "mean"
    if repeat:
        initialisers.append(numpy_helper.from_array(np.eye(256, dtype=np.float32), "eye"))
        initialisers.append(numpy_helper.from_array(np.zeros((3, 256), np.float32), "widen"))
        nodes.append(helper.make_node("MatMul", [at, "widen"], ["wide0"]))
        for i in range(repeat):
            nodes.append(helper.make_node("MatMul", [f"wide{i}", "eye"], [f"wide{i + 1}"]))
        at = f"wide{repeat}"
    nodes.append(helper.make_node(last, [at], ["logits"]))
    graph = helper.make_graph(
        nodes, "mean",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 256 if repeat else 3])],
        initialisers,
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def write_onnx_hungry(path: Path, numbers: int) -> Path:
    """The mean of each channel, and so many zeros that have to be in memory at once: a small file that needs 4 bytes for each."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["mean", "zero"], ["logits"]),
        ],
        "hungry",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.array([numbers], np.int64), "count")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def write_onnx_sum(path: Path) -> Path:
    """The sum of two inputs, of which one is integers."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["a", "c"], ["sum"])],
        "sum",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("b", TensorProto.INT64, [1, 4]),
        ],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def write_tflite(path: Path, *, int8: bool = False, free: bool = False) -> Path:
    """A MEAN over the spatial axes of (1, SIZE, SIZE, 3). int8: in and out quantised with one scale. free: height and width
    are left open, as 1 until they are known."""
    from ai_edge_litert import schema_py_generated as schema

    values = schema.TensorType.INT8 if int8 else schema.TensorType.FLOAT32
    source = _tensor(schema, "input", [1, 1, 1, 3] if free else [1, SIZE, SIZE, 3], values, quantised=int8)
    if free:
        source.shapeSignature = [1, -1, -1, 3]
    axes = _tensor(schema, "axes", [2], schema.TensorType.INT32)
    axes.buffer = 1
    options = schema.ReducerOptionsT()
    options.keepDims = False
    operator = _operator(schema, inputs=[0, 1], outputs=[2], options=options, kind=schema.BuiltinOptions.ReducerOptions)
    constant = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    tensors = [source, axes, _tensor(schema, "logits", [1, 3], values, quantised=int8)]
    return _write_tflite(
        schema, path, tensors=tensors, operator=operator, code=schema.BuiltinOperator.MEAN, constants=[constant]
    )


def write_tflite_sum(path: Path) -> Path:
    """The sum of two inputs."""
    from ai_edge_litert import schema_py_generated as schema

    tensors = [_tensor(schema, name, [1, 4], schema.TensorType.FLOAT32) for name in ("a", "b", "sum")]
    options = schema.BuiltinOptions.AddOptions
    operator = _operator(schema, inputs=[0, 1], outputs=[2], options=schema.AddOptionsT(), kind=options)
    return _write_tflite(
        schema, path, tensors=tensors, operator=operator, code=schema.BuiltinOperator.ADD, constants=[]
    )


def write_tflite_chain(path: Path, *, seed: int = 0) -> Path:
    """(n, 64) → a fully connected layer, added to its input, another one, and the mean of its values: (n, 1)."""
    from ai_edge_litert import schema_py_generated as schema

    code, options = schema.BuiltinOperator, schema.BuiltinOptions
    generator = np.random.default_rng(seed)
    names = ("input", "w0", "first", "sum", "w1", "second", "axes", "mean")
    shapes = ([1, 64], [64, 64], [1, 64], [1, 64], [64, 64], [1, 64], [1], [1, 1])
    tensors = [_tensor(schema, n, s, schema.TensorType.FLOAT32) for n, s in zip(names, shapes, strict=True)]
    tensors[6].type = schema.TensorType.INT32
    tensors[1].buffer, tensors[4].buffer, tensors[6].buffer = 1, 2, 3
    constants = [generator.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2)]
    mean = schema.ReducerOptionsT()
    mean.keepDims = True
    dense, addition = schema.FullyConnectedOptionsT(), schema.AddOptionsT()
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.inputs, graph.outputs = tensors, [0], [7]
    graph.operators = [
        _operator(schema, inputs=[0, 1, -1], outputs=[2], options=dense, kind=options.FullyConnectedOptions),
        _operator(schema, inputs=[0, 2], outputs=[3], options=addition, kind=options.AddOptions),
        _operator(schema, inputs=[3, 4, -1], outputs=[5], options=dense, kind=options.FullyConnectedOptions),
        _operator(schema, inputs=[5, 6], outputs=[7], options=mean, kind=options.ReducerOptions),
    ]
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], []
    for number, builtin in enumerate((code.FULLY_CONNECTED, code.ADD, code.MEAN)):
        kind = schema.OperatorCodeT()
        kind.builtinCode = kind.deprecatedBuiltinCode = builtin
        kind.version = 1
        model.operatorCodes.append(kind)
        graph.operators[number].opcodeIndex = number
    graph.operators[2].opcodeIndex, graph.operators[3].opcodeIndex = 0, 2
    model.buffers = [schema.BufferT() for _ in range(4)]
    for buffer, constant in zip(model.buffers[1:], [*constants, np.array([1], np.int32)], strict=True):
        buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
    return pack(model, path)


def pack(model: Any, path: Path) -> Path:
    """Write a model's objects as a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(schema: Any, name: str, shape: list[int], kind: int, *, quantised: bool = False) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, 0
    if quantised:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [0.03], [-5]
    return made


def _operator(schema: Any, *, inputs: list[int], outputs: list[int], options: Any, kind: int) -> Any:
    made = schema.OperatorT()
    made.inputs, made.outputs, made.opcodeIndex = inputs, outputs, 0
    made.builtinOptions, made.builtinOptionsType = options, kind
    return made


def _write_tflite(
    schema: Any, path: Path, *, tensors: list[Any], operator: Any, code: int, constants: list[np.ndarray]
) -> Path:
    """A file of one operator. constants: the buffers from number 1 on."""
    import flatbuffers  # type: ignore[import-untyped]

    graph, kind, model = schema.SubGraphT(), schema.OperatorCodeT(), schema.ModelT()
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs = [i for i in operator.inputs if tensors[i].buffer == 0]
    graph.outputs = operator.outputs
    kind.builtinCode = kind.deprecatedBuiltinCode = code
    kind.version = 2 if tensors[0].quantization else 1
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [kind], [graph], [schema.BufferT()]
    for constant in constants:
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = constant
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
