"""The tables of a report: cells as people read them, with what each column is sorted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.report import wording as w
from edgecompress.report.comparing import baseline_of, float_format

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """text, with `sub` (an interval, a verdict) below it in smaller type. sort: what the column is sorted by."""

    text: str
    sub: str = ""
    sort: float | str | None = None
    tone: str = ""
    """'good', 'bad' or 'muted'."""
    link: str = ""
    """Key of the `Detail` that tells more."""


@dataclass(frozen=True)
class Column:
    """rank: in a table too wide for a terminal, columns of the highest rank are left out first; those of 0 always stay."""

    heading: str
    unit: str = ""
    numeric: bool = True
    rank: int = 0


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    intro: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def variant_name(row: Row, with_device: bool) -> str:
    name = f"{row['recipe']} / {row['format']}"
    return w.plain(f"{name} on {row['device']}" if with_device else name)


def results(document: dict[str, Any], several: bool) -> Table:
    rows = document["rows"]
    energy = any(r["energy_mj"] is not None for r in rows)
    baseline = baseline_of(document["study"])
    columns = [Column("Recipe", numeric=False), Column("Format", numeric=False)]
    columns += [Column("Device", numeric=False)] if several else []
    columns += [
        Column("Best trade-off", numeric=False, rank=5),
        Column("Top-1", "%, interval", rank=1),
        Column("Latency", "median, ms", rank=1),
        Column("p99", "ms", rank=7),
        Column("Speed-up", "vs uncompressed", rank=3),
        Column("File", rank=2),
        Column("Packed", rank=2),
        Column("Smaller", "vs uncompressed", rank=6),
        Column("Params", rank=8),
        Column("Non-zero", rank=8),
        Column("MACs", rank=9),
        Column("Effective", "MACs", rank=9),
    ]
    columns += (
        [Column("Energy", "mJ, interval", rank=1), Column("Needs less", "vs uncompressed", rank=4)] if energy else []
    )
    columns.append(Column("Warnings", rank=10))
    reference = (
        f"Uncompressed is the recipe {baseline} in the float format of the same file type on the same device."
        if baseline
        else "The study has no recipe without steps, so nothing is compared with an uncompressed model."
    )
    intro = (
        f"{reference} Best trade-off: no other variant of the device is at least as accurate and at least as fast "
        f"(speed) or as small as a file or packed (size, packed){' or as frugal (energy)' if energy else ''}, judged by the "
        "figures themselves, not by their intervals. Non-zero parameters and effective MACs leave out what is exactly zero; the "
        "engines do not."
    )
    body = tuple(_result_cells(r, f"variant-{i}", several, energy) for i, r in enumerate(rows))
    return Table("results", "Results", w.plain(intro), tuple(columns), body)


def _result_cells(row: Row, key: str, several: bool, energy: bool) -> tuple[Cell, ...]:
    against = row["vs_reference"] or {}
    own = row["vs_reference"] is None
    front = [
        word
        for word, flag in (
            *(("speed", "pareto_latency"), ("size", "pareto_size"), ("packed", "pareto_packed")),
            ("energy", "pareto_energy"),
        )
        if row[flag]
    ]
    best = Cell(", ".join(front), sort=-len(front), tone="good") if front else Cell(w.NONE, sort=0, tone="muted")
    if row["status"] != "ok":
        best = Cell(row["status"].replace("-", " "), sort=1, tone="bad")
    cells = [Cell(w.plain(row["recipe"]), link=key), Cell(w.plain(row["format"]))]
    cells += [Cell(w.board(row))] if several else []
    cells += [
        best,
        Cell(w.percent(row["top1"]), w.percent_interval(row["top1_low"], row["top1_high"]), row["top1"]),
        Cell(
            w.milliseconds(row["latency_ms_p50"]),
            w.milliseconds_interval(row["latency_ms_low"], row["latency_ms_high"]),
            row["latency_ms_p50"],
        ),
        Cell(w.milliseconds(row["latency_ms_p99"]), sort=row["latency_ms_p99"]),
        _speed_cell(against, own),
        Cell(w.size(row["file_bytes"]), sort=row["file_bytes"]),
        Cell(w.size(row["packed_bytes"]), sort=row["packed_bytes"]),
        Cell("1" if own else w.ratio(against.get("size_ratio")), sort=1 if own else against.get("size_ratio")),
        Cell(w.count(row["params"]), sort=row["params"]),
        Cell(w.count(row["nonzero_params"]), sort=row["nonzero_params"]),
        Cell(w.count(row["macs"]), sort=row["macs"]),
        Cell(w.count(row["effective_macs"]), sort=row["effective_macs"]),
    ]
    if energy:
        interval = w.milliseconds_interval(row["energy_mj_low"], row["energy_mj_high"])
        measured = row["energy_mj"] is not None
        why = w.plain(row["energy_reason"] or "").removeprefix("not measured: ")
        none = Cell("not measured", why, tone="muted") if row["status"] == "ok" else Cell(w.NONE, tone="muted")
        cells.append(Cell(w.milliseconds(row["energy_mj"]), interval, row["energy_mj"]) if measured else none)
        cells.append(_energy_cell(against, own and measured))
    number = len(row["warnings"])
    cells.append(Cell(str(number) if number else w.NONE, sort=number, tone="" if number else "muted"))
    return tuple(cells)


def _speed_cell(comparison: Row, own: bool) -> Cell:
    if own:
        return Cell("1", "uncompressed", 1.0)
    interval = w.ratio_interval(comparison.get("speedup_low"), comparison.get("speedup_high"))
    tone = {"faster": "good", "slower": "bad"}.get(comparison.get("speed_verdict") or "", "")
    return Cell(w.ratio(comparison.get("speedup")), interval, comparison.get("speedup"), tone)


def _energy_cell(comparison: Row, own: bool) -> Cell:
    """Energy ratio against another row, its interval below."""
    if own:
        return Cell("1", "uncompressed", 1.0)
    interval = w.ratio_interval(comparison.get("energy_ratio_low"), comparison.get("energy_ratio_high"))
    ratio = comparison.get("energy_ratio")
    return Cell(w.ratio(ratio), interval, ratio, _TONES.get(comparison.get("energy_verdict") or "", ""))


COMPARISONS = {
    "vs_baseline": (
        "What the recipes changed",
        "Each variant against the baseline in the same format on the same device. Accuracy: the same images, exact McNemar "
        "test, p corrected for the number of comparisons (Holm).",
    ),
    "vs_float": (
        "What int8 changed",
        "Each int8 file against the float file of the same recipe, file type and device.",
    ),
}


def comparison(document: dict[str, Any], kind: str, several: bool) -> Table:
    title, intro = COMPARISONS[kind]
    energy = any(r[kind] and (r[kind]["energy_verdict"] or r[kind]["energy_reason"]) for r in document["rows"])
    columns = [Column("Recipe", numeric=False), Column("Format", numeric=False)]
    columns += [Column("Device", numeric=False)] if several else []
    columns += [
        Column("Top-1 change", "points, 95 % interval"),
        Column("p", "corrected"),
        Column("Accuracy", numeric=False),
        Column("Speed-up", "95 % interval"),
        Column("Speed", numeric=False),
        Column("Smaller"),
        Column("Packed smaller"),
    ]
    columns += [Column("Needs less energy", "95 % interval"), Column("Energy", numeric=False)] if energy else []
    body = []
    for row in document["rows"]:
        c = row[kind]
        if c is None or (kind == "vs_float" and row["format"] == float_format(row["format"])):
            continue
        accuracy, speed = c["accuracy_verdict"], c["speed_verdict"]
        cells = [Cell(w.plain(row["recipe"])), Cell(w.plain(row["format"]))]
        cells += [Cell(w.board(row))] if several else []
        interval = w.points_interval(c["accuracy_difference_low"], c["accuracy_difference_high"])
        missing = w.plain(c["reason"] or "")
        cells += [
            Cell(w.points(c["accuracy_difference"]), interval, c["accuracy_difference"]),
            Cell(w.probability(c["accuracy_p_adjusted"]), sort=c["accuracy_p_adjusted"]),
            Cell(accuracy or w.NONE, "" if accuracy else missing, accuracy, _TONES.get(accuracy or "", "")),
            _speed_cell(c, False),
            Cell(speed or w.NONE, "" if speed or not accuracy else missing, speed, _TONES.get(speed or "", "")),
            Cell(w.ratio(c["size_ratio"]), sort=c["size_ratio"]),
            Cell(w.ratio(c["packed_ratio"]), sort=c["packed_ratio"]),
        ]
        if energy:
            verdict = c["energy_verdict"]
            why = "" if verdict else w.plain(c["energy_reason"] or "")
            cells += [_energy_cell(c, False), Cell(verdict or w.NONE, why, verdict, _TONES.get(verdict or "", ""))]
        body.append(tuple(cells))
    return Table(kind.replace("_", "-"), title, intro, tuple(columns), tuple(body))


_TONES = {"lower": "bad", "slower": "bad", "more": "bad", "higher": "good", "faster": "good", "less": "good"}
