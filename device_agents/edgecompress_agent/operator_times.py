"""The records of a profile by operator. Part of the wire format: see `wire`, which hands them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from edgecompress_agent.codec import need as _need

METHODS = ("profiler", "cut in turn", "cut alone")
"""How a profile came about. profiler: the engine's own. cut: the graph in pieces of one operator; in turn: one after the
other as in the whole; alone: each many times, and then the next."""


@dataclass(frozen=True)
class OpTime:
    """One operator of the graph as the engine ran it: its own names, after its own fusions (profiler), or the file's (cut).

    calls, total_ns, p50_ns: of all profiled inferences, and the median of one call. activation_bytes: computed inputs and
    outputs of one call; parameter_bytes: stored inputs. macs: of one call, the whole batch; layer: what the file calls the
    layer that this is. Both, and parameter_bytes where the engine has packed the weights away, are filled in by the host,
    which reads the file. None: nobody tells, or it is no layer.
    """

    name: str
    type: str
    calls: int
    total_ns: int
    p50_ns: int
    parameter_bytes: Optional[int] = None
    activation_bytes: Optional[int] = None
    macs: Optional[int] = None
    layer: Optional[str] = None

    def __post_init__(self) -> None:
        for name in ("total_ns", "p50_ns", "parameter_bytes", "activation_bytes", "macs"):
            value = getattr(self, name)
            _need(value is None or value >= 0, f"OpTime.{name}", "0 or more", value)
        _need(self.calls >= 1, "OpTime.calls", "1 or more", self.calls)


@dataclass(frozen=True)
class OpProfile:
    """Where the time of an inference goes, measured in a pass of its own after everything else.

    tool: what told the times, for a person. resolution_ns: the unit it tells them in (ONNX Runtime: whole µs, rounded down).
    inferences: profiled ones. whole_p50_ns: median of as many whole inferences in the same pass: with the profiler on
    (profiler), or of the uncut file just before and after (cut). The timing without any of this is the result's blocks.
    output_difference: largest |difference| between what the pieces and the whole file put out, in stored units; None: not cut.
    """

    method: str
    tool: str
    resolution_ns: int
    inferences: int
    whole_p50_ns: int
    operators: Tuple[OpTime, ...]
    output_difference: Optional[float] = None

    def __post_init__(self) -> None:
        _need(self.method in METHODS, "OpProfile.method", f"one of {', '.join(METHODS)}", self.method)
        _need(self.resolution_ns >= 1, "OpProfile.resolution_ns", "1 or more", self.resolution_ns)
        _need(self.inferences >= 1, "OpProfile.inferences", "1 or more", self.inferences)
        _need(self.whole_p50_ns > 0, "OpProfile.whole_p50_ns", "more than 0", self.whole_p50_ns)
        _need(len(self.operators) > 0, "OpProfile.operators", "at least one", self.operators)
