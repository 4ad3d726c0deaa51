"""The results as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.report import view

if TYPE_CHECKING:
    from rich.console import Group

STYLES = {"good": "green", "bad": "red", "muted": "dim", "": ""}


def table(document: dict[str, Any], *, width: int | None = None, color: bool = False) -> str:
    """The table and the summary as text, `width` columns wide (None: the terminal's, or 120)."""
    import shutil

    from rich.console import Console

    console = Console(
        width=width or shutil.get_terminal_size((120, 24)).columns,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable(document))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def renderable(document: dict[str, Any]) -> Group:
    """The same for a rich console: the table of results, the failures, the sentences below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    report = view.make(document)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in report.results.columns:
        heading = f"{column.heading}\n{column.unit}" if column.unit else column.heading
        shown.add_column(Text(heading), justify="right" if column.numeric else "left")
    for row in report.results.rows:
        # Text, not markup: what a study or a board said is shown, never interpreted
        shown.add_row(*(Text(f"{c.text}\n{c.sub}" if c.sub else c.text, style=STYLES[c.tone]) for c in row))
    failures = [Text(f"{name}: {reason}", style="red") for name, reason in report.failures]
    return Group(shown, Text(""), *failures, *(Text(sentence) for sentence in report.summary))
