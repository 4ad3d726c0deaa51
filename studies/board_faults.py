"""What 200 faults between a study and its board do to the results: nothing, or this finds it.

    python studies/board_faults.py [--faults 200] [--seed 0] [--minutes N] [--state FOLDER] [--out FOLDER] [--only KIND...]

A real study (two recipes of a network of 1.2 million weights, `onnx-fp32` and `onnx-int8`, trained and exported once) is measured
by `edgecompress run` on a "board" behind a real sshd and a TCP proxy on this machine: the real agent, ONNX Runtime, a workdir of
its own on a small file system (a tmpfs of 96 MB, where this process may mount one). Each trial starts with an empty board and a
copy of the run directory without measurements. While it runs, faults (`board_faults_injection`) are injected, each aimed at a phase
of the job that was drawn; kinds take turns in a drawn order. When the program ends and some rows say that they failed, or when it
was killed, it is run again, as a person would. A fault counts when something was in use that it broke.

Then the run directory is compared with that of an undisturbed run: the same variants, each measured once, with the same
predictions for every image and the same accuracies, as many blocks and timed seconds as asked for, no two measurements at the same
time; and the board is looked at: no job, no process and no lock is left.

Each trial is a file under --state; a run that was stopped goes on with the next one. Exit status 1: something was lost, doubled,
different or left behind; the trial's folder is then kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from board_faults_injection import FAULTS, ONLY_AT_WORK, PHASES, Scene  # noqa: E402
from edgecompress_agent import store, wire  # noqa: E402

from edgecompress.records import Measurement  # noqa: E402
from edgecompress.rundir import RunDir, write_atomically  # noqa: E402
from tests.board import loopback  # noqa: E402

STUDY = """
name: board-faults
model: {name: mlp, args: {hidden: 700}}
data: {name: digits}
baseline: {epochs: 2, lr: 0.05}
recipes:
  baseline: []
  magnitude: [{method: magnitude, sparsity: 0.5}]
formats: [onnx-fp32, onnx-int8]
devices: [board.yaml]
measure: {warmup_s: 0.2, min_s: 0.6, blocks: 3, rounds: 1, score_on: test}
"""
MIN_S, BLOCKS, VARIANTS = 0.6, 3, 4
DISK = "96m"
PER_TRIAL = 14
_AIM_S = 2.0
_RUN_S = 900.0
_RUNS = 20
"""A study that is not finished after so many runs counts as lost."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of a small size; None where this process may not mount one (`disk_full` is then left out)."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def profile(scene: Scene, folder: Path) -> str:
    return json.dumps({
        "name": "board", "transport": "ssh", "host": "127.0.0.1", "port": scene.proxy.port,
        "identity_file": str(scene.server.key), "known_hosts": str(folder / "known_hosts"),
        "ssh_config": str(folder / "ssh_config"), "python": sys.executable, "workdir": str(scene.workdir),
        "connect_timeout_s": 10, "reconnect_s": 60,
    })  # fmt: skip


def start(folder: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    with (folder / "host.log").open("ab") as log:
        command = [sys.executable, "-m", "edgecompress", "run", str(folder / "study.yaml"), "--out", str(run_dir)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "device_agents")])}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def measured(run_dir: Path) -> dict[str, dict[str, Any]]:
    """What a run directory has of each variant, by the key of its measurement, as far as it does not depend on time."""
    directory, found = RunDir(run_dir), {}
    for file in sorted((run_dir / "records" / "measurement").glob("*.json")):
        record = directory.record("measurement", file.stem, Measurement)
        assert record is not None
        result = wire.from_json(wire.Result, record.result)
        found[file.stem] = {
            "status": result.status,
            "predictions": [list(p) for p in result.predictions or ()],
            "accuracy": dataclasses.asdict(record.accuracy) if record.accuracy else None,
            "blocks": len(result.blocks),
            "timed_s": sum(sum(b.latencies_ns) for b in result.blocks) / 1e9,
            "from_ns": min(b.start_ns for b in result.blocks),
            "to_ns": max(b.start_ns + sum(b.latencies_ns) for b in result.blocks),
        }
    return found


