"""The records that cross between host and board, and their JSON: what both sides import (stdlib only).

Frozen dataclasses with units in their names; a tuple is a JSON list. `None` is "not measured" or "not readable".
Every time is of the board's monotonic clock, in ns, except `started_unix_s`. What the other side sent is untrusted:
`from_json` checks every type and refuses unknown or missing fields, and another protocol version, with `WireError`.
The annotations are those that Python 3.8 can evaluate (`Tuple`, `Optional`), because `from_json` reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from edgecompress_agent.codec import WireError, decode, encode, from_json, to_json
from edgecompress_agent.codec import need as _need
from edgecompress_agent.operator_times import OpProfile, OpTime

__all__ = [
    "ENGINES", "JOB_ID", "PROTOCOL", "SCOPES", "SHA256",
    "Blob", "Block", "Clock", "Conditions", "EngineFound", "EngineInfo", "Hello", "Job", "OpProfile", "OpTime",
    "Power", "PowerPlan", "Result", "SensorInfo", "SensorReading", "Status", "TensorInfo", "Trace", "Window",
    "WireError", "decode", "encode", "from_json", "to_json",
]  # fmt: skip

PROTOCOL = 2
ENGINES = ("onnxruntime", "litert")
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
"""A job's id is also its directory's name on the board."""
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
SCOPES = ("module", "board", "usb-input", "pmic-rails", "cpu-package", "as-wired")
"""What a reading of power includes. Figures of different scopes are never compared. as-wired: only who wired it can say."""


@dataclass(frozen=True)
class Blob:
    """A file under ROOT/blobs, where its name is its SHA-256. `name` is for messages only."""

    name: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _need(bool(SHA256.match(self.sha256)), "Blob.sha256", "64 lower-case hexadecimal digits", self.sha256)
        _need(self.bytes >= 0, "Blob.bytes", "0 or more", self.bytes)


@dataclass(frozen=True)
class PowerPlan:
    """How power is measured, in a pass of its own after the timing.

    `windows` windows of back-to-back inferences, each of at least window_s, and longer until it has min_samples readings of
    the sensor, but never longer than max_window_s. Idle for idle_s before and after; settle_s are let go by at every change
    between idle and load. host_interval_s: the meter hangs at the workstation and reads so often; the agent then only runs
    the pass and answers its windows. None: the sensor is the board's.
    """

    window_s: float = 10.0
    min_samples: int = 100
    windows: int = 5
    idle_s: float = 5.0
    settle_s: float = 0.5
    max_window_s: float = 120.0
    host_interval_s: Optional[float] = None

    def __post_init__(self) -> None:
        _need(self.window_s > 0, "PowerPlan.window_s", "more than 0", self.window_s)
        _need(self.min_samples >= 0, "PowerPlan.min_samples", "0 or more", self.min_samples)
        _need(self.windows >= 1, "PowerPlan.windows", "1 or more", self.windows)
        _need(self.idle_s >= 0, "PowerPlan.idle_s", "0 or more", self.idle_s)
        _need(self.settle_s >= 0, "PowerPlan.settle_s", "0 or more", self.settle_s)
        _need(self.max_window_s >= self.window_s, "PowerPlan.max_window_s", "window_s or more", self.max_window_s)
        interval_s = self.host_interval_s
        _need(interval_s is None or interval_s > 0, "PowerPlan.host_interval_s", "more than 0", interval_s)


@dataclass(frozen=True)
class Job:
    """One measurement that is asked for.

    images: a .npy of uint8 (N, H, W, C), raw pixels; None: seeded random inputs, nothing to score (profile of a file).
    mean, std: per channel, applied as (x / 255 - mean) / std. Layout (NCHW, NHWC) and number type are the model's own.
    cpus: CPUs to pin the worker to; None: no pinning. providers: ONNX Runtime's, in order; every one must be there.
    warmup_s: inferences before the timing, kept as data: so long at least, and four times as long at most, until they are
    steady. min_s: timed seconds over all `blocks`.
    score: predict every image (the first `score_images` of them, when given) after the timing.
    batch: random inputs at once; the file must leave its first dimension free (or the engine be able to change it).
    profile_ops: also the time of each operator, after everything else. pieces: the graph cut into its operators, for an
    engine that cannot tell them: a zip of a file for each, and plan.json.
    power: how to measure power by `sensor`; None: not at all (and `sensor` is then not touched).
    deadline_s: the worker is stopped so many seconds after it was started (waiting for the board does not count).
    """

    job_id: str
    artifact: Blob
    engine: str
    providers: Tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    cpus: Optional[Tuple[int, ...]] = None
    images: Optional[Blob] = None
    mean: Tuple[float, ...] = ()
    std: Tuple[float, ...] = ()
    warmup_s: float = 1.0
    min_s: float = 5.0
    blocks: int = 5
    score: bool = True
    score_images: Optional[int] = None
    sensor: str = "none"
    sensor_options: Dict[str, Any] = field(default_factory=dict)
    power: Optional[PowerPlan] = None
    batch: int = 1
    profile_ops: bool = False
    pieces: Optional[Blob] = None
    deadline_s: float = 1800.0
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        _need(bool(JOB_ID.match(self.job_id)), "Job.job_id", "letters, digits, '.', '_', '-'; at most 128", self.job_id)
        _need(self.engine in ENGINES, "Job.engine", f"one of {', '.join(ENGINES)}", self.engine)
        _need(len(self.providers) > 0, "Job.providers", "at least one", self.providers)
        _need(self.threads >= 1, "Job.threads", "1 or more", self.threads)
        _need(self.cpus is None or len(self.cpus) > 0, "Job.cpus", "None or at least one CPU", self.cpus)
        _need(len(self.mean) == len(self.std), "Job.std", "as many values as mean", self.std)
        _need(all(s > 0 for s in self.std), "Job.std", "positive values", self.std)
        _need(self.warmup_s >= 0, "Job.warmup_s", "0 or more", self.warmup_s)
        _need(self.min_s > 0, "Job.min_s", "more than 0", self.min_s)
        _need(self.blocks >= 1, "Job.blocks", "1 or more", self.blocks)
        _need(self.score_images is None or self.score_images >= 1, "Job.score_images", "1 or more", self.score_images)
        _need(not self.score or self.images is not None, "Job.score", "False when there are no images", self.score)
        _need(self.batch >= 1, "Job.batch", "1 or more", self.batch)
        _need(self.batch == 1 or self.images is None, "Job.batch", "1 when there are images", self.batch)
        _need(self.pieces is None or self.profile_ops, "Job.pieces", "None without profile_ops", self.pieces)
        _need(bool(JOB_ID.match(self.sensor)), "Job.sensor", "the name of a sensor", self.sensor)
        _need(self.deadline_s > 0, "Job.deadline_s", "more than 0", self.deadline_s)


@dataclass(frozen=True)
class Conditions:
    """The board at one moment of a measurement. Anything that cannot be read there is None.

    phase: "before" (nothing loaded yet), "warm" (after the warm-up), "during" (between two blocks in the middle of the timing),
    "after" (the last block has ended), "power" (the last window of the power pass has ended), or "hello".
    governors, cpu_mhz: one per CPU. throttled: `vcgencmd get_throttled` (Raspberry Pi), hexadecimal; bits 0-3 now,
    16-19 since boot. throttle_counts: the kernel's counters since boot. power_mode: nvpmodel's, or the ACPI profile.
    cpu_busy_s: seconds that all CPUs together were not idle (or were taken by the hypervisor) since boot; worker_cpu_s: of
    the process that reads this, all threads. What cpu_busy_s grew more than worker_cpu_s was taken by others.
    boot_id: the kernel's name of this boot: another one says that the board was restarted, and its monotonic clock with it.
    int8_instructions: those of avx512_vnni, avx_vnni, avx2, i8mm, asimddp that the CPU has; empty: it has none of them.
    """

    phase: str
    monotonic_ns: int
    board: Optional[str]
    cpu_model: Optional[str]
    cpus_online: Optional[int]
    machine: str
    kernel: str
    os: Optional[str]
    python: str
    governors: Optional[Tuple[str, ...]]
    cpu_mhz: Optional[Tuple[float, ...]]
    temperatures_c: Optional[Dict[str, float]]
    throttled: Optional[str]
    throttle_counts: Optional[Dict[str, int]]
    load_1m: Optional[float]
    mem_available_bytes: Optional[int]
    swap_used_bytes: Optional[int]
    power_mode: Optional[str]
    cpu_busy_s: Optional[float] = None
    worker_cpu_s: Optional[float] = None
    int8_instructions: Optional[Tuple[str, ...]] = None
    boot_id: Optional[str] = None


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the model as the engine tells it. shape: None where a dimension is free. scale, zero_point:
    per-tensor quantisation (real = scale · (stored - zero_point)), None for a tensor that has none."""

    name: str
    shape: Tuple[Optional[int], ...]
    dtype: str
    scale: Optional[float] = None
    zero_point: Optional[int] = None


