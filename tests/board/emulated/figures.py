"""The tables of docs/results/boards/README.md, from the raw figures beside it.

python -m tests.board.emulated.figures docs/results/boards
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_SHAPES = ("constant", "square", "ramp", "bursts", "spikes")


def energies(rows: list[dict[str, Any]]) -> list[str]:
    """Largest error of a window in %, by shape and period."""
    periods = sorted({row["period_ms"] for row in rows})
    lines = ["| shape | " + " | ".join(f"{p} ms" for p in periods) + " |", "|---|" + "---:|" * len(periods)]
    for shape in _SHAPES:
        cells = []
        for period in periods:
            found = [abs(e) for r in rows if (r["shape"], r["period_ms"]) == (shape, period) for e in r["errors"]]
            cells.append(f"{100 * max(found):.3f}" if found else "")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines


def study(value: dict[str, Any]) -> list[str]:
    """Accuracy of each format on both devices; energy, and what was really drawn."""
    drawn = {window["format"]: window["drawn_mj"] for window in value["windows"]}
    rows = {(r["format"], r["device"]): r for r in value["rows"]}
    lines = [
        "| format | engine | top-1, emulated | top-1, here | energy, mJ [95 %] | drawn, mJ |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for form in dict.fromkeys(r["format"] for r in value["rows"]):
        there, here = rows[form, "emulated"], rows[form, "here"]
        energy = there["energy_reason"]
        if there["energy_mj"] is not None:
            energy = "{energy_mj:.1f} [{energy_mj_low:.1f}, {energy_mj_high:.1f}]".format(**there)
        drew = f"{drawn[form]:.1f}" if form in drawn else ""
        cells = [form, there["engine"], _percent(there), _percent(here), energy, drew]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _percent(row: dict[str, Any]) -> str:
    return "–" if row["top1"] is None else f"{100 * row['top1']:.2f} %"


def main() -> int:
    folder = Path(sys.argv[1])
    for name in ("energy-ina219", "energy-hwmon", "study"):
        file = folder / f"{name}.json"
        if file.exists():
            value = json.loads(file.read_text())
            print(f"\n{name}\n\n" + "\n".join(study(value) if name == "study" else energies(value)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
