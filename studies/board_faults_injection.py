"""The faults of `board_faults`: what breaks between a study and its board, and whether it really hit something that was in use."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.board.loopback import Proxy, Sshd

FILLER = "filler"


@dataclass
class Scene:
    """Everything a fault may touch. disk: the file system of workdir, of a small size; None: it cannot be filled here."""

    server: Sshd
    proxy: Proxy
    workdir: Path
    disk: Path | None
    random: random.Random
    host: subprocess.Popen[bytes] | None = None

    def phase(self) -> str:
        """What the job on the board is at, by what lies there; else what the host is at."""
        for directory in _entries(self.workdir / "jobs"):
            if (directory / "result.json").exists():
                return "collecting"
            with suppress(OSError, ValueError, KeyError):
                return f"job: {json.loads((directory / 'progress.json').read_bytes())['phase']}"
            return "job: starting" if (directory / "lock").exists() else "job: sending"
        if any(entry.name.endswith(".part") for entry in _entries(self.workdir / "blobs")):
            return "uploading"
        return "connecting" if not any(_entries(self.workdir / "blobs")) else "between jobs"

    def processes(self, *words: str) -> list[int]:
        """Those of the board's agent: their command line names workdir, and one of the words."""
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                arguments = file.read_bytes().decode("utf-8", "replace").split("\0")
                # a sentence of the host's own command line would hold workdir within another word
                mine = any(a.startswith(f"{self.workdir}/agent/") for a in arguments)
                if mine and (not words or any(word in arguments for word in words)):
                    found.append(int(file.parent.name))
        return found

    def kill(self, *words: str) -> int:
        killed = 0
        for pid in self.processes(*words):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    def pause(self, low: float, high: float) -> float:
        seconds = self.random.uniform(low, high)
        time.sleep(seconds)
        return round(seconds, 2)


@dataclass(frozen=True)
class Effect:
    """hit: something that was in use broke. what: in numbers, for the record."""

    hit: bool
    what: dict[str, float] = field(default_factory=dict)


def cut(scene: Scene) -> Effect:
    """Every connection ends at once; a new one is taken."""
    open_now = scene.proxy.connections
    scene.proxy.cut(refuse=False)
    return Effect(open_now > 0, {"connections": open_now})


def outage(scene: Scene) -> Effect:
    """Every connection ends, and new ones are refused for a while."""
    open_now, accepted = scene.proxy.connections, scene.proxy.accepted
    scene.proxy.cut()
    seconds = scene.pause(0.3, 2)
    scene.proxy.mend()
    return Effect(
        open_now > 0, {"connections": open_now, "seconds": seconds, "accepted": scene.proxy.accepted - accepted}
    )


def stall(scene: Scene) -> Effect:
    """Nothing moves for a while, and nothing is lost."""
    held = scene.proxy.held
    scene.proxy.stalled.set()
    seconds = scene.pause(0.5, 3)
    scene.proxy.mend()
    return Effect(scene.proxy.held > held, {"seconds": seconds, "pieces": scene.proxy.held - held})


def forgotten(scene: Scene) -> Effect:
    """The open connections move nothing any more and nobody is told; new ones work."""
    open_now, held = scene.proxy.connections, scene.proxy.held
    scene.proxy.forget()
    time.sleep(1)
    return Effect(
        open_now > 0 and scene.proxy.held > held, {"connections": open_now, "pieces": scene.proxy.held - held}
    )


def slow(scene: Scene) -> Effect:
    """20 to 200 KB/s for a while."""
    held = scene.proxy.held
    scene.proxy.bytes_per_s = rate = scene.random.uniform(20e3, 200e3)
    seconds = scene.pause(0.5, 2.5)
    scene.proxy.mend()
    held = scene.proxy.held - held
    return Effect(held > 0, {"seconds": seconds, "pieces": held, "bytes_per_s": round(rate)})


def delay(scene: Scene) -> Effect:
    """Every piece waits for 20 to 300 ms."""
    held = scene.proxy.held
    scene.proxy.delay_s = each = scene.random.uniform(0.02, 0.3)
    seconds = scene.pause(0.5, 2.5)
    scene.proxy.mend()
    return Effect(
        scene.proxy.held > held, {"seconds": seconds, "pieces": scene.proxy.held - held, "delay_s": round(each, 3)}
    )


def connection_killed(scene: Scene) -> Effect:
    """The sshd processes that serve connections are killed; the listening one stays."""
    killed = scene.server.kill_connections()
    return Effect(killed > 0, {"processes": killed})


def sshd_restarted(scene: Scene) -> Effect:
    """sshd and all that it serves is killed, and started again after a while."""
    open_now = scene.proxy.connections
    scene.server.stop()
    seconds = scene.pause(0.3, 2)
    scene.server.start()
    return Effect(open_now > 0, {"connections": open_now, "seconds": seconds})


def rebooted(scene: Scene) -> Effect:
    """Every process of the board is killed, sshd first; what it had written stays, lock files too; it comes up after a while."""
    open_now = scene.proxy.connections
    scene.server.stop()
    killed = scene.kill()
    locks = sum(1 for _ in scene.workdir.rglob("lock"))
    seconds = scene.pause(0.5, 2)
    scene.server.start()
    what = {"connections": open_now, "processes": killed, "lock_files": locks, "seconds": seconds}
    return Effect(open_now > 0 or killed > 0, what)


def supervisor_killed(scene: Scene) -> Effect:
    """The agent that watches a job is killed, so that its worker ends as well."""
    killed = scene.kill("start")
    return Effect(killed > 0, {"processes": killed})


def agent_killed(scene: Scene) -> Effect:
    """All of the agent is killed at once: supervisor, worker, and the verb that is being answered."""
    killed = scene.kill()
    return Effect(killed > 0, {"processes": killed})


def worker_killed(scene: Scene) -> Effect:
    """The process with the engine is killed, as by the kernel when memory runs out."""
    killed = scene.kill("_work")
    return Effect(killed > 0, {"processes": killed})


def disk_full(scene: Scene) -> Effect:
    """The file system of workdir is filled to its last byte, and freed after a while."""
    assert scene.disk is not None
    written = 0
    with suppress(OSError), (scene.disk / FILLER).open("wb", buffering=0) as filler:
        while True:
            written += filler.write(b"\0" * 4096)
    facts = os.statvfs(scene.disk)
    seconds = scene.pause(0.5, 2)
    (scene.disk / FILLER).unlink()
    return Effect(written > 0 and facts.f_bavail == 0, {"filled_bytes": written, "seconds": seconds})


def host_killed(scene: Scene) -> Effect:
    """The workstation's process is killed with -9. Whoever runs the study runs it again."""
    host = scene.host
    assert host is not None
    host.kill()
    return Effect(host.wait() == -signal.SIGKILL, {"seconds": scene.pause(0, 1)})


FAULTS: dict[str, Callable[[Scene], Effect]] = {
    fault.__name__: fault
    for fault in (
        cut, outage, stall, forgotten, slow, delay, connection_killed, sshd_restarted, rebooted, supervisor_killed, agent_killed,
        worker_killed, disk_full, host_killed,
    )
}  # fmt: skip

PHASES = (
    "connecting", "uploading", "between jobs", "job: sending", "job: starting", "job: loading", "job: warming up", "job: timing",
    "job: scoring", "collecting",
)  # fmt: skip
"""Beginnings of what `Scene.phase` tells: a fault is aimed at one of them."""

ONLY_AT_WORK = ("supervisor_killed", "agent_killed", "worker_killed", "disk_full")
"""Faults that need a job that runs, or writes."""


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
