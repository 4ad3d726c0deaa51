"""Time by operator: a pass of its own, after everything else, in sessions of its own, so that it disturbs no other figure.

ONNX Runtime has a profiler. LiteRT's Python runtime tells no operator's time: the host cuts the graph into pieces of one
operator, and this runs them one by one, by the same engine with the same delegate.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from edgecompress_agent import onnxruntime_events, wire
from edgecompress_agent.engines import Engine
from edgecompress_agent.errors import AgentError

PASS_S = 2.0
LEAST, MOST = 10, 300
"""Profiled inferences: for PASS_S, within these limits (ONNX Runtime writes some 500 bytes for each operator of each)."""
_WARMUP_S = 0.3
_ROOM_BYTES = 1 << 16
"""A disk with less free is what cut the profiler's file short, which it does not tell."""

Arrays = Sequence[Any]


def profile(
    job: wire.Job, model: Path, pieces: Optional[Path], pool: Sequence[Arrays], directory: Path
) -> Tuple[Optional[wire.OpProfile], Optional[str]]:
    """(times by operator, None), or (None, why there are none). pool: inputs, as the timing had them; directory: the job's.

    Whatever the engine raises is a reason, too: the measurement before it stands.
    """
    try:
        if job.engine == "onnxruntime":
            return _by_profiler(job, model, pool, directory), None
        if pieces is None:
            return None, "LiteRT's Python runtime tells no operator's time, and the host sent no cut graph"
        return _by_cutting(job, model, pieces, pool), None
    except AgentError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - what engines raise has no common type, and costs the profile only
        return None, f"{type(error).__name__}: {error}"


def _by_profiler(job: wire.Job, model: Path, pool: Sequence[Arrays], directory: Path) -> wire.OpProfile:
    from edgecompress_agent.engines import onnxruntime

    engine, end_profiling = onnxruntime.load_profiled(model, job.threads, job.providers, str(directory / "operators"))
    try:
        feeds = [engine.prepare(arrays) for arrays in pool]
        skip = len(_run(engine, feeds, _WARMUP_S))
        whole = _run(engine, feeds, PASS_S)
    finally:
        written = Path(end_profiling())
    try:
        inferences, operators = onnxruntime_events.read(written, skip=skip)
    except AgentError:
        disk = os.statvfs(str(directory))
        if disk.f_bavail * disk.f_frsize >= _ROOM_BYTES:
            raise
        raise AgentError(
            f"the disk is full: of what ONNX Runtime's profiler writes, {written.stat().st_size / 1e6:.0f} MB found room"
        ) from None
    finally:
        written.unlink()
    return wire.OpProfile(
        method="profiler",
        tool=f"the profiler of ONNX Runtime {engine.info.version}",
        resolution_ns=onnxruntime_events.RESOLUTION_NS,
        inferences=inferences,
        whole_p50_ns=int(statistics.median(whole)),
        operators=operators,
    )


def _by_cutting(job: wire.Job, model: Path, pieces: Path, pool: Sequence[Arrays]) -> wire.OpProfile:
    from edgecompress_agent.engines import litert

    engine = litert.load(model, job.threads, job.providers)
    feeds = [engine.prepare(arrays) for arrays in pool]
    with zipfile.ZipFile(str(pieces)) as archive:
        plan = json.loads(archive.read("plan.json"))
        cut = _Cut(plan, [litert.Piece(archive.read(p["file"]), job.threads) for p in plan["pieces"]])
    if len(plan["inputs"]) != len(engine.info.inputs):
        raise AgentError("the cut graph is not of this file")
    _run(engine, feeds, _WARMUP_S)
    whole = _run(engine, feeds, PASS_S / 2)
    # With several threads every piece has threads of its own, which go on waiting for work for some time after it: run
    # in turn, they would take the CPUs from each other.
    method = "cut in turn" if job.threads == 1 else "cut alone"
    cut.outputs(pool[0])
    gc.collect()
    gc.disable()
    try:
        times = cut.in_turn(pool) if job.threads == 1 else cut.alone(pool[0])
    finally:
        gc.enable()
    whole += _run(engine, feeds, PASS_S / 2)
    difference = max(_difference(a, b) for a, b in zip(engine.step(feeds[0]), cut.outputs(pool[0])))
    return wire.OpProfile(
        method=method,
        tool=f"the graph cut into its operators, each run by {engine.info.package} {engine.info.version}",
        resolution_ns=1,
        inferences=min(len(t) for t in times),
        whole_p50_ns=int(statistics.median(whole)),
        operators=tuple(
            wire.OpTime(
                p["name"], p["type"], len(ns), sum(ns), int(statistics.median(ns)), activation_bytes=size
            )
            for p, ns, size in zip(plan["pieces"], times, cut.activation_bytes)
        ),
        output_difference=difference,
    )  # fmt: skip


