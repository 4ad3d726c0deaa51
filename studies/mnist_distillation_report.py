"""Table and raw results of `mnist_distillation`: all arithmetic from the rows, nothing from the trainings."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from edgecompress.rundir import write_atomically
from edgecompress.stats import Estimate, student_quantile

PAPER = "the paper: teacher 67, 800 plain 146, 800 distilled at T = 20 74"


def over_seeds(values: list[float], confidence: float = 0.95) -> Estimate | None:
    """Mean of values, one per seed, and Student's interval of it; None for fewer than two."""
    if len(values) < 2:
        return None
    half = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean(values), mean(values) - half, mean(values) + half)


def write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    """results.json and table.md under `out`. 1, and nothing written, when fewer than two seeds have the paper's three."""
    pairs = paired(rows, 800, 20.0)
    if len(pairs) < 2:
        print(f"{len(pairs)} complete seeds: nothing to report yet", flush=True)
        return 1
    write_atomically(out / "results.json", json.dumps({**about, "rows": rows}, indent=1))
    write_atomically(out / "table.md", table(about, rows))
    return 0


def paired(rows: list[dict[str, Any]], hidden: int, temperature: float) -> list[tuple[int, int]]:
    """(errors plain, errors distilled) of every seed that has both."""
    plain = {
        r["seed"]: r["errors"] for r in rows if r["hidden"] == hidden and not r["teacher"] and r["temperature"] is None
    }
    soft = {r["seed"]: r["errors"] for r in rows if r["hidden"] == hidden and r["temperature"] == temperature}
    return [(plain[seed], soft[seed]) for seed in sorted(plain) if seed in soft]


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Errors of each kind of training over the seeds, and the students' differences to the plain one of the same seed."""
    groups: dict[tuple[int, bool, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[-row["hidden"], not row["teacher"], row["temperature"] or 0.0].append(row)
    lines = [
        f"`{about['command']}`", "",
        f"Errors of 10,000 test images ({PAPER}). Brackets: Student's 95 % interval over the seeds.", "",
        "| network | trained on | errors per seed | mean | fewer than plain, same seed |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for (hidden, _, temperature), members in sorted(groups.items()):
        first = members[0]
        kind = (
            "labels, dropout, moved images" if first["teacher"] else f"T = {temperature:g}" if temperature else "labels"
        )
        less = [float(a - b) for a, b in paired(rows, -hidden, temperature)] if temperature else []
        each = ", ".join(str(r["errors"]) for r in sorted(members, key=lambda r: r["seed"]))
        lines.append(
            f"| 2 × {-hidden} | {kind} | {each} | {_estimate([float(r['errors']) for r in members])} | "
            f"{_estimate(less) if less else '–'} |"
        )
    return "\n".join(lines) + "\n"


def _estimate(values: list[float]) -> str:
    found = over_seeds(values)
    return f"{values[0]:.1f}" if found is None else f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"
