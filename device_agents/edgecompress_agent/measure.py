"""The worker: load, warm up, time in blocks, measure power, then score. It runs in a process of its own, watched by the supervisor.

Timed is only `engine.step`: inputs are converted before, nothing is written, the collector is off, the storage is there.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import time
from array import array
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

from edgecompress_agent import conditions, engines, power, profiling, progress, sampler, store, wire
from edgecompress_agent.engines import Engine
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import none
from edgecompress_agent.warm_up import warm_up

LEAST_PER_BLOCK = 10
MOST_INFERENCES = 2_000_000
"""Over all blocks, and again for the warm-up: about 15 MB of JSON. Reached only by models of some µs; a warning says so."""
_POOL, _POOL_BYTES = 16, 64 << 20
"""Inputs that the timed inferences cycle through, so that no result can be one input's special case; fewer when large."""
_SEED = 0


class _Plan:
    """What the phases are expected to take, for the progress of the whole job. Expectations, never results."""

    def __init__(self, directory: Path, job: wire.Job, images: int) -> None:
        self._directory, self._job, self._images = directory, job, images
        self.inference_s = 0.0
        self._done_s = 0.0
        self._power_s = power.expected_s(job.power, 0.0) if job.power is not None and power.wanted(job) else 0.0

    @property
    def block_s(self) -> float:
        return max(self._job.min_s / self._job.blocks, LEAST_PER_BLOCK * self.inference_s)

    def begin(self, phase: str, phase_s: float) -> None:
        """A phase that is expected to take phase_s begins."""
        self._write(phase, self._done_s, phase_s)
        self._done_s += phase_s

    def begin_power(self, power_s: float) -> None:
        """The power pass begins: now it is known how long it takes with this sensor."""
        self._power_s = power_s
        self._write("measuring power", self._done_s, power_s, quiet=True)
        self._done_s += power_s

    def begin_scoring(self, image: int) -> None:
        """The scoring has come to this image."""
        self._write("scoring", self._done_s + image * self.inference_s, (self._images - image) * self.inference_s)

    def _write(self, phase: str, done_s: float, phase_s: float, *, quiet: bool = False) -> None:
        timed_s = self._job.warmup_s + self._job.blocks * self.block_s
        total_s = max(timed_s + self._power_s + self._images * self.inference_s, done_s + phase_s)
        progress.write(self._directory, phase, done_s=done_s, phase_s=phase_s, total_s=total_s, quiet=quiet)