@dataclass(frozen=True)
class EngineInfo:
    """What executed the artifact. package: the distribution that serves the engine (`litert`: ai_edge_litert, …)."""

    name: str
    package: str
    version: str
    numpy: str
    providers: Tuple[str, ...]
    threads: int
    inputs: Tuple[TensorInfo, ...]
    outputs: Tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Block:
    """Back-to-back inferences. latencies_ns: each one input set + run + outputs fetched, one image (one batch)."""

    start_ns: int
    latencies_ns: Tuple[int, ...]


@dataclass(frozen=True)
class SensorInfo:
    """What read the power, and how well, as limits from its datasheet or manual.

    scope: one of SCOPES. interval_s: nominal time between two new values (of those kept, in a trace that was thinned out).
    resolution_w: one step of the power reading at this range. gain_error: fraction of the reading; offset_error_w: both are
    limits, ±. replayed: a recording, not this measurement. chosen_because: by `auto`; else empty.
    """

    name: str
    description: str
    scope: str
    interval_s: float
    resolution_w: float
    gain_error: float
    offset_error_w: float
    replayed: bool = False
    chosen_because: str = ""
    notes: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _need(self.scope in SCOPES, "SensorInfo.scope", f"one of {', '.join(SCOPES)}", self.scope)
        _need(self.interval_s > 0, "SensorInfo.interval_s", "more than 0", self.interval_s)
        for name in ("resolution_w", "gain_error", "offset_error_w"):
            _need(getattr(self, name) >= 0, f"SensorInfo.{name}", "0 or more", getattr(self, name))


