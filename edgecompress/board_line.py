"""Who does what: the line of one board among those that measure at the same time, and the line above them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgecompress.board.agent import LINK_LOST
from edgecompress.dealing import Stopped
from edgecompress.progress import Progress, Task


class Overall:
    """How many boards are at work, and how far all of them are. Shown for several boards only."""

    def __init__(self, task: Task, boards: int) -> None:
        self._task, self._boards, self._at_work = task, boards, boards
        self._lock = threading.Lock()

    def round_ended(self) -> None:
        self._task.advance()

    def board_ended(self) -> None:
        with self._lock:
            self._at_work -= 1
            self._task.describe(f"{self._at_work} of {self._boards} boards at work")


class BoardLine:
    """The progress of one board, for its own thread: a bar on a terminal; elsewhere what changed, once.

    It is also where the end of a run reaches a thread that waits for a board: everything it is told raises Stopped then.
    """

    def __init__(self, board: str, task: Task, progress: Progress, stopped: threading.Event) -> None:
        self._board, self._task, self._progress, self._stopped = board, task, progress, stopped
        self._link_lost = False
        self._now = ("", 1.0)

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        """The job at hand, or a part of it (an upload), after which the line is the job's again."""
        before = self._now
        self.restart(label.removeprefix(f"{self._board}: "), total or 1.0)
        yield self
        self.restart(*before)

    def restart(self, label: str, total: float) -> None:
        self._check()
        self._link_lost = False
        self._now = (label, total)
        self._task.restart(f"{self._board}: {label}", total)

    def advance(self, steps: float = 1) -> None:
        self._check()
        self._link_is(lost=False)
        self._task.advance(steps)

    def describe(self, text: str) -> None:
        self._check()
        self._link_is(lost=text.startswith(LINK_LOST), text=text)
        self._task.describe(text)

    def say(self, text: str) -> None:
        self._progress.say(f"{self._board}: {text}")

    def rest(self, seconds: float) -> None:
        """Let the board stand idle, while the run goes on."""
        self._stopped.wait(seconds)
        self._check()

    def _link_is(self, *, lost: bool, text: str = "") -> None:
        """Told when it changes: the tries in between are for the bar only."""
        if lost != self._link_lost:
            self._link_lost = lost
            self.say(text if lost else "the link is back")

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped
