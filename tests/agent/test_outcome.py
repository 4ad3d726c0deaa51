"""A result is left whatever happens: on a full disk, without memory, killed in the middle. Nothing here is simulated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edgecompress_agent import outcome, wire

from . import tiny_models
from .conftest import Board

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(board: Board) -> Iterator[Callable[[int], Board]]:
    """The board's directory on a file system of so many MB."""
    mounted = []

    def make(megabytes: int) -> Board:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(board.root)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs to mount a small tmpfs (root)")
        mounted.append(board.root)
        return board

    yield make
    for root in mounted:
        subprocess.run(["umount", "-l", str(root)], check=True)


def fill(root: Path) -> None:
    with (root / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                pass
    assert os.statvfs(root).f_bavail == 0


def test_a_disk_without_room_for_a_result_is_told_before_anything_is_measured(
    small_disk: Callable[[int], Board],
) -> None:
    board = small_disk(4)
    blob = wire.Blob("model.onnx", "0" * 64, 1)
    board.put_job(wire.Job("job", blob, "onnxruntime", score=False))
    said = board.error("start", "job")
    assert "the disk is full: a result needs up to 16 MB" in said and "MB are free" in said
    assert not (board.directory("job") / "result.json").exists()
    assert board.error("start", "job") == said, "asked again, it says the same"


@pytest.mark.heavy
def test_a_disk_that_fills_up_meanwhile_costs_nothing(small_disk: Callable[[int], Board], tmp_path: Path) -> None:
    board = small_disk(24)
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "m.onnx"))
    board.put_job(wire.Job("job", blob, "onnxruntime", warmup_s=3, min_s=0.2, blocks=2, score=False))
    board.ask("start", "job")
    board.phase("job", "warming up")
    fill(board.root)
    result = board.result("job")
    assert result.status == "ok" and len(result.blocks) == 2
    (board.root / "filler").unlink()
    assert board.ask("clean", "job") == {"removed": True}


@pytest.mark.heavy
def test_a_disk_without_room_for_the_profilers_events_costs_the_profile_only(
    small_disk: Callable[[int], Board], tmp_path: Path
) -> None:
    board = small_disk(17)
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "m.onnx", repeat=60))
    board.put_job(wire.Job(
        "job", blob, "onnxruntime", warmup_s=0.02, min_s=0.1, blocks=2, score=False, profile_ops=True
    ))  # fmt: skip
    board.ask("start", "job")
    result = board.result("job")
    assert result.status == "ok" and len(result.blocks) == 2
    assert result.operators is None
    assert "the disk is full: of what ONNX Runtime's profiler writes" in (result.operators_reason or "")
    assert not list(board.directory("job").glob("operators*"))


@pytest.mark.heavy
def test_a_worker_that_is_killed_while_power_is_measured_leaves_latencies_and_trace(
    board: Board, tmp_path: Path
) -> None:
    """As the kernel does when the memory runs out."""
    (tmp_path / "trace.csv").write_text("seconds,watts\n" + "".join(f"{i / 100},{2 + i % 2}\n" for i in range(3000)))
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "m.onnx"))
    board.put_job(wire.Job(
        "job", blob, "onnxruntime", warmup_s=0.1, min_s=0.2, blocks=2, score=False, sensor="replay",
        sensor_options={"path": str(tmp_path / "trace.csv")},
        power=wire.PowerPlan(window_s=0.5, min_samples=10, windows=20, idle_s=0.2, settle_s=0.05),
    ))  # fmt: skip
    board.ask("start", "job")
    board.phase("job", "measuring power")
    time.sleep(3)
    os.kill(board.worker("job"), signal.SIGKILL)
    result = board.result("job")
    assert result.status == "failed" and "SIGKILL" in (result.reason or "")
    assert len(result.blocks) == 2 and result.engine is not None
    assert result.power is not None
    active = [w for w in result.power.windows if w.kind == "power"]
    assert 1 <= len(active) < 20
    inside = [t for t in result.power.trace.t_ns if active[0].start_ns <= t <= active[0].end_ns]
    assert len(inside) >= 10


@pytest.mark.heavy
def test_a_model_that_does_not_fit_into_memory_is_one_clear_reason(board: Board, tmp_path: Path) -> None:
    blob = board.put_blob(tiny_models.write_onnx_hungry(tmp_path / "m.onnx", 500_000_000))
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -v 1000000\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    board.python = str(limited)
    board.put_job(wire.Job("job", blob, "onnxruntime", warmup_s=0.1, min_s=0.1, blocks=1, score=False))
    board.ask("start", "job")
    result = board.result("job")
    assert result.status == "failed"
    assert "the memory of the board does not suffice: it ran out while loading" in (result.reason or ""), result.reason


def test_a_result_that_outgrows_its_room_on_a_full_disk_leaves_the_reason(small_disk: Callable[[int], Board]) -> None:
    board = small_disk(40)
    directory = board.directory("job")
    directory.mkdir(parents=True)
    outcome.reserve(directory)
    large = wire.Result("job", "a" * 64, "failed", "it was not finished", warmup_ns=(123_456_789_012,) * 1_500_000)
    outcome.keep(directory, large)
    fill(board.root)
    with pytest.raises(OSError, match="No space left"):
        outcome.leave(directory, large)
    outcome.leave_failed(directory, "job", "the disk of the board is full")
    left = wire.decode(wire.Result, (directory / "result.json").read_bytes())
    assert (left.status, left.reason, left.warmup_ns) == ("failed", "the disk of the board is full", ())


def test_a_result_that_outgrows_its_room_is_written_all_the_same(tmp_path: Path) -> None:
    outcome.reserve(tmp_path)
    assert (tmp_path / ".reserved").stat().st_size == outcome.RESERVED_BYTES
    small = wire.Result("job", "a" * 64, "ok")
    outcome.leave(tmp_path, small)
    assert wire.decode(wire.Result, (tmp_path / "result.json").read_bytes()) == small
    outcome.reserve(tmp_path)
    large = wire.Result("job", "a" * 64, "ok", warmup_ns=(123_456_789_012,) * 1_500_000)
    outcome.leave(tmp_path, large)
    assert (tmp_path / "result.json").stat().st_size > outcome.RESERVED_BYTES
    assert wire.decode(wire.Result, (tmp_path / "result.json").read_bytes()) == large