@dataclass(frozen=True)
class SensorReading:
    """The answer to `sensor`: one reading in µW, or the reason why there is none. busy: nobody tried, because a job runs."""

    info: Optional[SensorInfo] = None
    power_uw: Optional[int] = None
    reason: Optional[str] = None
    busy: bool = False


@dataclass(frozen=True)
class Trace:
    """Power over time, raw: what the sensor said, when. Nothing is filtered, sorted or filled in.

    t_ns, power_uw: as many as each other; the board's monotonic clock, and µW with their sign. rails_mw: by rail, as many
    again. stale: readings that the source repeated instead of renewing; overflows: readings that it marked as out of its
    range; late: readings that came more than 1.5 intervals after the one before; dropped: values that the source must have
    had meanwhile and nobody read. ended_reason: why the trace ends before the pass did; None: it does not.
    clock_error_s: limit of what the stamps may be off, all in the same way; 0 for a sensor that the board's clock stamps.
    """

    info: SensorInfo
    t_ns: Tuple[int, ...]
    power_uw: Tuple[int, ...]
    rails_mw: Dict[str, Tuple[int, ...]] = field(default_factory=dict)
    stale: int = 0
    overflows: int = 0
    late: int = 0
    ended_reason: Optional[str] = None
    dropped: int = 0
    clock_error_s: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.t_ns)
        _need(len(self.power_uw) == count, "Trace.power_uw", f"{count} values, as t_ns has", len(self.power_uw))
        for rail, values in self.rails_mw.items():
            _need(len(values) == count, f"Trace.rails_mw.{rail}", f"{count} values, as t_ns has", len(values))
        for name in ("stale", "overflows", "late", "dropped", "clock_error_s"):
            _need(getattr(self, name) >= 0, f"Trace.{name}", "0 or more", getattr(self, name))