class _Cut:
    """The pieces of a graph, and the plan of which tensor goes where."""

    def __init__(self, plan: Dict[str, Any], pieces: Sequence[Any]) -> None:
        self._plan, self._pieces = plan, pieces
        self._steps = [(p, s["inputs"], s["outputs"]) for p, s in zip(pieces, plan["pieces"])]
        self._values: Dict[int, Any] = {}
        self.activation_bytes: List[int] = []

    def outputs(self, arrays: Arrays) -> List[Any]:
        """What the pieces make of an input, one after the other. Keeps every tensor."""
        values = self._values = dict(zip(self._plan["inputs"], arrays))
        for piece, inputs, outputs in self._steps:
            piece.set([values[i] for i in inputs])
            piece.invoke()
            values.update(zip(outputs, piece.get()))
        self.activation_bytes = [
            int(sum(values[i].nbytes for i in (*inputs, *outputs))) for _, inputs, outputs in self._steps
        ]
        return [values[i] for i in self._plan["outputs"]]

    def in_turn(self, pool: Sequence[Arrays]) -> List[List[int]]:
        """ns of each call of each piece: one after the other as in the whole, so that the caches hold what they hold there."""
        times: List[List[int]] = [[] for _ in self._steps]
        clock = time.monotonic_ns
        end, number = clock() + int(PASS_S * 1e9), 0
        while number < LEAST or (number < MOST and clock() < end):
            values = dict(zip(self._plan["inputs"], pool[number % len(pool)]))
            for (piece, inputs, outputs), taken in zip(self._steps, times):
                piece.set([values[i] for i in inputs])
                invoke = piece.invoke
                before = clock()
                invoke()
                taken.append(clock() - before)
                values.update(zip(outputs, piece.get()))
            number += 1
        return times

    def alone(self, arrays: Arrays) -> List[List[int]]:
        """ns of each call of each piece: each many times, and then the next."""
        self.outputs(arrays)
        clock, budget_ns = time.monotonic_ns, int(PASS_S * 1e9) // len(self._steps)
        times = []
        for piece, inputs, _ in self._steps:
            piece.set([self._values[i] for i in inputs])
            piece.invoke()
            taken: List[int] = []
            end = clock() + budget_ns
            while len(taken) < LEAST or (len(taken) < MOST and clock() < end):
                before = clock()
                piece.invoke()
                taken.append(clock() - before)
            times.append(taken)
        return times


def _run(engine: Engine, feeds: Sequence[Any], seconds: float) -> List[int]:
    """ns of whole inferences, for so many seconds."""
    taken: List[int] = []
    clock, step = time.monotonic_ns, engine.step
    end = clock() + int(seconds * 1e9)
    while len(taken) < LEAST or (len(taken) < MOST and clock() < end):
        feed = feeds[len(taken) % len(feeds)]
        before = clock()
        step(feed)
        taken.append(clock() - before)
    return taken


def _difference(a: Any, b: Any) -> float:
    """Largest |difference|. AgentError when it is such that the pieces compute something else than the file."""
    import numpy as np

    if a.shape != b.shape:
        raise AgentError(f"the cut graph puts out {b.shape} where the file puts out {a.shape}")
    first, second = a.astype(np.float64), b.astype(np.float64)
    told = ~(np.isnan(first) & np.isnan(second))
    first, second = first[told], second[told]
    difference = float(np.abs(first - second).max()) if first.size else 0.0
    allowed = 1e-3 * max(1.0, float(np.abs(first).max())) if a.dtype.kind == "f" and first.size else 8.0
    if not difference <= allowed:
        raise AgentError(
            f"the cut graph puts out something else than the file (by {difference:.3g}): not the same work"
        )
    return difference
