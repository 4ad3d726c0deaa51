"""report.md: the report for a repository or a pull request (GitHub's Markdown)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from edgecompress.report import view
from edgecompress.report.tables import Cell, Table


def render(document: dict[str, Any]) -> str:
    report = view.make(document)
    lines = [f"# {escape(report.title)}", ""]
    lines += [f"- **{label}**: {escape(text)}" for label, text in report.facts]
    lines += ["", *(f"- {escape(sentence)}" for sentence in report.summary)]
    for table in (report.results, *report.comparisons):
        lines += ["", *_table(table)]
    for table in report.searches:
        lines += ["", *_table(replace(table, title=escape(table.title)))]
    for table in report.operators:
        lines += ["", *_table(replace(table, title=f"Time by operator: {escape(table.title)}"))]
    if report.failures:
        lines += [
            "",
            "## Failed or not measured",
            "",
            *(f"- **{escape(n)}**: {escape(why)}" for n, why in report.failures),
        ]
    lines += ["", "## Recipes", ""]
    for name, steps in report.recipes:
        lines += [f"- **{escape(name)}**", *(f"  - {escape(step)}" for step in steps)]
    for title, remarks in (("To read the figures rightly", report.notes), ("Warnings", report.warnings)):
        if remarks:
            lines += ["", f"## {title}", "", *(f"- {escape(text)} ({escape(names)})" for names, text in remarks)]
    lines += ["", "## Devices", ""]
    for device in report.devices:
        pairs = "; ".join(f"{escape(label)} {escape(text)}" for _, group in device.groups for label, text in group)
        lines.append(f"- **{escape(device.title)}**: {pairs}")
    lines += [
        "",
        "## How it was measured",
        "",
        *(f"- **{heading}**: {escape(text)}" for heading, text in report.method),
    ]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    heads = [f"{c.heading}<br>{c.unit}" if c.unit else c.heading for c in table.columns]
    rules = ["---:" if c.numeric else "---" for c in table.columns]
    rows = [" | ".join(_cell(cell) for cell in row) for row in table.rows]
    return [
        f"## {table.title}", "", escape(table.intro), "", f"| {' | '.join(heads)} |", f"| {' | '.join(rules)} |",
        *(f"| {row} |" for row in rows),
    ]  # fmt: skip


def _cell(cell: Cell) -> str:
    return f"{escape(cell.text)}<br>{escape(cell.sub)}" if cell.sub else escape(cell.text)


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, link, mention of a scheme, or table border can come from it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = text.replace("://", "\\://").replace("www.", "www\\.")
    # what starts a list or a heading does so only at the start of a line and before a space
    return re.sub(r"^(\d+(?=[.)](\s|$))|(?=(#+|[-+])(\s|$)))", r"\1\\", text)
