"""What ONNX Runtime's profiler wrote: one JSON object on a line, read line by line (a file may be a hundred MB).

Of each inference: a `NAME_kernel_time` of every node as it ended, in µs, then `model_run`. Versions up to 1.1x also write
fences beside it. A node with graphs of its own (If, Loop, Scan) is told after the nodes inside it, whose time is part of its.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edgecompress_agent.errors import AgentError
from edgecompress_agent.operator_times import OpTime

RESOLUTION_NS = 1000
_SUFFIX = "_kernel_time"
_ASYNCHRONOUS = (
    "CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "ROCMExecutionProvider",
    "MIGraphXExecutionProvider", "DmlExecutionProvider", "WebGpuExecutionProvider", "JsExecutionProvider",
)  # fmt: skip
"""Their operators are started and not waited for: the time that the profiler tells is that of the start."""

Node = Tuple[str, str, str]
"""Name, type, and number in its graph."""


class _Found:
    """The calls of one node: how long each took, and what its tensors hold."""

    def __init__(self, event: Dict[str, Any]) -> None:
        arguments = event["args"]
        self.parameters = _size(arguments.get("parameter_size"))
        sizes = (_size(arguments.get("activation_size")), _size(arguments.get("output_size")))
        self.activations = None if None in sizes else sum(s for s in sizes if s is not None)
        self.ns: List[int] = []


def read(path: Path, *, skip: int) -> Tuple[int, Tuple[OpTime, ...]]:
    """(inferences, their nodes in the order in which they ran first) of all inferences but the first `skip`.

    AgentError: it is no such file, or a node ran where the profiler cannot see how long it takes.
    """
    found: Dict[Node, _Found] = {}
    inference: List[Dict[str, Any]] = []
    inferences = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                text = line.strip().rstrip(",")
                if not text.startswith("{"):
                    continue
                event = json.loads(text)
                if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
                    _add(inference, event)
                elif event["name"] == "model_run":
                    inferences += 1
                    if inferences > skip:
                        _keep(found, inference)
                    inference = []
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(f"ONNX Runtime's profiler wrote something else than expected: {error!r}") from None
    if inferences <= skip or not found:
        raise AgentError("ONNX Runtime's profiler told of no operator")
    return inferences - skip, tuple(
        OpTime(name, kind, len(f.ns), sum(f.ns), int(statistics.median(f.ns)), f.parameters, f.activations)
        for (name, kind, _), f in found.items()
    )


def _add(inference: List[Dict[str, Any]], event: Dict[str, Any]) -> None:
    if event["args"].get("op_name") in ("If", "Loop", "Scan"):
        while inference and inference[-1]["ts"] >= event["ts"]:
            inference.pop()  # it ran inside this one
    inference.append(event)


def _keep(found: Dict[Node, _Found], inference: List[Dict[str, Any]]) -> None:
    for event in inference:
        provider = event["args"].get("provider", "")
        if provider in _ASYNCHRONOUS:
            raise AgentError(
                f"operators ran on {provider}: ONNX Runtime's profiler sees how long they take to start, not to run"
            )
        node = (event["name"][: -len(_SUFFIX)], str(event["args"]["op_name"]), str(event["args"].get("node_index")))
        if node not in found:
            found[node] = _Found(event)
        found[node].ns.append(int(event["dur"]) * RESOLUTION_NS)


def _size(text: Optional[str]) -> Optional[int]:
    return int(text) if text else None
