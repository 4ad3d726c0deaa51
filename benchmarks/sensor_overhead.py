"""What a sensor costs: latency with it on over latency with it off, the agent's own memory, and its start-up.

    python benchmarks/sensor_overhead.py [ARTIFACT.onnx | ARTIFACT.tflite]... [--rounds 7] [--seconds 2] [--interval-ms 5] [--cpu N]

Without artifacts, ResNet-20 with random weights is exported to onnx-fp32 and tflite-fp32. The sensor is a recording played back
at the rate asked for: it makes the sampler's thread wake, read, count and store as any sensor does, everywhere.

- p50 on / off: the zipapp measures; its timing pass has the sensor off, its power pass has it on. Every round is a process of
  its own. The median of the rounds' ratios with its bootstrap interval against 1.02.
- Memory: the peak resident memory of a process of the agent that measures (timing, power pass, result written), less that of a
  process that does nothing but import numpy and the engine, load the same file and run it once. At most 20 MB.
- Start: from the verb `start` to the first inference's begin, less that of a process that only imports the engine and numpy (its
  own Python's start included). At most 0.5 s more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgecompress_agent import wire

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_overhead import ENGINES, export_models, interval

from edgecompress.board import bundle

LATENCY, MEMORY_BYTES, START_S = 1.02, 20_000_000, 0.5

BARE = """
import sys, time
path, engine, cpu, load = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "load"
if cpu >= 0:
    import os
    os.sched_setaffinity(0, [cpu])
import numpy
if engine == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if load:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        shape = [d if isinstance(d, int) else 1 for d in source.shape]
        session.run(None, {source.name: numpy.zeros(shape, numpy.float32)})
else:
    from ai_edge_litert.interpreter import Interpreter
    if load:
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        interpreter.invoke()
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


