"""ONNX Runtime, for .onnx files. One session, run one after the other, `threads` threads inside an operator."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Sequence, Tuple

from edgecompress_agent import wire
from edgecompress_agent.engines import Engine, import_library
from edgecompress_agent.errors import AgentError

_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "string",
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16",
    "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
}  # fmt: skip
"""ONNX Runtime's name in `tensor(NAME)` → numpy's."""


def _library() -> ModuleType:
    if importlib.util.find_spec("onnxruntime") is None:
        raise AgentError("onnxruntime is not installed for this Python")
    return import_library("onnxruntime")


def found() -> wire.EngineFound:
    library = _library()
    return wire.EngineFound(
        version=str(library.__version__), package="onnxruntime", providers=tuple(library.get_available_providers())
    )


def load(path: Path, threads: int, providers: Sequence[str]) -> Engine:
    """A session. AgentError when a provider is not there."""
    return _load(path, threads, providers, "")[0]


def load_profiled(path: Path, threads: int, providers: Sequence[str], prefix: str) -> Tuple[Engine, Callable[[], str]]:
    """A session whose every operator is timed by ONNX Runtime's profiler, and what ends that: the path of the file that it
    then has written, which begins with `prefix`. Timing an operator costs more than a small one takes."""
    engine, session = _load(path, threads, providers, prefix)
    return engine, session.end_profiling


def _load(path: Path, threads: int, providers: Sequence[str], profile_prefix: str) -> Tuple[Engine, Any]:
    """(a session as an engine, the session). AgentError when a provider is not there: ONNX Runtime itself falls back to the
    CPU with only a warning, and the figures would be those of another device."""
    library = _library()
    numpy = import_library("numpy")
    available = library.get_available_providers()
    missing = [p for p in providers if p not in available]
    if missing:
        raise AgentError(f"this onnxruntime has no {', '.join(missing)}: it has {', '.join(available)}")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    session = library.InferenceSession(str(path), sess_options=options, providers=list(providers))
    refused = [p for p in providers if p not in session.get_providers()]
    if refused:
        raise AgentError(f"{', '.join(refused)} could not be started (the log says why)")
    names = [tensor.name for tensor in session.get_inputs()]

    def prepare(arrays: Sequence[Any]) -> Dict[str, Any]:
        return dict(zip(names, arrays))

    info = wire.EngineInfo(
        name="onnxruntime",
        package="onnxruntime",
        version=str(library.__version__),
        numpy=str(numpy.__version__),
        providers=tuple(session.get_providers()),
        threads=threads,
        inputs=tuple(_tensor(t) for t in session.get_inputs()),
        outputs=tuple(_tensor(t) for t in session.get_outputs()),
    )
    # a partial of a bound method runs no Python code of ours between the clock's two readings
    return Engine(info, prepare, functools.partial(session.run, None)), session


def _tensor(tensor: Any) -> wire.TensorInfo:
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in tensor.shape)
    kind = tensor.type[len("tensor(") : -1] if tensor.type.startswith("tensor(") else tensor.type
    return wire.TensorInfo(tensor.name, shape, _DTYPES.get(kind, kind))
