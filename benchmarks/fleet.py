"""Many boards in one study: the wall time against that of the slowest single board, and the memory of the host's process.

    python benchmarks/fleet.py [--boards 50] [--seconds 120] [--repeats 3] [--json FILE]

Each board is a real sshd of its own on 127.0.0.1 (own port, host key, client key, workdir), reached by the tool's own SSH, with
the real agent and real jobs. What stands in is the engine: the boards' Python is a virtual environment of numpy and a module
`onnxruntime` whose `run` sleeps, since two CPUs cannot compute for 50 boards. So a job takes as long as on a board, and what is
measured is what the host adds.

All boards live on this machine: their sshd processes, and some ten starts of Python for each job (the agent's verbs, the imports
that are tried, the worker), share its CPUs with the host's process; on real boards they would not. How long that alone takes is
measured by jobs that hardly sleep (`empty`), and stands beside.

Each trial is a process of its own: `single` (one board), `fleet` (every board a device, one variant each), `pool` (all boards one
device, as many variants as boards), `empty` (as fleet). Wall: of the study, from connecting to the last measurement put
together; models and files are made before. Slowest board: the longest of the trial's own jobs, as the host waited for it.
Ratio: wall over slowest board, limit 1.25. Exit status 1 when a fleet's or pool's median is above it, 3 when so and others
were at work on this machine (load average above half its CPUs before the first trial).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgecompress.device_profile import DeviceProfile  # noqa: E402
from edgecompress.pools import Device, make_pool  # noqa: E402
from edgecompress.rundir import RunDir  # noqa: E402
from tests.board.fleet_case import Watching, linear, made_before, run, study  # noqa: E402
from tests.board.loopback import Sshd, free_port, make_key  # noqa: E402

LIMIT = 1.25
INFERENCE_S = 0.2
IMAGES = 5

STAND_IN = f'''"""Stands in for ONNX Runtime on a simulated board: an inference sleeps for {INFERENCE_S:g} s and answers zeros."""
import time
import numpy
__version__ = "0.0.0+sleeps"
class ExecutionMode:
    ORT_SEQUENTIAL = 0
class SessionOptions:
    pass
class _Tensor:
    def __init__(self, name, shape):
        self.name, self.shape, self.type = name, shape, "tensor(float)"
def get_available_providers():
    return ["CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, path, sess_options, providers):
        pass
    def get_providers(self):
        return get_available_providers()
    def get_inputs(self):
        return [_Tensor("input", [1, 1, 32, 32])]
    def get_outputs(self):
        return [_Tensor("logits", [1, 10])]
    def run(self, names, inputs):
        time.sleep({INFERENCE_S:g})
        return [numpy.zeros((1, 10), numpy.float32)]
'''


def sleeping_python(folder: Path) -> Path:
    """A virtual environment with this Python's numpy and the stand-in; its interpreter."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    own = Path(numpy.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (own / name).exists():
            (packages / name).symlink_to(own / name)
    (packages / "onnxruntime").mkdir()
    (packages / "onnxruntime" / "__init__.py").write_text(STAND_IN)
    return folder / "bin" / "python"


