"""Print the README's table from results.json beside this file: python docs/results/quickstart/table.py"""

from __future__ import annotations

import json
from pathlib import Path


def table() -> str:
    """The table as Markdown, one line per variant."""
    document = json.loads((Path(__file__).parent / "results.json").read_text())
    lines = [
        "| recipe | format | top-1 % | median latency, ms | file, kB | packed, kB | energy |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in document["rows"]:
        top1 = f"{100 * r['top1']:.2f} [{100 * r['top1_low']:.1f}, {100 * r['top1_high']:.1f}]"
        latency = f"{r['latency_ms_p50']:.3f} [{r['latency_ms_low']:.3f}, {r['latency_ms_high']:.3f}]"
        sizes = f"{r['file_bytes'] / 1000:.0f} | {r['packed_bytes'] / 1000:.0f}"
        lines.append(f"| {r['recipe']} | {r['format']} | {top1} | {latency} | {sizes} | {r['energy_reason']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
