"""Table, figure and raw results of `mnist_lookahead`: all arithmetic from the rows, nothing from the trainings."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from edgecompress.rundir import write_atomically
from edgecompress.stats import NO_DIFFERENCE, Estimate, accuracy_verdict, holm, mcnemar, student_quantile

PAPER = {
    "magnitude": (1.75, 2.11, 2.53, 3.32, 4.77, 19.85, 67.62),
    "lookahead": (1.67, 1.89, 2.48, 3.29, 3.93, 6.72, 16.45),
}
"""Test error (%) that the paper is remembered to give per level (50,000 iterations): a lead, no figure to be held to."""


def over_seeds(values: list[float], confidence: float = 0.95) -> Estimate:
    """Mean of values, one per seed (two or more), and Student's interval of it."""
    half = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean(values), mean(values) - half, mean(values) + half)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per level, errors in %: each method over seeds, and lookahead minus magnitude seed by seed.

    Two verdicts, of different things. `verdict`: of the methods, by the interval over seeds at 1 - 0.05 / levels (Bonferroni), so
    that all levels together hold at 95 %. `pairs_lower`, `pairs_higher`: of the pairs of networks at hand, how many have lookahead
    lower or higher on the same test images (exact McNemar test, Holm's correction over all pairs of all levels).
    """
    levels = sorted({row["level"] for row in rows if row["level"] is not None})
    trained = {(row["level"], row["seed"], row["method"]): row for row in rows if row["level"] is not None}
    pairs = sorted({(level, seed) for level, seed, _ in trained})
    tests = {p: mcnemar(right(trained[*p, "magnitude"]), right(trained[*p, "lookahead"])) for p in pairs}
    verdicts = dict(zip(pairs, holm([tests[p].p for p in pairs]), strict=True))
    entries = []
    for level in levels:
        seeds = [seed for at, seed in pairs if at == level]
        errors = {
            m: [100 * trained[level, seed, m]["test_error"] for seed in seeds] for m in ("magnitude", "lookahead")
        }
        differences = [b - a for a, b in zip(errors["magnitude"], errors["lookahead"], strict=True)]
        strict = over_seeds(differences, 1 - 0.05 / len(levels))
        verdict = "lookahead lower" if strict.high < 0 else "magnitude lower" if strict.low > 0 else NO_DIFFERENCE
        # accuracy lower is error higher
        said = [accuracy_verdict(tests[level, seed].difference, verdicts[level, seed]) for seed in seeds]
        entries.append({
            "level": level, "kept_percent": 100 * trained[level, seeds[0], "magnitude"]["kept_fraction"],
            **{method: over_seeds(values) for method, values in errors.items()},
            "difference": over_seeds(differences), "verdict": verdict,
            "pairs_lower": said.count("higher"), "pairs_higher": said.count("lower"), "pairs": len(seeds),
        })  # fmt: skip
    return entries


def right(row: dict[str, Any]) -> str:
    """Per test image '1' where the network was right, '0' where not, from the packed bits of a result."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["correct"]), np.uint8))
    return "".join("1" if bit else "0" for bit in bits[: row["test_images"]])


def write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """results.json (settings and every training), table.md and error.svg in `out`."""
    entries = table(rows)
    write_atomically(out / "results.json", json.dumps({**about, "trainings": rows}, indent=1) + "\n")
    write_atomically(out / "table.md", _markdown(about, rows, entries))
    _figure(out / "error.svg", entries)


def _markdown(about: dict[str, Any], rows: list[dict[str, Any]], entries: list[dict[str, Any]]) -> str:
    dense = over_seeds([100 * row["test_error"] for row in rows if row["level"] is None])
    lines = [
        f"Test error in %, mean over {len(about['seeds'])} seeds with its 95 % interval (Student). Dense network: {_cell(dense)}.",
        "",
        "| kept, % | magnitude | lookahead | lookahead − magnitude, paired | over seeds, all levels together at 95 % "
        "| network by network: lookahead lower / higher / not told apart |",
        "|---:|---:|---:|---:|---|---|",
    ]
    for e in entries:
        lines.append(
            f"| {e['kept_percent']:.2f} | {_cell(e['magnitude'])} | {_cell(e['lookahead'])} "
            f"| {_cell(e['difference'], '+')} | {e['verdict']} "
            f"| {e['pairs_lower']} / {e['pairs_higher']} / {e['pairs'] - e['pairs_lower'] - e['pairs_higher']} |"
        )
    return "\n".join(lines) + "\n"


def _cell(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.value:{sign}.2f} ({estimate.low:{sign}.2f} to {estimate.high:{sign}.2f})"


def _figure(path: Path, entries: list[dict[str, Any]]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "edgecompress"  # else each drawing of the same figures differs
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    kept = [e["kept_percent"] for e in entries]
    for method, marker in (("magnitude", "o"), ("lookahead", "s")):
        values = [e[method].value for e in entries]
        bars = [
            [e[method].value - max(e[method].low, 1e-2) for e in entries],
            [e[method].high - e[method].value for e in entries],
        ]
        axes.errorbar(kept, values, bars, marker=marker, capsize=3, label=method)
    axes.set(xscale="log", yscale="log", xlabel="weights kept (%)", ylabel="test error (%), mean and 95 % interval")
    axes.invert_xaxis()
    axes.set_xticks(kept, [f"{k:.2f}" for k in kept])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