def boards(count: int, folder: Path, python: Path, stack: ExitStack) -> list[DeviceProfile]:
    """Start so many sshd, and pin their keys."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd separates its privileges
    profiles = []
    (folder / "ssh_config").touch()
    for number in range(count):
        home = folder / f"board-{number:02}"
        home.mkdir()
        make_key(home / "host_key")
        make_key(home / "client_key")
        (home / "authorized_keys").write_text((home / "client_key.pub").read_text())
        server = Sshd(home, free_port())
        # a home of its own: what this user's shell does when it starts (pyenv's takes a lock) is no board's affair
        server.extra += f"\nSetEnv HOME={home}"
        server.start()
        stack.callback(server.stop)
        (home / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
        profiles.append(DeviceProfile(
            name=home.name, transport="ssh", host="127.0.0.1", port=server.port, identity_file=server.key,
            known_hosts=home / "known_hosts", ssh_config=folder / "ssh_config", python=str(python),
            workdir=str(home / "workdir"), engines={"onnx": "onnxruntime"}, connect_timeout_s=60,
        ))  # fmt: skip
    return profiles


def trial(kind: str, seconds: float, profiles: list[DeviceProfile], run_dir: RunDir) -> dict[str, Any]:
    """One study in this process. `kind`: as in the module's docstring."""
    asked = study(
        len(profiles) if kind == "pool" else 1, rounds=1, min_s=0.01 if kind == "empty" else seconds, warmup_s=0.0,
        score_images=IMAGES,
    )  # fmt: skip
    devices: dict[str, Device] = {"pool": make_pool("pool", profiles)} if kind == "pool" else {}
    devices = devices or {profile.name: profile for profile in profiles}
    made_before(run_dir, asked, devices, linear)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watching, most = threading.Event(), [0]

    def count_threads() -> None:
        while not watching.wait(0.5):
            most[0] = max(most[0], threading.active_count())

    threading.Thread(target=count_threads, daemon=True).start()
    cpu_began, began = time.process_time(), time.monotonic()
    rows = run(run_dir, asked, devices, Watching())
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    watching.set()
    jobs = [json.loads(p.read_text())["seconds"] for p in sorted(run_dir.path("records", "measurement").glob("*.json"))]
    failed = [row["reason"] for row in rows if row["status"] != "ok"]
    return {
        "kind": kind, "boards": len(profiles), "variants": len(rows), "failed": failed, "wall_s": round(wall_s, 2),
        "slowest_board_s": round(max(jobs), 2), "fastest_board_s": round(min(jobs), 2), "ratio": round(wall_s / max(jobs), 4),
        "boards_that_measured": len({row["member"] for row in rows} - {None}), "host_cpu_s": round(cpu_s, 2),
        "host_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "host_before_mb": round(before_kb / 1024, 1), "most_threads": most[0],
    }  # fmt: skip


def child(kind: str, seconds: float, profiles: list[DeviceProfile], folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    (folder / "profiles.json").write_text(json.dumps([p.model_dump(mode="json") for p in profiles]))
    argv = [sys.executable, __file__, "--trial", kind, "--seconds", str(seconds), "--folder", str(folder)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["load_after_1m"] = round(os.getloadavg()[0], 2)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0, help="of sleeping inferences in a job")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.trial:
        profiles = [DeviceProfile.model_validate(p) for p in json.loads((asked.folder / "profiles.json").read_text())]
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(trial(asked.trial, asked.seconds, profiles, RunDir(Path(name) / "run"))))
        return 0
    load, trials = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        profiles = boards(asked.boards, folder, sleeping_python(folder / "python"), stack)
        for number in range(asked.repeats):
            for kind in ("fleet", "pool", "single", "empty"):
                made = child(kind, asked.seconds, profiles[:1] if kind == "single" else profiles, folder)
                trials.append({"repeat": number, **made})
                print(json.dumps(trials[-1]), flush=True)
                document = summary(asked, trials, load)
                if asked.json:  # after each trial: a run of an hour that is stopped has not been for nothing
                    asked.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wall over the slowest board, medians: {document['median_ratio']}; limit {LIMIT}")
    return 0 if document["within_limit"] else 3 if load > (os.cpu_count() or 1) / 2 else 1


def summary(asked: argparse.Namespace, trials: list[dict[str, Any]], load: float) -> dict[str, Any]:
    """The document of the trials so far."""
    kinds = list(dict.fromkeys(t["kind"] for t in trials))
    ratios = {kind: statistics.median(t["ratio"] for t in trials if t["kind"] == kind) for kind in kinds}
    walls = {kind: statistics.median(t["wall_s"] for t in trials if t["kind"] == kind) for kind in kinds}
    within = all(ratios[kind] <= LIMIT for kind in ("fleet", "pool") if kind in ratios)
    return {
        "command": f"python benchmarks/fleet.py --boards {asked.boards} --seconds {asked.seconds:g} --repeats {asked.repeats}",
        "limit": LIMIT, "within_limit": within and not any(t["failed"] for t in trials), "median_ratio": ratios,
        "median_wall_s": walls, "inference_s": INFERENCE_S, "load_before_1m": round(load, 2),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "trials": trials,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
