"""How near the energy per inference comes to a truth that is known, and whether its interval holds it, in simulated runs.

    python benchmarks/energy_accuracy.py [--runs 200] [--seed 0] [--jobs N] [--meters M...] [--no-pauses] [--out FOLDER]

A device draws a waveform with a known integral (constant, square, ramp, bursts, spikes; one period is one inference of 10 ms
to 1 s, each a little longer or shorter than the last; the level wanders by 0.3 % from window to window, as a warm device's
does). A meter of one of three kinds reads it in virtual time, and `energy.summarise` is given what the agent would send:
idle, five windows of 10 s and at least 100 readings, idle.

The meters: `ina219` is the agent's own sensor and store on a chip simulated at register level; `module-100ms` looks for 1 ms
every 100 ms, as tegrastats may; `usb-500ms` averages 0.47 of every 0.5 s, as USB meters do.

Each run is judged with three errors of the meter: `exact` (gain and offset right and so declared: the interval is what chance
and the step leave), `drawn` (both anywhere within the declared limits), `worst` (both at their limits, in the same direction).
Two truths: `windows`, the joules really drawn in these windows; `process`, the mean of the process that the windows are a sample
of, which is what the figure is used for. `dynamic`: the energy over idle, of these windows.

A meter that looks at the same moments of every inference cannot see the others: `summarise` warns of it, and those runs are counted
apart. Judged are the others: the error of ina219 against `windows` with an exact meter (target: 95 % of the runs within 0.5 %),
coverage (target: >= 93 % for every meter, kind of error and truth; no cell below it by more than chance), and how often two
measurements of one process are called different (target: <= 5 %). Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from edgecompress_agent import wire
from energy_signals import METERS, WAVEFORMS, Array, Meter, Run, make_run

from edgecompress import energy, stats

ERROR_TARGET = 0.005
COVERAGE_TARGET = 0.93
FALSE_ALARM_TARGET = 0.05
PERIODS = {"ina219": (0.01, 0.1, 1.0)}
MORE_PERIODS = (0.01, 0.083, 0.1, 0.37, 1.0)
"""Seconds of an inference. The slow meters fall into step with the round ones and not with the others."""
ERRORS = ("exact", "drawn", "worst")
KINDS = ("windows", "process", "dynamic")


def summary_of(
    run: Run, meter: Meter, stamps: Array, power_w: Array, errors: str, rng: np.random.Generator
) -> energy.EnergySummary:
    info = meter.info
    shares: dict[str, Any] = {"exact": (0.0, 0.0), "drawn": rng.uniform(-1, 1, 2), "worst": (1.0, 1.0)}
    share = shares[errors]
    shown = power_w * (1 + share[0] * info.gain_error) + share[1] * info.offset_error_w
    if errors == "exact":
        info = replace(info, gain_error=0.0, offset_error_w=0.0)
    trace = wire.Trace(
        info,
        tuple(np.round(stamps * 1e9).astype(np.int64).tolist()),
        tuple(np.round(shown * 1e6).astype(np.int64).tolist()),
    )
    windows = tuple(wire.Window(kind, round(a * 1e9), round(b * 1e9), n) for kind, a, b, n in run.windows)
    summary = energy.summarise(wire.Power(trace, windows))
    if summary.gross_j is None:
        raise SystemExit(f"a sound simulated trace was called invalid: {summary.invalid}")
    return summary


def percentile_interval(summary: energy.EnergySummary, rng: np.random.Generator) -> tuple[float, float]:
    """What the report does for latencies, for comparison: expanded percentiles of a bootstrap over the windows."""
    draws = rng.choice(summary.window_j, (2000, summary.windows)).mean(axis=1)
    n = summary.windows
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * stats.student_quantile(0.975, n - 1))
    low, high = np.quantile(draws, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def ppm(value: float) -> int:
    return round(1e6 * value)


def simulate(key: tuple[str, str, float], runs: int, seed: int, pause: bool) -> dict[str, Any]:
    """One cell of the table: every run's relative errors and half-widths in parts per million, and what they amount to.

    covered, false_alarms: of the runs (and pairs) that `summarise` did not warn of readings on the same moments; `all`: of all.
    """
    name, waveform, period_s = key
    meter = METERS[name]
    raw: dict[str, list[list[int]]] = {e: [] for e in ERRORS}
    covered, everything = ({e: dict.fromkeys(KINDS, 0) for e in ERRORS} for _ in range(2))
    percentile = alarms = pairs = 0
    warned: list[int] = []
    previous: energy.EnergySummary | None = None
    for number in range(runs):
        rng = np.random.default_rng([seed, number, ppm(period_s), *waveform.encode(), *name.encode()])
        run = make_run(waveform, period_s, meter.info.interval_s, rng, pause)
        stamps, power_w = meter.read(run.signal, float(run.signal.starts[-1]), rng)
        for errors in ERRORS:
            summary = summary_of(run, meter, stamps, power_w, errors, rng)
            gross, dynamic = summary.gross_j, summary.dynamic_j
            assert gross and dynamic and summary.seconds_per_inference
            true_dynamic = run.truth_windows_j - run.idle_w * summary.seconds_per_inference
            held = {
                "windows": gross.low <= run.truth_windows_j <= gross.high,
                "process": gross.low <= run.truth_process_j <= gross.high,
                "dynamic": dynamic.low <= true_dynamic <= dynamic.high,
            }
            locked = any("same moments" in w for w in summary.warnings)
            for kind, hit in held.items():
                everything[errors][kind] += hit
                covered[errors][kind] += hit and not locked
            relative = [gross.value / run.truth_windows_j - 1, gross.value / run.truth_process_j - 1]
            raw[errors].append([ppm(e) for e in (*relative, gross.high / gross.value - 1)])
            if errors == "exact":
                warned.append(int(locked))
                low, high = percentile_interval(summary, rng)
                percentile += low <= run.truth_process_j <= high
                if previous is not None and number % 2 and not any(warned[-2:]):
                    pairs += 1
                    alarms += energy.compare(previous, summary).verdict != stats.NO_DIFFERENCE
                previous = summary
    sound = np.abs([r[0] for r, w in zip(raw["exact"], warned, strict=True) if not w] or [0]) / 1e6
    return {
        "unwarned": runs - sum(warned), "covered": covered, "all": everything, "percentile_covers_process": percentile,
        "false_alarms": alarms, "pairs": pairs, "error_p95": float(np.quantile(sound, 0.95)), "error_max": float(sound.max()),
        "error_max_all": max(abs(r[0]) for r in raw["exact"]) / 1e6,
        "half_width_median": {e: float(np.median([r[2] for r in raw[e]])) / 1e6 for e in ERRORS},
        "warned": warned, "raw_ppm": raw,
    }  # fmt: skip


def below(hits: int, trials: int, target: float) -> bool:
    """Whether so few hits are, for a true rate at the target, less likely than 1 in 1000: chance among many cells is no miss."""
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(target) + (trials - k) * math.log1p(-target)
        for k in range(hits + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs)) < 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--meters", nargs="+", choices=METERS, default=list(METERS))
    parser.add_argument(
        "--no-pauses",
        action="store_true",
        help="windows that follow at once, not at random moments of the sensor's interval",
    )
    parser.add_argument("--out", type=Path, help="folder for accuracy.json with every run, and table.md")
    asked = parser.parse_args()
    keys = [(m, w, p) for m in asked.meters for w in WAVEFORMS for p in PERIODS.get(m, MORE_PERIODS)]
    with ProcessPoolExecutor(max_workers=asked.jobs) as pool:
        waiting = [pool.submit(simulate, key, asked.runs, asked.seed, not asked.no_pauses) for key in keys]
        cells = {}
        for key, future in zip(keys, waiting, strict=True):
            cells[key] = future.result()
            sys.stderr.write(f"\r{len(cells)} of {len(keys)} cells")
            sys.stderr.flush()
    sys.stderr.write("\n")
    totals = {name: total([c for key, c in cells.items() if key[0] == name], asked.runs) for name in asked.meters}
    missed = [m for key, cell in cells.items() for m in misses_of_cell(key, cell)]
    missed += [m for name, figures in totals.items() for m in misses_of_meter(name, figures)]
    lines = [*HEAD, *(row_of(key, cell, asked.runs) for key, cell in cells.items())]
    summary = [said(name, figures) for name, figures in totals.items()]
    print("\n".join([*lines, "", *summary, *(f"MISSED: {m}" for m in missed)]))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        document = {
            "runs": asked.runs, "seed": asked.seed, "pauses": not asked.no_pauses,
            "python": platform.python_version(), "numpy": np.__version__,
            "raw": "per run [error against windows, error against process, half-width], relative, in parts per million",
            "targets": {"error_p95": ERROR_TARGET, "coverage": COVERAGE_TARGET, "false_alarms": FALSE_ALARM_TARGET},
            "meters": {name: wire.to_json(m.info) for name, m in METERS.items()}, "totals": totals, "missed": missed,
            "cells": {f"{m}/{w}/{p:g}": cell for (m, w, p), cell in cells.items()},
        }  # fmt: skip
        (asked.out / "accuracy.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
        (asked.out / "table.md").write_text("\n".join([*lines, "", *(f"- {s}" for s in summary), ""]))
    return int(bool(missed))


HEAD = (
    "| meter | waveform | inference | warned | error p95 (largest), % | covers windows, % | covers process, % | covers dynamic, % "
    "| half-width, % | called different |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def misses_of_cell(key: tuple[str, str, float], cell: dict[str, Any]) -> list[str]:
    """A cell has few runs: it misses its target when chance alone does not explain it."""
    label, n = f"{key[0]}, {key[1]}, {1000 * key[2]:g} ms", cell["unwarned"]
    found = [
        f"{label}: {kind} covered in {cell['covered'][e][kind]} of {n} runs ({e})"
        for e in ERRORS
        for kind in KINDS
        if below(cell["covered"][e][kind], n, COVERAGE_TARGET)
    ]
    if key[0] == "ina219" and cell["error_p95"] > ERROR_TARGET:
        found.append(f"{label}: 95 % of the errors are within {100 * cell['error_p95']:.2f} % only")
    return found


def misses_of_meter(name: str, figures: dict[str, Any]) -> list[str]:
    found = [f"{name}: {k} covered in {100 * r:.1f} %" for k, r in figures["rates"].items() if r < COVERAGE_TARGET]
    right = round((1 - figures["false_alarms"]) * figures["pairs"])
    if below(right, figures["pairs"], 1 - FALSE_ALARM_TARGET):
        found.append(f"{name}: {100 * figures['false_alarms']:.1f} % of equal pairs were called different")
    return found


def row_of(key: tuple[str, str, float], cell: dict[str, Any], runs: int) -> str:
    """A line of the table: rates of the unwarned runs with the meter exact / drawn / worst."""
    n = cell["unwarned"]
    rates = [" / ".join(f"{100 * cell['covered'][e][k] / n:.1f}" if n else "-" for e in ERRORS) for k in KINDS]
    errors = f"{100 * cell['error_p95']:.3f} ({100 * cell['error_max']:.3f})" if n else "-"
    width = cell["half_width_median"]
    cells = [
        *(key[0], key[1], f"{1000 * key[2]:g} ms", f"{runs - n}", errors, *rates),
        *(f"{100 * width['exact']:.2f} / {100 * width['drawn']:.2f}", f"{cell['false_alarms']} of {cell['pairs']}"),
    ]
    return f"| {' | '.join(cells)} |"


def said(name: str, figures: dict[str, Any]) -> str:
    rates, everything = (
        ", ".join(f"{kind} {100 * rate:.1f} %" for kind, rate in figures[which].items())
        for which in ("rates", "rates_all")
    )
    return (
        f"**{name}**, {figures['unwarned']} of {figures['runs']} runs without the warning: largest error "
        f"{100 * figures['error_max']:.3f} % (warned ones too: {100 * figures['error_max_all']:.3f} %). Coverage: {rates}. "
        f"With the warned runs: {everything}. An expanded percentile bootstrap over the windows alone would cover the process in "
        f"{100 * figures['percentile']:.1f} % of all runs. Equal pairs called different: {100 * figures['false_alarms']:.1f} % of "
        f"{figures['pairs']}."
    )


def total(cells: list[dict[str, Any]], runs: int) -> dict[str, Any]:
    """Over all waveforms and periods of a meter."""
    every, unwarned, pairs = runs * len(cells), sum(c["unwarned"] for c in cells), sum(c["pairs"] for c in cells)

    def rates(which: str, n: int) -> dict[str, float]:
        return {f"{k} ({e})": sum(c[which][e][k] for c in cells) / max(1, n) for k in KINDS for e in ERRORS}

    return {
        "runs": every, "unwarned": unwarned, "pairs": pairs, "rates": rates("covered", unwarned), "rates_all": rates("all", every),
        "error_max": max(c["error_max"] for c in cells), "error_max_all": max(c["error_max_all"] for c in cells),
        "percentile": sum(c["percentile_covers_process"] for c in cells) / every,
        "false_alarms": sum(c["false_alarms"] for c in cells) / max(1, pairs),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
