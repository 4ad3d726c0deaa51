"""How much the agent adds: the median latency that it reports, over that of a bare loop of the same engine.

    python benchmarks/agent_overhead.py [ARTIFACT.onnx | ARTIFACT.tflite]... [--rounds 8] [--seconds 2] [--cpu N] [--json FILE]

Without artifacts, ResNet-20 with random weights is exported to onnx-fp32 and tflite-fp32. Both loops run in processes of
their own, on the same CPU, one after the other in the order agent, bare, bare, agent of every round (so that a drift of the
clock cancels), with the same seconds of warm-up and of timing. The bare loop holds nothing but the engine's own calls between
two readings of the clock. The agent is the zipapp, started and asked as on any board.

A .tflite file is in each round also timed by LiteRT's own `ai_edge_litert.tools.benchmark_litert_model`, on the same CPU: its
median (rounded to 0.01 ms by it) stands beside. It runs LiteRT's newer compiled-model interface, and its time holds neither
the setting of the input nor the fetching of the output; so it is told, and no target is made of it.

A round's ratio is (agent + agent) / (bare + bare). Printed: the median of the rounds' ratios, its bootstrap interval, the least
and the greatest; exit status 1 when the interval lies above the target, 3 when it is too wide to tell.
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

import numpy as np
from edgecompress_agent import wire

from edgecompress.board import bundle

TARGET = 1.01
ENGINES = {".onnx": "onnxruntime", ".tflite": "litert"}

BARE = {
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
name, run = session.get_inputs()[0].name, session.run
shape = [d if isinstance(d, int) else 1 for d in session.get_inputs()[0].shape]
feed = {name: numpy.random.default_rng(0).standard_normal(shape).astype(numpy.float32)}
def loop(seconds):
    taken, end = [], clock() + seconds * 1e9
    while True:
        before = clock()
        run(None, feed)
        after = clock()
        taken.append(after - before)
        if after >= end:
            return taken
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=path, num_threads=1)
interpreter.allocate_tensors()
source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
values = numpy.random.default_rng(0).standard_normal(source["shape"])
if source["dtype"] is numpy.int8:
    values = numpy.clip(numpy.rint(values / source["quantization"][0]) + source["quantization"][1], -128, 127)
values, index = values.astype(source["dtype"]), source["index"]
set_tensor, invoke, get_tensor = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
def loop(seconds):
    taken, end = [], clock() + seconds * 1e9
    while True:
        before = clock()
        set_tensor(index, values)
        invoke()
        get_tensor(target)
        after = clock()
        taken.append(after - before)
        if after >= end:
            return taken
""",
}
BARE_FRAME = """
import json, os, statistics, sys, time
path, seconds, warmup, cpu = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
if cpu >= 0:
    os.sched_setaffinity(0, [cpu])
import numpy
clock = time.monotonic_ns
{engine}
loop(warmup)
print(json.dumps(statistics.median(loop(seconds))))
"""


def bare_p50_ns(artifact: Path, engine: str, seconds: float, warmup_s: float, cpu: int) -> float:
    """Median of the bare loop in a process of its own."""
    code = BARE_FRAME.format(engine=BARE[engine])
    command = [sys.executable, "-c", code, str(artifact), str(seconds), str(warmup_s), str(cpu)]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))


def litert_tool_ns(artifact: Path, seconds: float, warmup_s: float, cpu: int, inference_ns: float) -> float:
    """Median of LiteRT's own benchmark of the file, over about as many inferences."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", "--model", str(artifact)]
        command += ["--num_threads", "1", "--num_runs", str(max(10, round(seconds * 1e9 / inference_ns)))]
        command += ["--warmup_runs", str(max(1, round(warmup_s * 1e9 / inference_ns))), "--result_json", str(out)]
        pin = (lambda: os.sched_setaffinity(0, [cpu])) if cpu >= 0 else None
        subprocess.run(command, check=True, capture_output=True, preexec_fn=pin)
        return float(json.loads(out.read_text())["latency"]["median_ms"]) * 1e6


class Agent:
    """The agent in a directory of its own, as a board has it."""

    def __init__(self, root: Path) -> None:
        self._root, self._count = root, 0
        data, sha256 = bundle.build()
        self._file = root / "agent" / f"{sha256}.pyz"
        for folder in ("agent", "blobs", "jobs"):
            (root / folder).mkdir()
        self._file.write_bytes(data)

    def p50_ns(self, artifact: Path, engine: str, seconds: float, warmup_s: float, cpu: int) -> float:
        """Median over all blocks of a job's result."""
        data = artifact.read_bytes()
        blob = wire.Blob(artifact.name, hashlib.sha256(data).hexdigest(), len(data))
        (self._root / "blobs" / blob.sha256).write_bytes(data)
        self._count += 1
        job = wire.Job(
            f"job-{self._count}", blob, engine, warmup_s=warmup_s, min_s=seconds, blocks=5, score=False,
            cpus=None if cpu < 0 else (cpu,), deadline_s=60 + 10 * (seconds + warmup_s),
        )  # fmt: skip
        directory = self._root / "jobs" / job.job_id
        directory.mkdir()
        (directory / "job.json").write_bytes(wire.encode(job))
        start = [sys.executable, "-I", str(self._file), "start", str(self._root), job.job_id]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        while not (directory / "result.json").exists():  # as the host waits: for the file
            time.sleep(0.2)
        result = wire.decode(wire.Result, (directory / "result.json").read_bytes())
        if result.status != "ok":
            sys.exit(f"the agent failed: {result.reason}")
        return statistics.median(ns for block in result.blocks for ns in block.latencies_ns)


