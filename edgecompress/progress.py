"""What a long step tells while it runs. The library is silent; the command line passes an implementation that draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    def advance(self, steps: float = 1) -> None: ...

    def describe(self, text: str) -> None: ...

    def restart(self, label: str, total: float) -> None:
        """Stand at the beginning of something else."""
        ...


class Progress(Protocol):
    def task(self, label: str, total: float | None) -> AbstractContextManager[Task]: ...

    def say(self, text: str) -> None: ...


class SilentTask:
    def advance(self, steps: float = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass

    def restart(self, label: str, total: float) -> None:
        pass


class Silent:
    """Progress that shows nothing: the default of every Python call."""

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        yield SilentTask()

    def say(self, text: str) -> None:
        pass


SILENT: Progress = Silent()


def furthest(task: Task) -> Callable[[float], None]:
    """For what tells how far it is in all, and may fall back: the task is advanced to the furthest point so far."""
    shown = 0.0

    def at(there: float) -> None:
        nonlocal shown
        if there > shown:
            task.advance(there - shown)
            shown = there

    return at