ROW = (
    "recipe",
    "format",
    "device",
    "status",
    "reason",
    "params",
    "nonzero_params",
    "file_bytes",
    "top1",
    "top5",
    "scored_on",
)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of results.json without what depends on time."""
    document = json.loads((run_dir / "results.json").read_bytes())
    return [{key: row[key] for key in ROW} for row in document["rows"]]


def wrong(run_dir: Path, reference: Path, scene: Scene) -> list[str]:
    """Everything that differs from an undisturbed run, and everything that was left on the board."""
    found, expected, said = measured(run_dir), measured(reference), []
    if set(found) != set(expected):
        said.append(f"measurements {sorted(found)}, not {sorted(expected)}")
    for key in set(found) & set(expected):
        for name in ("status", "predictions", "accuracy", "blocks"):
            if found[key][name] != expected[key][name]:
                said.append(f"{key}: other {name}")
        if found[key]["timed_s"] < 0.95 * MIN_S or found[key]["blocks"] != BLOCKS:
            said.append(f"{key}: {found[key]['blocks']} blocks, {found[key]['timed_s']:.2f} s: not whole")
    if rows(run_dir) != rows(reference):
        said.append("other rows in results.json")
    spans = sorted((m["from_ns"], m["to_ns"]) for m in found.values())
    if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
        said.append("two measurements at the same time, or one result twice")
    for stage in ("failures/measurement", "failures/round", "records/round"):
        if left := sorted(p.name for p in (run_dir / stage).glob("*.json")):
            said.append(f"{stage} holds {left}")
    return said + left_on_board(scene)


def left_on_board(scene: Scene) -> list[str]:
    said = []
    for _ in range(100):  # the agent of the last job ends some moments after its result is there
        if not scene.processes():
            break
        time.sleep(0.1)
    if processes := scene.processes():
        said.append(f"processes left: {len(processes)}")
    if jobs := sorted(p.name for p in (scene.workdir / "jobs").iterdir()):
        said.append(f"jobs left: {jobs}")
    if store.is_locked(scene.workdir / "lock"):
        said.append("the board's lock is held")
    return said


def aim(scene: Scene, phase: str) -> bool:
    """Wait until the job is at a phase, and then for a moment."""
    until = time.monotonic() + _AIM_S
    while time.monotonic() < until and scene.host is not None and scene.host.poll() is None:
        if scene.phase().startswith(phase):
            time.sleep(scene.random.uniform(0, 0.15))
            return True
        time.sleep(0.003)
    return False


def trial(scene: Scene, folder: Path, template: Path, kinds: list[str], began: float) -> dict[str, Any]:
    """One study from an empty board to its end, with these kinds of faults on the way."""
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(template, run_dir)
    shutil.rmtree(scene.workdir, ignore_errors=True)
    (folder / "host.log").write_bytes(b"")
    waiting, injected, runs, statuses = list(kinds), [], 0, list[int]()
    while runs < _RUNS:
        runs += 1
        scene.host = start(folder, run_dir)
        while waiting and scene.host.poll() is None:
            kind = waiting[0]
            phase = scene.random.choice([p for p in PHASES if p.startswith("job") or kind not in ONLY_AT_WORK])
            aimed = aim(scene, phase)
            if scene.host.poll() is not None:
                break
            at_s, there = time.monotonic() - began, scene.phase()
            effect = FAULTS[kind](scene)
            injected.append(
                {
                    "kind": kind,
                    "at_s": round(at_s, 2),
                    "aimed_at": phase if aimed else None,
                    "phase": there,
                    **dataclasses.asdict(effect),
                }
            )
            if effect.hit or sum(f["kind"] == kind and not f["hit"] for f in injected) >= 3:
                waiting.pop(0)
            if kind != "host_killed":
                scene.pause(0.1, 0.8)
        try:
            statuses.append(scene.host.wait(_RUN_S))
        except subprocess.TimeoutExpired:
            scene.host.kill()
            statuses.append(scene.host.wait())
            return {"faults": injected, "runs": runs, "statuses": statuses, "wrong": [f"a run hung for {_RUN_S:g} s"]}
        if statuses[-1] == 0:
            break
    scene.host = None
    return {"faults": injected, "runs": runs, "statuses": statuses}


def deck(seed: int, disk: bool, only: list[str] | None) -> Iterator[str]:
    """Kinds without end, each as often as any other: all of them in a drawn order, and again."""
    kinds, draw = [k for k in FAULTS if (disk or k != "disk_full") and (not only or k in only)], random.Random(seed)
    while True:
        yield from draw.sample(kinds, len(kinds))


def prepare(scene: Scene, folder: Path, state: Path) -> tuple[Path, Path]:
    """(a run directory with everything but measurements, one that ran undisturbed)."""
    (folder / "study.yaml").write_text(STUDY)
    (folder / "ssh_config").touch()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{scene.proxy.port} {scene.server.host_key}\n")
    (folder / "board.yaml").write_text(profile(scene, folder))
    reference, template = folder / "reference", folder / "template"
    if (state / "models").is_dir():
        shutil.copytree(state / "models", reference)
    if start(folder, reference).wait():
        raise RuntimeError((folder / "host.log").read_text()[-3000:])
    shutil.copytree(reference, template)
    shutil.rmtree(template / "records" / "measurement")
    for name in ("run-id", "results.json", "report.html", "report.md", "results.csv"):  # each trial is a run of its own
        (template / name).unlink(missing_ok=True)
    if not (state / "models").is_dir():
        shutil.copytree(template, state / "models")
    return template, reference


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="go on until so many took effect (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after the trial in which this time is over")
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="KIND", help="these kinds of faults only")
    parser.add_argument("--state", type=Path, default=Path("runs/board_faults"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/boards")
    arguments = parser.parse_args()
    if reason := loopback.why_no_sshd():
        print(reason, file=sys.stderr)
        return 1
    state: Path = arguments.state
    state.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), False
    folder = Path(tempfile.mkdtemp(prefix="board-faults-"))
    with small_disk(folder / "disk") as disk, loopback.loopback_sshd(folder / "sshd") as server:
        proxy = loopback.Proxy(server.port).start()
        scene = Scene(server, proxy, folder / "disk" / "workdir", disk, random.Random(arguments.seed))
        template, reference = prepare(scene, folder, state)
        kinds = deck(arguments.seed, disk is not None, arguments.only)
        number = 0
        while True:
            wanted = [next(kinds) for _ in range(PER_TRIAL)]
            file = state / f"trial-{number:03d}.json"
            if not file.exists():
                scene.random.seed(f"{arguments.seed} {number}")
                trial_began = time.monotonic()
                made = trial(scene, folder, template, wanted, trial_began)
                made.setdefault("wrong", [])
                with suppress(OSError):
                    made["wrong"] += wrong(folder / "run", reference, scene)
                if not (folder / "run" / "results.json").exists():
                    made["wrong"].append("there are no results")
                made["seconds"] = round(time.monotonic() - trial_began, 1)
                write_atomically(file, json.dumps(made) + "\n")
                if made["wrong"]:
                    failed = True
                    kept = state / f"trial-{number:03d}-kept"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder / "run", kept / "run", symlinks=True)
                    shutil.copy(folder / "host.log", kept)
                    scene.kill()
                hits = [f["kind"] for f in made["faults"] if f["hit"]]
                print(
                    f"trial {number}: {made['seconds']} s, {made['runs']} runs, {', '.join(hits)}: {made['wrong'] or 'equal'}",
                    flush=True,
                )
            number += 1
            counted = summary(state, arguments)
            over = arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes
            if counted["hits"] >= arguments.faults or over:
                break
        proxy.stop()
    shutil.rmtree(folder, ignore_errors=True)
    write_atomically(arguments.out / "faults_ssh.json", json.dumps(counted, indent=1) + "\n")
    print(table(counted))
    return int(failed or counted["hits"] < arguments.faults or bool(counted["trials_with_anything_wrong"]))


def summary(state: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    trials = [json.loads(file.read_bytes()) for file in sorted(state.glob("trial-*.json"))]
    faults = [fault for one in trials for fault in one["faults"]]
    hits = [fault for fault in faults if fault["hit"]]
    return {
        "command": f"python studies/board_faults.py --faults {arguments.faults} --seed {arguments.seed}",
        "hits": len(hits),
        "injected": len(faults),
        "trials": len(trials),
        "runs_of_the_program": sum(one["runs"] for one in trials),
        "runs_that_ended_with_failed_rows": sum(status == 1 for one in trials for status in one["statuses"]),
        "measurements": VARIANTS * len(trials),
        "trials_with_anything_wrong": [one["wrong"] for one in trials if one["wrong"]],
        "hits_by_kind": dict(Counter(fault["kind"] for fault in hits)),
        "hits_by_phase": dict(Counter(fault["phase"] for fault in hits)),
        "seconds": sum(one["seconds"] for one in trials),
        "each": trials,
    }


def table(counted: dict[str, Any]) -> str:
    lines = [
        f"{counted['hits']} faults in {counted['trials']} studies, wrong: {len(counted['trials_with_anything_wrong'])}"
    ]
    for name in ("hits_by_kind", "hits_by_phase"):
        lines += [f"| {key} | {count} |" for key, count in sorted(counted[name].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