def export_models(folder: Path) -> list[Path]:
    """ResNet-20 with random weights, as the project's own exporters write it."""
    from edgecompress import models
    from edgecompress.export import onnx_fp32, tflite_fp32
    from edgecompress.export.contract import ExportContext
    from edgecompress.study import ModelSpec

    in_shape = (3, 32, 32)
    model = models.build(
        ModelSpec.model_validate({"name": "resnet20"}), num_classes=10, in_shape=in_shape, seed=0
    ).eval()
    context = ExportContext(in_shape, np.zeros((1, *in_shape), np.float32), "uint8", folder)
    made = [folder / "resnet20.onnx", folder / "resnet20.tflite"]
    for exporter, path in zip((onnx_fp32, tflite_fp32), made, strict=True):
        exporter.export(model, path, context)
    return made


def compare(
    agent: Agent, artifact: Path, rounds: int, seconds: float, cpu: int
) -> tuple[list[float], list[float], list[float]]:
    """Of each round: ratio, the bare loop's median in ms, that of LiteRT's own tool (of a .tflite file)."""
    engine, warmup_s = ENGINES[artifact.suffix], max(0.3, seconds / 4)
    ratios, bare_ms, tool_ms = [], [], []
    for number in range(rounds):
        took = {"agent": 0.0, "bare": 0.0}
        for who in ("agent", "bare", "bare", "agent"):
            run = agent.p50_ns if who == "agent" else bare_p50_ns
            took[who] += run(artifact, engine, seconds, warmup_s, cpu)
        ratios.append(took["agent"] / took["bare"])
        bare_ms.append(took["bare"] / 2e6)
        if engine == "litert":
            tool_ms.append(litert_tool_ns(artifact, seconds, warmup_s, cpu, took["bare"] / 2) / 1e6)
        sys.stderr.write(f"\r{artifact.name}: round {number + 1} of {rounds}, ratio {ratios[-1]:.3f} ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return ratios, bare_ms, tool_ms


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median of the rounds."""
    drawn = np.random.default_rng(0).choice(ratios, (5000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="CPU to pin both to; -1: none")
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    asked = parser.parse_args()
    for artifact in asked.artifacts:
        if artifact.suffix not in ENGINES or not artifact.is_file():
            parser.error(f"{artifact}: not a .onnx or .tflite file")
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        (root := Path(folder) / "board").mkdir()
        agent = Agent(root)
        lines, kept = [], {}
        for artifact in asked.artifacts or export_models(Path(folder)):
            ratios, bare, tool = compare(agent, artifact, asked.rounds, asked.seconds, asked.cpu)
            kept[artifact.name] = {"ratios": ratios, "bare_p50_ms": bare, "litert_tool_p50_ms": tool}
            bare_ms = statistics.median(bare)
            low, high = interval(ratios)
            middle = statistics.median(ratios)
            verdict, status = "within the target", 0
            if low > TARGET:
                verdict, status = "ABOVE the target", 1
            elif high > TARGET:
                verdict, status = "cannot tell: the machine is too busy, or give more --rounds", 3
            worst = worst if worst == 1 else max(worst, status) if status != 1 else 1
            lines.append(
                f"{ENGINES[artifact.suffix]:12} {artifact.name:18} bare p50 {bare_ms:.4f} ms, agent / bare {middle:.3f} "
                f"[{low:.3f}, {high:.3f}] (rounds from {min(ratios):.3f} to {max(ratios):.3f}), target <= {TARGET}: {verdict}"
            )
            if tool:
                lines.append(
                    f"{'':12} by LiteRT's own benchmark_litert_model: p50 {statistics.median(tool):.2f} ms (rounds from "
                    f"{min(tool):.2f} to {max(tool):.2f}; inputs and outputs not in it)"
                )
    sys.stdout.write("\n".join(lines) + "\n")
    if asked.json:
        load = os.getloadavg()[0]
        asked.json.write_text(json.dumps({"load_1m_at_the_end": load, "artifacts": kept}, indent=1) + "\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
