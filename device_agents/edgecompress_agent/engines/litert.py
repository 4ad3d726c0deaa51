"""LiteRT (TensorFlow Lite), for .tflite files, with its default delegate for CPUs (XNNPACK).

Served by the first of ai_edge_litert, tflite_runtime and tensorflow that is installed. One that is installed and broken
is an error, not a reason to try the next: figures of different libraries are not comparable.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List, Sequence, Tuple

from edgecompress_agent import wire
from edgecompress_agent.engines import Engine, import_library
from edgecompress_agent.errors import AgentError

_LIBRARIES = (
    ("ai_edge_litert", "ai_edge_litert.interpreter", ""),
    ("tflite_runtime", "tflite_runtime.interpreter", "tflite_runtime needs numpy < 2"),
    ("tensorflow", "tensorflow.lite", ""),
)


def _library() -> Tuple[str, str, ModuleType]:
    """(package, version, the module that has Interpreter)."""
    for package, module, needs in _LIBRARIES:
        if importlib.util.find_spec(package) is not None:
            library = import_library(package if package == "tensorflow" else module, needs=needs)
            library = library.lite if package == "tensorflow" else library
            return package, _version(package), library
    raise AgentError(f"none of {', '.join(p for p, _, _ in _LIBRARIES)} is installed for this Python")


def _version(package: str) -> str:
    if package == "tensorflow":  # its distribution has several names
        return str(import_library(package).__version__)
    return version(package.replace("_", "-"))


def found() -> wire.EngineFound:
    package, number, _ = _library()
    return wire.EngineFound(version=number, package=package)


def load(path: Path, threads: int, providers: Sequence[str]) -> Engine:
    """An interpreter with its tensors allocated. providers are ONNX Runtime's, and mean nothing here."""
    package, number, library = _library()
    numpy = import_library("numpy")
    interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    input_indices = [int(i["index"]) for i in inputs]
    output_indices = [int(o["index"]) for o in outputs]
    set_tensor, invoke, get_tensor = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

    fit = _fit(interpreter, inputs)
    info = wire.EngineInfo(
        name="litert",
        package=package,
        version=number,
        numpy=str(numpy.__version__),
        providers=(),
        threads=threads,
        inputs=tuple(_tensor(i, numpy) for i in inputs),
        outputs=tuple(_tensor(o, numpy) for o in outputs),
    )
    if len(input_indices) == len(output_indices) == 1:
        # without the loops of the general case, which are 1 % of a model of 40 µs
        only_input, only_output = input_indices[0], output_indices[0]

        def prepare_one(arrays: Sequence[Any]) -> Any:
            fit(arrays)
            return arrays[0]

        def step_one(array: Any) -> Sequence[Any]:
            set_tensor(only_input, array)
            invoke()
            return (get_tensor(only_output),)

        return Engine(info, prepare_one, step_one)

    def prepare(arrays: Sequence[Any]) -> List[Tuple[int, Any]]:
        fit(arrays)
        return list(zip(input_indices, arrays))

    def step(feed: List[Tuple[int, Any]]) -> Sequence[Any]:
        for index, array in feed:
            set_tensor(index, array)
        invoke()
        return [get_tensor(index) for index in output_indices]

    return Engine(info, prepare, step)


class Piece:
    """A file of one operator, from memory. `invoke` is what is timed, alone: its arrays are set before and fetched after."""

    def __init__(self, content: bytes, threads: int) -> None:
        interpreter = _library()[2].Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        inputs = interpreter.get_input_details()
        self._interpreter, self._fit = interpreter, _fit(interpreter, inputs)
        self._inputs = [int(i["index"]) for i in inputs]
        self._outputs = [int(o["index"]) for o in interpreter.get_output_details()]
        self.invoke: Callable[[], None] = interpreter.invoke

    def set(self, arrays: Sequence[Any]) -> None:
        self._fit(arrays)
        for index, array in zip(self._inputs, arrays):
            self._interpreter.set_tensor(index, array)

    def get(self) -> List[Any]:
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _fit(interpreter: Any, inputs: Sequence[Any]) -> Callable[[Sequence[Any]], None]:
    """What gives an interpreter's inputs the shapes of arrays, where they have others (free dimensions, another batch)."""
    indices = [int(i["index"]) for i in inputs]
    shapes = [tuple(int(d) for d in i["shape"]) for i in inputs]

    def fit(arrays: Sequence[Any]) -> None:
        wanted = [tuple(array.shape) for array in arrays]
        if wanted != shapes:
            for index, shape in zip(indices, wanted):
                interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
            shapes[:] = wanted

    return fit


def _tensor(detail: Any, numpy: ModuleType) -> wire.TensorInfo:
    signature = detail.get("shape_signature")
    free = signature if signature is not None and len(signature) == len(detail["shape"]) else detail["shape"]
    scale, zero_point = detail["quantization"]  # (0.0, 0) for a tensor that is not quantised
    return wire.TensorInfo(
        name=str(detail["name"]),
        shape=tuple(int(d) if d >= 0 else None for d in free),
        dtype=str(numpy.dtype(detail["dtype"]).name),
        scale=float(scale) or None,
        zero_point=int(zero_point) if scale else None,
    )
