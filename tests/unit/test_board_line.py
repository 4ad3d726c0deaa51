"""Who does what: one line a board, in a log only what changed, on a terminal bars that many threads may move."""

from __future__ import annotations

import io
import os
import pty
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgecompress.board_line import BoardLine, Overall
from edgecompress.cli.bars import progress
from edgecompress.dealing import Stopped
from edgecompress.progress import SILENT, Task


class Seen:
    """A task and a progress that remember."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []
        self.at = 0.0

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        yield self

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, steps: float = 1) -> None:
        self.at += steps

    def describe(self, text: str) -> None:
        self.shown.append(text)

    def restart(self, label: str, total: float) -> None:
        self.shown.append(f"{label} of {total:g}")
        self.at = 0.0


def line(seen: Seen, stopped: threading.Event | None = None) -> BoardLine:
    return BoardLine("pi", seen, seen, stopped or threading.Event())


def test_a_lost_link_is_a_line_once_and_so_is_its_return() -> None:
    seen = Seen()
    board = line(seen)
    for left in (30, 28, 24):
        board.describe(f"link lost, connecting again for {left} s")
    board.advance(0)
    board.describe("timing")
    assert seen.said == ["pi: link lost, connecting again for 30 s", "pi: the link is back"]
    assert len(seen.shown) == 4


def test_a_part_of_a_job_has_the_line_for_a_while() -> None:
    seen = Seen()
    board = line(seen)
    with board.task("baseline onnx-fp32, round 1 of 2", 1.0) as job:
        with board.task("pi: sending test.npy", 3000) as part:
            part.advance(3000)
        job.advance(0.5)
    assert seen.shown[:3] == [
        "pi: baseline onnx-fp32, round 1 of 2 of 1", "pi: sending test.npy of 3000", "pi: baseline onnx-fp32, round 1 of 2 of 1",
    ]  # fmt: skip


def test_the_end_of_a_run_reaches_whoever_tells_the_line_something() -> None:
    stopped = threading.Event()
    board = line(Seen(), stopped)
    stopped.set()
    for call in (
        lambda: board.advance(0),
        lambda: board.describe("x"),
        lambda: board.restart("x", 1),
        lambda: board.rest(60),
        lambda: board.task("x", 1).__enter__(),
    ):
        with pytest.raises(Stopped):
            call()
    assert not isinstance(Stopped(), Exception), "no step takes it for its own failure"


def test_the_line_above_counts_the_boards_at_work() -> None:
    seen = Seen()
    overall = Overall(seen, 3)
    threads = [threading.Thread(target=overall.board_ended) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.shown[-1] == "1 of 3 boards at work"


def test_many_threads_move_their_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real pseudo-terminal: each board's line stands there with its own text, and nothing raises."""
    ours, theirs = pty.openpty()
    saved, written, errors = os.dup(2), bytearray(), list[BaseException]()

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                written.extend(data)
        except OSError:  # its other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    os.dup2(theirs, 2)
    os.close(theirs)
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))

    def work(number: int, bars: object) -> None:
        try:
            with bars.task(f"b{number}", 1.0) as task:  # type: ignore[attr-defined]
                board = BoardLine(f"b{number}", task, bars, threading.Event())  # type: ignore[arg-type]
                for _ in range(5):
                    with board.task(f"variant-{number}", 1.0) as job:
                        for _ in range(10):
                            job.advance(0.1)
                        board.describe("timing")
                bars_drawn.wait(60)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    bars_drawn = threading.Event()
    wanted = [f"b{number}: variant-{number}" for number in range(8)]
    try:
        with progress() as bars:
            threads = [threading.Thread(target=work, args=(number, bars)) for number in range(8)]
            for thread in threads:
                thread.start()
            until = time.monotonic() + 30
            while not all(text.encode() in written for text in wanted) and time.monotonic() < until:
                time.sleep(0.05)  # rich draws ten times a second
            bars_drawn.set()
            for thread in threads:
                thread.join()
    finally:
        sys.stderr.close()
        os.dup2(saved, 2)
        os.close(saved)
        reader.join(5)
        os.close(ours)
    assert not errors
    text = written.decode("utf-8", "replace")
    assert all(line in text for line in wanted)


def test_lines_of_several_threads_in_a_log_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress() as lines:
        assert not log.isatty()

        def work(number: int) -> None:
            for _ in range(50):
                lines.say(f"b{number}: " + "x" * 80)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {line[3:] for line in log.getvalue().splitlines()} == {" " + "x" * 80}
    with SILENT.task("x", 1) as task:
        task.restart("y", 1)
