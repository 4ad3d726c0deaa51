"""What a person is shown, as text in tables and sentences, for HTML, Markdown and the terminal alike. Made from results.json."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from edgecompress.report import searches
from edgecompress.report import wording as w
from edgecompress.report.explaining import method_of_measurement
from edgecompress.report.profiles import operator_table
from edgecompress.report.tables import Row, Table, comparison, results, variant_name
from edgecompress.report.variant_details import CONDITIONS, Detail, detail


@dataclass(frozen=True)
class View:
    """The report in the order it is read."""

    title: str
    facts: tuple[tuple[str, str], ...]
    summary: tuple[str, ...]
    results: Table
    comparisons: tuple[Table, ...]
    failures: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    """(variants, what to know of them), and `warnings` alike; those that hold for every variant stand in the summary."""
    warnings: tuple[tuple[str, str], ...]
    recipes: tuple[tuple[str, tuple[str, ...]], ...]
    devices: tuple[Detail, ...]
    method: tuple[tuple[str, str], ...]
    details: tuple[Detail, ...] = field(default=())
    operators: tuple[Table, ...] = field(default=())
    """Time by operator, a table for each variant that has it."""
    searches: tuple[Table, ...] = field(default=())
    """What every strategy found, a table for each step that searched."""


def make(document: dict[str, Any]) -> View:
    """The view of a results.json document."""
    rows = document["rows"]
    several = len({w.board(r) for r in rows}) > 1
    failures = tuple((variant_name(r, several), w.plain(r["reason"])) for r in rows if r["status"] != "ok")
    comparisons = [comparison(document, kind, several) for kind in ("vs_baseline", "vs_float")]
    return View(
        title=w.plain(document["study"]["name"]),
        facts=_facts(document),
        summary=_summary(document, several),
        results=results(document, several),
        comparisons=tuple(t for t in comparisons if t.rows),
        failures=failures,
        notes=_by_text(rows, "notes", set(), several),
        warnings=_by_text(rows, "warnings", {x for f in document["findings"] for x in f["warnings"]}, several),
        recipes=_recipes(document),
        devices=tuple(_device(f) for f in document["findings"]),
        method=method_of_measurement(document),
        searches=tuple(searches.table(found) for found in searches.of(document)),
        operators=tuple(
            operator_table(r["operator_times"], f"operators-{i}", variant_name(r, several))
            for i, r in enumerate(rows)
            if r["operator_times"]
        ),
        details=tuple(detail(r, variant_name(r, several), f"variant-{i}") for i, r in enumerate(rows)),
    )


def _facts(document: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    study, data = document["study"], document["data"]
    model = study["model"]
    weights = next((r["weights"] for r in document["rows"] if r["weights"]), None)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(document["created_unix_s"]))
    width = f" (width {model['width']})" if model.get("width") else ""
    facts = [
        ("Model", f"{model['name']}{width}" + (f", weights from the file {weights}" if weights else "")),
        ("Data", w.value_text(data.get("name") or study["data"]["name"])),
        ("Devices", w.value_text(list(document["devices"]))),
        ("Made", f"{made} by edgecompress {document['edgecompress_version']}"),
        ("Command", document["command"]),
    ]
    return tuple((label, w.plain(text)) for label, text in facts)


def _summary(document: dict[str, Any], several: bool) -> tuple[str, ...]:
    """A few sentences that an engineer would put in a mail."""
    rows, sentences = document["rows"], []
    for best in document["best"]:
        on = f" on {best['device']}" if several else ""
        if best["reason"]:
            sentences.append(f"No best variant is named{on}: {best['reason']}.")
            continue
        measured = any(r["energy_mj"] is not None for r in rows if r["device"] == best["device"])
        for words, index in _chosen(best, measured):
            word = words.capitalize()
            if index is None:
                what = {"fastest": "faster", "smallest": "smaller"}.get(words, "more frugal with energy")
                sentences.append(f"No variant{on} is measurably {what} without a measurable loss of accuracy.")
            else:
                sentences.append(f"{word} without a measurable loss of accuracy{on}: {_gain(rows[index])}.")
    failed = sum(r["status"] == "failed" for r in rows)
    missing = sum(r["status"] == "not-measured" for r in rows)
    if failed:
        sentences.append(f"{failed} of {len(rows)} variants failed; their reasons are below.")
    if missing:
        sentences.append(f"{missing} of {len(rows)} variants are not measured yet.")
    for finding in document["findings"]:
        on = f" ({finding['device']})" if several else ""
        energy = finding["facts"].get("energy")
        if energy:
            sentences.append(f"Energy{on}: {energy}.")
        sentences += [f"Energy{on} by {text}." for text in finding["facts"].get("power_sensor") or ()]
        mine = [r for r in rows if r["device"] == finding["device"] and r["status"] == "ok"]
        without = sum(r["energy_mj"] is None for r in mine)
        if without and not energy:
            sentences.append(
                f"Energy{on} is missing for {without} of {len(mine)} measured variants; the table says why."
            )
        sentences += [f"Warning for every variant{on}: {text}." for text in finding["warnings"]]
    return tuple(w.plain(s) for s in sentences)


def _chosen(best: Row, energy: bool) -> list[tuple[str, int | None]]:
    """(what a variant is the best in, its index): one that is the best in several respects once."""
    found = [("fastest", best["fastest"]), ("smallest", best["smallest"])]
    found += [("least energy", best["least_energy"])] if energy else []
    merged: dict[int, list[str]] = {}
    for word, index in found:
        if index is not None:
            merged.setdefault(index, []).append(word)
    together: list[tuple[str, int | None]] = [(_listed(words), index) for index, words in merged.items()]
    return together + [(word, None) for word, index in found if index is None]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _gain(row: Row) -> str:
    against = row["vs_reference"]
    energy = f", {w.milliseconds(row['energy_mj'])} mJ" if row["energy_mj"] is not None else ""
    less = f", with {w.ratio(against['energy_ratio'])} less energy" if against["energy_verdict"] == "less" else ""
    return (
        f"{row['recipe']} / {row['format']}: {w.percent(row['top1'])} top-1, {w.milliseconds(row['latency_ms_p50'])} ms, "
        f"{w.size(row['file_bytes'])}{energy}; {w.ratio(against['speedup'])} as fast as {against['with']}, and "
        f"{w.ratio(against['size_ratio'])} smaller{less}"
    )


def _by_text(rows: list[Row], key: str, said: set[str], several: bool) -> tuple[tuple[str, str], ...]:
    """Each text once, with the variants it holds for."""
    holders: dict[str, list[str]] = {}
    for row in rows:
        for text in row[key]:
            if text not in said:
                holders.setdefault(text, []).append(variant_name(row, several))
    return tuple((", ".join(names), w.plain(text)) for text, names in holders.items())


def _recipes(document: dict[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    recipes = []
    for name, steps in document["study"]["recipes"].items():
        row = next((r for r in document["rows"] if r["recipe"] == name), None)
        lines = [w.step(s["method"], s["params"]) for s in steps] or ["no steps: the model as it came or was trained"]
        if row and row["model_top1"] is not None:
            trained = row["train_reason"] or f"{w.seconds(row['train_seconds'])} of training"
            lines.append(
                w.plain(f"{w.percent(row['model_top1'])} top-1 before export ({row['model_scored_on']}); {trained}")
            )
        recipes.append((w.plain(name), tuple(lines)))
    return tuple(recipes)


def _device(finding: Row) -> Detail:
    labels = {
        **CONDITIONS,
        "engines": "Engines",
        "members": "Measured by",
        "energy": "Energy",
        "power_sensor": "Power sensor",
    }
    facts = tuple((labels[key], w.value_text(v)) for key, v in finding["facts"].items() if v not in (None, []))
    return Detail(
        w.plain(finding["device"]),
        "ok",
        (),
        tuple(w.plain(x) for x in finding["warnings"]),
        (("", facts),),
        key=w.plain(finding["device"]),
    )
