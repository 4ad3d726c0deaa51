"""The report of a study: `rows.document` does all the arithmetic, one module `as_FORMAT` per output format writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import plugins

if TYPE_CHECKING:
    from edgecompress.rundir import RunDir

FILES = {"json": "results.json", "csv": "results.csv", "md": "report.md", "html": "report.html"}
"""Where a run directory holds each format; another format's file is report.FORMAT."""


def format_names() -> list[str]:
    """The formats there are: each is a file `as_FORMAT.py` with a function `render(document) -> str`."""
    return [name.removeprefix("as_") for name in plugins.names(__name__, attribute="render")]


def collect(run_dir: RunDir) -> dict[str, Any]:
    """The whole of results.json, made from the records of a run. UserError when it is no run directory."""
    from edgecompress.report import collecting, rows

    return rows.document(collecting.read(run_dir))


def render(document: dict[str, Any], format: str, *, where: str = "") -> str:
    """The report as text in one of the formats. document: from `collect`, or results.json read back.

    UserError with the choices for an unknown format.
    """
    if format not in format_names():
        from edgecompress.errors import UserError, near_misses

        raise UserError(f"unknown report format {format!r}", where=where, fix=near_misses(format, format_names()))
    module = plugins.find(__name__, f"as_{format}", attribute="render", kind="report format", where=where)
    return str(module.render(document))


def write_all(document: dict[str, Any], run_dir: RunDir) -> list[Path]:
    """Write every format into the run directory, atomically. Returns the files."""
    from edgecompress.rundir import write_atomically

    files = []
    for format in format_names():
        path = run_dir.path(FILES.get(format, f"report.{format}"))
        write_atomically(path, render(document, format))
        files.append(path)
    return files
