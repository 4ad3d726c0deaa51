"""What a serial console carries: files, the agent and a whole job over a line of 115200 baud, of what the line can carry at most.

    python benchmarks/serial_console.py [--baud 115200] [--json FILE]

The line is two pseudo-terminals with a thread between them that lets a tenth of the baud rate through as bytes per second and
direction; a login shell of this machine stands at its far end. So what is measured is the protocol: a real adapter adds its
latency (16 ms with FTDI's defaults), a real board the time of its CPU. Then everything again with noise: per byte, 1 in 10,000 is
changed, 1 in 10,000 is lost, and a kernel's message is put in before 1 in 10,000. The model is 1.1 MB of random weights, which do
not compress.

The target is 0.75 of the line's rate for a file that does not compress, without noise; exit status 1 below it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgecompress_agent import wire  # noqa: E402

from edgecompress.board import bundle  # noqa: E402
from edgecompress.board.serial_transport import SerialTransport  # noqa: E402
from edgecompress.board.session import connect  # noqa: E402
from edgecompress.device_profile import DeviceProfile  # noqa: E402
from tests.board.serial_line import Line, Noise  # noqa: E402

TARGET = 0.75
FILE_BYTES = 250_000
NOISE = Noise(flips=1e-4, drops=1e-4, messages=1e-4)


@contextmanager
def board(folder: Path, baud: int, noise: Noise) -> Iterator[tuple[Line, DeviceProfile]]:
    """A shell at the end of a line, and a profile of it with a fresh workdir."""
    here = Path(tempfile.mkdtemp(dir=folder))
    line = Line(here, noise=noise, bytes_per_s=baud / 10)
    try:
        line.start_shell("bash")
        yield line, DeviceProfile(
            name="console", transport="serial", serial_port=line.port, baud=baud, python=sys.executable,
            workdir=str(here / "workdir"),
        )  # fmt: skip
    finally:
        line.stop()


def files(folder: Path, baud: int, noise: Noise) -> dict[str, Any]:
    """Connecting, and a file that does not compress up and down."""
    data = random.Random(0).randbytes(FILE_BYTES)
    with board(folder, baud, noise) as (line, profile):
        began = time.perf_counter()
        transport = SerialTransport(profile)
        found: dict[str, Any] = {"connect_s": time.perf_counter() - began, "connect_bytes_both_ways": line.carried}
        target = str(line.folder / "file")
        for way in ("up", "down"):
            began, carried = time.perf_counter(), line.carried
            if way == "up":
                transport.put(data, target)
            elif transport.get(target) != data:
                raise RuntimeError("the file did not come back whole")
            seconds = time.perf_counter() - began
            found[f"{way}_s"] = seconds
            found[f"{way}_of_line"] = len(data) / seconds / (baud / 10)
            found[f"{way}_bytes_both_ways"] = line.carried - carried
        began = time.perf_counter()
        asked = 20
        for _ in range(asked):
            transport.exists(target)
        found["question_s"] = (time.perf_counter() - began) / asked
        found["damages"] = line.damaged
        transport.close()
    return found


def model(folder: Path) -> tuple[Path, Path]:
    """A network of 1.1 MB as an ONNX file, and 40 images."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dice = np.random.default_rng(0)
    first, second = (
        numpy_helper.from_array(dice.normal(size=s).astype(np.float32), n)
        for s, n in (((3072, 90), "a"), ((90, 10), "b"))
    )
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]), helper.make_node("MatMul", ["active", "b"], ["logits"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])], [first, second],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "mlp.onnx")
    np.save(folder / "images.npy", dice.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    return folder / "mlp.onnx", folder / "images.npy"


def blob(path: Path) -> wire.Blob:
    data = path.read_bytes()
    return wire.Blob(path.name, hashlib.sha256(data).hexdigest(), len(data))


def job(folder: Path, baud: int, noise: Noise) -> dict[str, Any]:
    """A board that has nothing yet: the agent, the model with 40 images, a measurement of 2 s, the result; then a second job."""
    artifact, images = model(folder)
    asked = wire.Job(
        job_id="first", artifact=blob(artifact), engine="onnxruntime", images=blob(images), mean=(0.5,) * 3, std=(0.25,) * 3,
        warmup_s=0.2, min_s=2.0, blocks=5, deadline_s=120,
    )  # fmt: skip
    found: dict[str, Any] = {
        "agent_bytes": len(bundle.build()[0]), "model_bytes": asked.artifact.bytes, "images_bytes": blob(images).bytes,
    }  # fmt: skip
    blobs = {blob(path).sha256: path for path in (artifact, images)}
    with board(folder, baud, noise) as (line, profile):
        began = time.perf_counter()
        with connect(profile) as session:
            found["connect_s"] = time.perf_counter() - began
            began = time.perf_counter()
            session._agent.bring()
            found["agent_s"] = time.perf_counter() - began
            began = time.perf_counter()
            session.hello()
            found["hello_s"] = time.perf_counter() - began
            for name in ("first", "second"):
                began = time.perf_counter()
                result = session.measure(wire.from_json(wire.Job, wire.to_json(asked) | {"job_id": name}), blobs)
                found[f"{name}_job_s"] = time.perf_counter() - began
                if result.status != "ok":
                    raise RuntimeError(f"the job failed: {result.reason}")
            found["result_bytes"] = len(wire.encode(result))
        found["damages"] = line.damaged
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baud", type=int, default=115200)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    arguments = parser.parse_args()
    baud, figures = arguments.baud, dict[str, Any]()
    folder = Path(tempfile.mkdtemp())
    try:
        for name, noise in (("clean", Noise()), ("noisy", NOISE)):
            figures[name] = {"files": files(folder, baud, noise), "job": job(folder, baud, noise)}
            up, down = figures[name]["files"]["up_of_line"], figures[name]["files"]["down_of_line"]
            one = figures[name]["job"]
            print(
                f"{name}: {100 * up:.1f} % of the line up, {100 * down:.1f} % down; connecting {one['connect_s']:.1f} s, agent "
                f"({one['agent_bytes'] / 1e3:.0f} KB) {one['agent_s']:.1f} s, first job with a model of "
                f"{one['model_bytes'] / 1e6:.1f} MB {one['first_job_s']:.0f} s, second {one['second_job_s']:.1f} s",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        document = {
            "command": f"python benchmarks/serial_console.py --baud {baud}", "baud": baud, "line_bytes_per_s": baud / 10,
            "file_bytes": FILE_BYTES, "noise_per_byte": {"changed": NOISE.flips, "lost": NOISE.drops, "messages": NOISE.messages},
            "cpus": os.cpu_count(), "load_1m_at_the_end": os.getloadavg()[0], **figures,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    clean = figures["clean"]["files"]
    return int(min(clean["up_of_line"], clean["down_of_line"]) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