def measure(
    base: Path, job: wire.Job, *, agent_sha256: str, keep: Callable[[wire.Result], None] = lambda partial: None
) -> wire.Result:
    """The whole measurement of a job. keep: given a failed result with what there is, whenever there is more.

    AgentError where it cannot be done; an engine's own errors pass through.
    """
    started_unix_s = time.time()
    directory = store.job_dir(base, job.job_id)
    progress.write(directory, "loading")
    spare_cpus = sampler.spare_cpus(job.cpus)
    _pin(job.cpus)
    before = conditions.read("before")
    path = store.whole_blob(base, job.artifact)
    power.refuse_unknown(job)
    module = engines.find(job.engine)
    module.found()  # the library's import is not part of the model's loading time
    clock = time.monotonic_ns
    at = clock()
    engine: Engine = module.load(path, job.threads, job.providers)
    load_ns = clock() - at

    from edgecompress_agent import inputs  # numpy: after `found`, which says when it is missing

    images = None if job.images is None else inputs.load_images(store.whole_blob(base, job.images))
    convert = None if images is None else inputs.ImageInput(engine.info.inputs, images.shape[1:], job)
    pool = _pool(engine, images, convert, job.batch)
    feeds = [engine.prepare(arrays) for arrays in pool]
    warnings = _notes(engine, convert)
    scored = 0 if images is None or not job.score else min(len(images), job.score_images or len(images))

    at = clock()
    outputs = engine.step(feeds[0])
    first_ns = clock() - at
    inputs.check_batch(outputs, job.batch)
    plan = _Plan(directory, job, scored)
    plan.inference_s = first_ns / 1e9
    plan.begin("warming up", job.warmup_s)
    warmup, unsteady = warm_up(
        lambda seconds, most: _timed(engine, feeds, seconds, at_least=1, at_most=most, expected_ns=first_ns),
        job.warmup_s, MOST_INFERENCES,
    )  # fmt: skip
    warnings += [unsteady] if unsteady else []
    plan.inference_s = min(warmup) / 1e9
    warm = conditions.read("warm")
    blocks: List[wire.Block] = []
    during: Tuple[wire.Conditions, ...] = ()
    for number in range(job.blocks):
        if number and number == job.blocks // 2:
            during = (conditions.read("during"),)
        plan.begin(f"timing, block {number + 1} of {job.blocks}", plan.block_s)
        start = clock()
        latencies, cut = _timed(
            engine, feeds, job.min_s / job.blocks,
            at_least=LEAST_PER_BLOCK, at_most=max(MOST_INFERENCES // job.blocks, LEAST_PER_BLOCK),
            expected_ns=min(warmup),
        )  # fmt: skip
        blocks.append(wire.Block(start, tuple(latencies)))
        if cut:
            warnings.append(f"block {number + 1} ended early, after {len(latencies)} inferences")
    after = conditions.read("after")
    peak = _peak_rss_bytes()
    partial = wire.Result(
        job.job_id, agent_sha256, "failed", "it was not finished", engine=engine.info,
        conditions=(before, warm, *during, after), warmup_ns=tuple(warmup), blocks=tuple(blocks), load_ns=load_ns,
        first_inference_ns=first_ns, peak_rss_bytes=peak, sensor=job.sensor, started_unix_s=started_unix_s,
    )  # fmt: skip
    keep(partial)
    measured, heated = (
        power.Outcome(reason=none.REASON if job.sensor == "none" else "the job did not ask for power"),
        after,
    )
    if power.wanted(job):
        measured = power.measure(
            engine, feeds, job, cpus=spare_cpus, begin=plan.begin_power,
            keep=lambda so_far: keep(dataclasses.replace(partial, power=so_far)),
        )  # fmt: skip
        heated = conditions.read("power")
        keep(dataclasses.replace(partial, power=measured.power, power_reason=measured.reason, windows=measured.windows))
    predictions = None
    if scored and images is not None and convert is not None:
        predictions, note = _score(engine, convert, images, scored, plan)
        warnings += note
    operators = operators_reason = None
    if job.profile_ops:
        plan.begin("timing operators", 2 * profiling.PASS_S)
        pieces = None if job.pieces is None else store.whole_blob(base, job.pieces)
        operators, operators_reason = profiling.profile(job, path, pieces, pool, directory)
    return dataclasses.replace(
        partial,
        status="ok",
        reason=None,
        conditions=(*partial.conditions, *((heated,) if heated is not after else ())),
        predictions=predictions,
        power=measured.power,
        power_reason=measured.reason,
        windows=measured.windows,
        operators=operators,
        operators_reason=operators_reason,
        warnings=(*conditions.changes(before, heated), *conditions.crowding(warm, after), *warnings),
    )


def _pin(cpus: Optional[Tuple[int, ...]]) -> None:
    """Bind this process, and the threads that the engine will start, to CPUs. AgentError where that cannot be done."""
    if cpus is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise AgentError("this operating system cannot pin a process to CPUs: leave cpus out of the device profile")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        usable = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise AgentError(
            f"cannot pin to the CPUs {', '.join(map(str, cpus))}: {error.strerror}; usable: {usable}"
        ) from None


def _pool(engine: Engine, images: Any, convert: Any, batch: int) -> List[Sequence[Any]]:
    """Inputs ready for `prepare`: of the first images, or seeded random ones."""
    import numpy as np

    from edgecompress_agent.inputs import random_input, with_batch

    tensors = [with_batch(t, batch, resizable=engine.info.name == "litert") for t in engine.info.inputs]
    pool: List[Sequence[Any]] = []
    generator = np.random.default_rng(_SEED)
    for i in range(_POOL if images is None else min(_POOL, len(images))):
        if images is None:
            pool.append([random_input(tensor, generator) for tensor in tensors])
        else:
            pool.append([convert(images[i : i + 1])])
        if (i + 2) * sum(array.nbytes for array in pool[0]) > _POOL_BYTES:
            break
    return pool


def _notes(engine: Engine, convert: Any) -> List[str]:
    found = []
    batch = engine.info.inputs[0].shape[:1] if engine.info.inputs else ()
    if batch and batch[0] is not None and batch[0] > 1 and len(engine.info.inputs[0].shape) == 4:
        found.append(f"the file is made for batches of {batch[0]}: latencies are of a batch")
    if convert is not None and convert.raw:
        found.append("the input is uint8 without a scale: it was given raw pixels, mean and std were not applied")
    return found


def _timed(
    engine: Engine, feeds: Sequence[Any], seconds: float, *, at_least: int, at_most: int, expected_ns: int
) -> Tuple["array[int]", bool]:
    """Back-to-back inferences for so many seconds: (latencies in ns, whether `at_most` ended it first)."""
    wanted_ns = int(seconds * 1e9)
    room = min(at_most, max(at_least, int(1.5 * wanted_ns / max(expected_ns, 1)) + 1))
    store_ns = array("q", bytes(8 * room))
    step, clock, inputs, count = engine.step, time.monotonic_ns, len(feeds), 0
    gc.collect()
    gc.disable()
    try:
        end = clock() + wanted_ns
        while True:
            feed = feeds[count % inputs]
            before = clock()
            step(feed)
            after = clock()
            store_ns[count] = after - before
            count += 1
            if after >= end and count >= at_least:
                break
            if count == room:
                if count == at_most:
                    break
                room = min(at_most, 2 * room)  # faster than expected: between two inferences, so in none of them
                store_ns.extend(array("q", bytes(8 * (room - count))))
    finally:
        gc.enable()
    return store_ns[:count], after < end


def _score(
    engine: Engine, convert: Any, images: Any, count: int, plan: _Plan
) -> Tuple[Tuple[Tuple[int, ...], ...], List[str]]:
    """(top-5 of each of the first `count` images, warnings)."""
    import numpy as np

    from edgecompress_agent.inputs import top5

    predictions: List[Tuple[int, ...]] = []
    not_numbers = 0
    next_report = 0.0
    for i in range(count):
        if time.monotonic() >= next_report:
            plan.begin_scoring(i)
            next_report = time.monotonic() + 0.5
        output = engine.step(engine.prepare([convert(images[i : i + 1])]))[0]
        not_numbers += int(np.isnan(output).any()) if output.dtype.kind == "f" else 0
        predictions.append(top5(output))
    warned = [f"the output of {not_numbers} of {count} images holds NaN"] if not_numbers else []
    return tuple(predictions), warned


def _peak_rss_bytes() -> Optional[int]:
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text() if status.exists() else "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
