"""Progress on standard error: bars with the time left on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgecompress.progress import Progress, Silent, SilentTask, Task


@contextmanager
def progress(*, steps: bool = False) -> Iterator[Progress]:
    """steps: where there is no terminal, every task and what it is at is a line, for a verb that has few of them."""
    if not sys.stderr.isatty():
        yield _Steps() if steps else _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A duplicate of the terminal: exporters have descriptor 2 turned away while they run, and the bars must go on.
    with os.fdopen(os.dup(2), "w") as terminal:
        console = Console(file=terminal, force_terminal=True)
        with RichProgress(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as bars:
            yield _Bars(bars)


class _Lines(Silent):
    def say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")  # in one piece: several boards may have something to say at once
        sys.stderr.flush()


class _Steps(_Lines):
    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        yield _StepTask(self, label)


class _StepTask(SilentTask):
    def __init__(self, lines: _Lines, label: str) -> None:
        self._lines, self._label, self._last = lines, label, ""
        lines.say(label)

    def describe(self, text: str) -> None:
        if text != self._last:
            self._lines.say(f"{self._label}: {text}")
            self._last = text


class _Bars:
    def __init__(self, bars: Any) -> None:
        self._bars = bars

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        identifier = self._bars.add_task(label, total=total)
        try:
            yield _BarTask(self._bars, identifier, label)
        finally:
            self._bars.remove_task(identifier)

    def say(self, text: str) -> None:
        from rich.markup import escape

        self._bars.console.print(escape(text), highlight=False)


class _BarTask:
    def __init__(self, bars: Any, identifier: Any, label: str) -> None:
        self._bars, self._identifier, self._label = bars, identifier, label

    def advance(self, steps: float = 1) -> None:
        self._bars.advance(self._identifier, steps)

    def describe(self, text: str) -> None:
        self._bars.update(self._identifier, description=f"{self._label}: {text}")

    def restart(self, label: str, total: float) -> None:
        self._label = label
        self._bars.reset(self._identifier, total=total, description=label)