def bare(artifact: Path, engine: str, cpu: int, *, load: bool) -> tuple[int, float]:
    """(peak resident bytes, seconds from its start to its end) of a process with nothing but the engine."""
    began = time.monotonic()
    command = [sys.executable, "-c", BARE, str(artifact), engine, str(cpu), "load" if load else "import"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return int(out.split()[-1]), time.monotonic() - began


class Board:
    """The agent in a directory of its own."""

    def __init__(self, root: Path, recording: Path) -> None:
        self._root, self._recording, self._count = root, recording, 0
        data, sha256 = bundle.build()
        for folder in ("agent", "blobs", "jobs"):
            (root / folder).mkdir(parents=True)
        self._file = root / "agent" / f"{sha256}.pyz"
        self._file.write_bytes(data)

    def measure(self, artifact: Path, engine: str, seconds: float, cpu: int) -> tuple[wire.Result, int, int]:
        """(result, when `start` was asked, the worker's peak resident bytes up to its end)."""
        data = artifact.read_bytes()
        blob = wire.Blob(artifact.name, hashlib.sha256(data).hexdigest(), len(data))
        (self._root / "blobs" / blob.sha256).write_bytes(data)
        self._count += 1
        job = wire.Job(
            f"job-{self._count}", blob, engine, warmup_s=max(0.3, seconds / 4), min_s=seconds, blocks=5, score=False,
            cpus=None if cpu < 0 else (cpu,), sensor="replay",
            sensor_options={"path": str(self._recording), "loop": True},
            power=wire.PowerPlan(window_s=seconds, min_samples=0, windows=1, idle_s=0.2, settle_s=0.1),
        )  # fmt: skip
        directory = self._root / "jobs" / job.job_id
        directory.mkdir()
        (directory / "job.json").write_bytes(wire.encode(job))
        asked_ns = time.monotonic_ns()
        start = [sys.executable, "-I", str(self._file), "start", str(self._root), job.job_id]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        peak = 0
        while not (directory / "result.json").exists():
            peak = max(peak, self._peak(job.job_id))
            time.sleep(0.02)
        result = wire.decode(wire.Result, (directory / "result.json").read_bytes())
        if result.status != "ok" or result.power is None:
            sys.exit(f"the agent failed: {result.reason or result.power_reason}")
        return result, asked_ns, peak

    def _peak(self, job_id: str) -> int:
        """Of the process whose command line ends with `_work ROOT JOB`."""
        wanted = f"_work\0{self._root}\0{job_id}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().endswith(wanted):
                    status = (folder / "status").read_text()
                    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
            except (OSError, IndexError):
                continue  # it has just ended
        return 0


def record(folder: Path, interval_s: float) -> Path:
    """A second of power at this rate."""
    count = max(2, round(1 / interval_s))
    info = wire.SensorInfo("made", "made for this benchmark", "board", interval_s, 0.001, 0.0, 0.0)
    trace = wire.Trace(
        info, tuple(round(i * interval_s * 1e9) for i in range(count)), tuple(3_000_000 + i for i in range(count))
    )
    file = folder / "recording.json"
    file.write_bytes(wire.encode(trace))
    return file


def first_inference_ns(result: wire.Result) -> int:
    """When the first inference began, at the latest: the end of the warm-up less what it took, less the first itself."""
    warm = next(c for c in result.conditions if c.phase == "warm")
    return warm.monotonic_ns - sum(result.warmup_ns) - (result.first_inference_ns or 0)


def verdict(low: float, high: float, limit: float) -> tuple[str, int]:
    if low > limit:
        return "ABOVE the limit", 1
    return ("within the limit", 0) if high <= limit else ("cannot tell: too noisy, or give more --rounds", 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="CPU to pin to; -1: none")
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    asked = parser.parse_args()
    statuses, kept = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = Board(folder / "board", record(folder, asked.interval_ms / 1e3))
        for artifact in asked.artifacts or export_models(folder):
            engine = ENGINES[artifact.suffix]
            rows: list[dict[str, float]] = []
            for _ in range(asked.rounds):
                result, asked_ns, peak = board.measure(artifact, engine, asked.seconds, asked.cpu)
                off = statistics.median(ns for block in result.blocks for ns in block.latencies_ns)
                power = result.power
                assert power is not None
                on = next(w.latency_ns_p50 for w in power.windows if w.kind == "power")
                assert on is not None
                rows.append({
                    "on_ns": on, "off_ns": off, "samples": len(power.trace.t_ns), "late": power.trace.late,
                    "agent_bytes": peak, "bare_bytes": bare(artifact, engine, asked.cpu, load=True)[0],
                    "agent_start_s": (first_inference_ns(result) - asked_ns) / 1e9 - (result.load_ns or 0) / 1e9,
                    "import_s": bare(artifact, engine, asked.cpu, load=False)[1],
                })  # fmt: skip
            kept[artifact.name] = rows
            ratios = [row["on_ns"] / row["off_ns"] for row in rows]
            own = statistics.median(row["agent_bytes"] - row["bare_bytes"] for row in rows)
            more = statistics.median(row["agent_start_s"] - row["import_s"] for row in rows)
            low, high = interval(ratios)
            said, status = verdict(low, high, LATENCY)
            print(
                f"{engine} {artifact.name}: p50 off {statistics.median(r['off_ns'] for r in rows) / 1e6:.4f} ms, sensor on / off "
                f"{statistics.median(ratios):.4f} [{low:.4f}, {high:.4f}] at {asked.interval_ms:g} ms, limit {LATENCY}: {said}; "
                f"readings {rows[0]['samples']}, late {sum(r['late'] for r in rows)}"
            )
            print(f"  memory over engine and model: {own / 1e6:.1f} MB, limit {MEMORY_BYTES / 1e6:g} MB")
            print(f"  start to first inference, over the engine's import: {more:+.2f} s, limit {START_S} s")
            statuses += [status, int(own > MEMORY_BYTES), int(more > START_S)]
    if asked.json:
        asked.json.write_text(json.dumps(kept, indent=1))
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
