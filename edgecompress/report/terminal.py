"""The results as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.report import view

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderResult
    from rich.table import Table as RichTable

    from edgecompress.report.tables import Table

STYLES = {"good": "green", "bad": "red", "muted": "dim", "": ""}
WIDEST = 10_000
WIDEST_FIGURE = 22
"""Of a column that is no name: longer texts (why an energy is missing) take several lines."""


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


def plain_table(table: Table) -> str:
    """One table, with its title above and its introduction below, without colours; 120 columns where nobody says how many."""
    import shutil

    from rich import box
    from rich.console import Console, Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        heading = f"{column.heading}\n{column.unit}" if column.unit else column.heading
        shown.add_column(Text(heading), justify="right" if column.numeric else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell.text) for cell in row))
    console = Console(width=shutil.get_terminal_size((120, 24)).columns, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(Group(Text(table.title), Text(""), shown, *([Text(table.intro)] if table.intro else [])))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def renderable(document: dict[str, Any]) -> Group:
    """The same for a rich console: the table of results, the failures, the sentences below."""
    from rich.console import Group
    from rich.text import Text

    report = view.make(document)
    failures = [Text(f"{name}: {reason}", style="red") for name, reason in report.failures]
    return Group(_Results(report.results), Text(""), *failures, *(Text(sentence) for sentence in report.summary))


class _Results:
    """The table of results in as many columns as the console has room for, the names always whole."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        columns = self._table.columns
        shown = list(range(len(columns)))
        everything = options.update(width=WIDEST)
        for rank in sorted({c.rank for c in columns if c.rank}, reverse=True):
            if Measurement.get(console, everything, self._of(shown)).maximum <= options.max_width:
                break
            shown = [i for i in shown if columns[i].rank != rank]
        yield self._of(shown)
        left_out = [columns[i].heading for i in range(len(columns)) if i not in shown]
        if left_out:
            yield Text(f"Not shown at this width: {', '.join(left_out)}. The report has them.", style="dim")

    def _of(self, shown: list[int]) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in (self._table.columns[i] for i in shown):
            heading = f"{column.heading}\n{column.unit}" if column.unit else column.heading
            # a name that is wider than the whole terminal goes on in the next line; nothing is cut off
            limit = None if column.rank == 0 else WIDEST_FIGURE
            justify: JustifyMethod = "right" if column.numeric else "left"
            made.add_column(Text(heading), justify=justify, overflow="fold", max_width=limit)
        for row in self._table.rows:
            # Text, not markup: what a study or a board said is shown, never interpreted
            cells = (row[i] for i in shown)
            made.add_row(*(Text(f"{c.text}\n{c.sub}" if c.sub else c.text, style=STYLES[c.tone]) for c in cells))
        return made