@dataclass(frozen=True)
class Window:
    """A part of the power pass. kind: idle-before | power | idle-after. inferences: those that ran from start_ns to end_ns,
    nothing else between them (0 when idle). latency_ns_p50: their median, with the sensor on; None when idle."""

    kind: str
    start_ns: int
    end_ns: int
    inferences: int
    latency_ns_p50: Optional[int] = None

    def __post_init__(self) -> None:
        kinds = ("idle-before", "power", "idle-after")
        _need(self.kind in kinds, "Window.kind", f"one of {', '.join(kinds)}", self.kind)
        _need(self.end_ns >= self.start_ns, "Window.end_ns", "start_ns or later", self.end_ns)
        _need(self.inferences >= 0, "Window.inferences", "0 or more", self.inferences)


@dataclass(frozen=True)
class Power:
    """The power pass, raw: idle-before, the windows, idle-after, and a trace over all of them.

    The passes of several rounds are joined one after the other: idle windows then stand between the others, too, and the
    trace has nothing between two rounds (a gap that is in no window means nothing). A trace that ended early does not reach
    the last windows.
    """

    trace: Trace
    windows: Tuple[Window, ...]


@dataclass(frozen=True)
class Result:
    """The answer to a job, raw. status "failed": `reason` says why, and only what was known by then is filled in.

    predictions: for each image the indices of the (at most) five largest outputs, best first, the lower index first
    among equals; None: not scored. load_ns: engine session created from a file that the page cache holds.
    first_inference_ns: the first one, not part of warmup_ns. peak_rss_bytes: the worker's, after the timing and before
    the scoring. power_reason: why there is no power trace, or why it ended early. windows: of a power pass whose meter is at
    the workstation, which joins them with its own trace to `power`; empty otherwise. operators_reason: why there is no
    profile by operator although it was asked for.
    """

    job_id: str
    agent_sha256: str
    status: str
    reason: Optional[str] = None
    engine: Optional[EngineInfo] = None
    conditions: Tuple[Conditions, ...] = ()
    warmup_ns: Tuple[int, ...] = ()
    blocks: Tuple[Block, ...] = ()
    predictions: Optional[Tuple[Tuple[int, ...], ...]] = None
    load_ns: Optional[int] = None
    first_inference_ns: Optional[int] = None
    peak_rss_bytes: Optional[int] = None
    sensor: str = "none"
    power: Optional[Power] = None
    power_reason: Optional[str] = None
    windows: Tuple[Window, ...] = ()
    operators: Optional[OpProfile] = None
    operators_reason: Optional[str] = None
    started_unix_s: Optional[float] = None
    warnings: Tuple[str, ...] = ()
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        _need(self.status in ("ok", "failed"), "Result.status", "ok or failed", self.status)
        _need(self.status == "ok" or bool(self.reason), "Result.reason", "given when the status is failed", self.reason)


@dataclass(frozen=True)
class EngineFound:
    """An engine as the board has it. version None: unusable, and `reason` says why (missing, broken, a signal)."""

    version: Optional[str]
    package: Optional[str] = None
    reason: Optional[str] = None
    providers: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Hello:
    """The answer to `hello`. writable: ROOT can hold files; free_bytes: on its file system. numpy: version or None."""

    agent_sha256: str
    python: str
    machine: str
    numpy: Optional[str]
    engines: Dict[str, EngineFound]
    conditions: Conditions
    writable: bool
    free_bytes: Optional[int]
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Status:
    """The answer to `start`, `status` and `cancel`.

    state: absent (no such job, or never started) | waiting (another job has the board) | running | done (a result is
    there) | lost (started, but its supervisor is gone without a result; `log` has the end of its log).
    fraction in [0, 1] and seconds_left: of the whole job, as far as they can be told. quiet_s: power is measured for so
    long from now on, and to ask meanwhile would be part of it.
    """

    state: str
    phase: Optional[str] = None
    fraction: Optional[float] = None
    seconds_left: Optional[float] = None
    log: Optional[str] = None
    quiet_s: Optional[float] = None


@dataclass(frozen=True)
class Clock:
    """The answer to `clock`: the board's monotonic clock when it was written. started_ns: when the process that answers was
    started, at the latest; None where the kernel does not tell. The host's question lies before, its receipt after."""

    monotonic_ns: int
    started_ns: Optional[int] = None
