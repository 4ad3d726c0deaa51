"""Variants against one another: speed-ups, paired accuracy, sizes, the best trade-offs. Filled into finished rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from edgecompress_agent import wire

from edgecompress import stats
from edgecompress.energy import EnergySummary
from edgecompress.records import Accuracy, Artifact
from edgecompress.report import energies, fields, findings

Row = dict[str, Any]
PARETO = (
    ("pareto_latency", "latency_ms_p50"),
    ("pareto_size", "file_bytes"),
    ("pareto_packed", "packed_bytes"),
    ("pareto_energy", "energy_mj"),
)
KINDS = ("vs_baseline", "vs_float", "vs_reference")


@dataclass(frozen=True)
class Entry:
    """A row under construction and the raw data behind it. blocks_ms: empty when there is no latency."""

    row: Row
    artifact: Artifact | None
    accuracy: Accuracy | None
    result: wire.Result | None
    blocks_ms: tuple[tuple[float, ...], ...]
    energy: EnergySummary | None = None

    @property
    def name(self) -> str:
        return f"{self.row['recipe']} / {self.row['format']}"

    @property
    def before(self) -> wire.Conditions | None:
        return self.result.conditions[0] if self.result and self.result.conditions else None


def float_format(format: str) -> str:
    """The float format of the same file type: tflite-int8 → tflite-fp32."""
    return f"{format.partition('-')[0]}-fp32"


def baseline_of(study: dict[str, Any]) -> str | None:
    """The recipe without steps: what the others are compared with. None when the study has none."""
    return next((name for name, steps in study["recipes"].items() if not steps), None)


def compare_all(entries: Sequence[Entry], baseline: str | None, seed: int) -> None:
    """Fill in the three comparisons of every row, correct their p values for being many, and add what follows from them."""
    by_key = {(e.row["recipe"], e.row["format"], e.row["device"]): e for e in entries}
    for entry in entries:
        recipe, form, device = entry.row["recipe"], entry.row["format"], entry.row["device"]
        partners = {
            "vs_baseline": (baseline, form),
            "vs_float": (recipe, float_format(form)),
            "vs_reference": (baseline, float_format(form)),
        }
        for kind, (other_recipe, other_form) in partners.items():
            entry.row[kind] = None
            if (other_recipe, other_form) == (recipe, form):
                continue
            if other_recipe is None:
                entry.row[kind] = _blank("", "the study has no recipe without steps to compare with")
                continue
            other = by_key.get((other_recipe, other_form, device))
            entry.row[kind] = (
                _blank(f"{other_recipe} / {other_form}", f"the study has no {other_form} of {other_recipe}")
                if other is None
                else _compare(entry, other, seed)
            )
    _verdicts(entries)
    for entry in entries:
        _consequences(entry, by_key, baseline)


def _blank(other: str, reason: str) -> Row:
    comparison: Row = dict.fromkeys((f.name for f in fields.COMPARISON), None)
    return comparison | {"with": other, "reason": reason}


def _compare(entry: Entry, other: Entry, seed: int) -> Row:
    comparison = _blank(other.name, "")
    reasons = []
    if other.artifact and entry.artifact:
        comparison["size_ratio"] = _ratio(other.artifact.file_bytes, entry.artifact.file_bytes)
        comparison["packed_ratio"] = _ratio(other.artifact.packed_bytes, entry.artifact.packed_bytes)
    else:
        reasons.append(_absence(other if entry.artifact else entry, "file"))
    if entry.blocks_ms and other.blocks_ms:
        # a stream of its own for every pair: equal draws for all would make independent intervals move together
        stream = crc32(f"{seed}/{entry.name}/{other.name}/{entry.row['device']}".encode())
        speedup = stats.speedup_with_interval(other.blocks_ms, entry.blocks_ms, stream)
        comparison |= {"speedup": speedup.value, "speedup_low": speedup.low, "speedup_high": speedup.high}
        comparison["speed_verdict"] = stats.speed_verdict(speedup)
    else:
        reasons.append(_absence(other if entry.blocks_ms else entry, "latency"))
    comparison |= energies.comparison(other.energy, entry.energy)
    mine, theirs = entry.accuracy, other.accuracy
    if mine is None or theirs is None:
        reasons.append(_absence(other if mine else entry, "accuracy"))
    elif (mine.split, len(mine.correct)) != (theirs.split, len(theirs.correct)):
        reasons.append(f"{other.name} was scored on other images: the accuracies are not compared")
    else:
        test = stats.mcnemar(theirs.correct, mine.correct)
        comparison |= {
            "accuracy_difference": test.difference,
            "accuracy_difference_low": test.low,
            "accuracy_difference_high": test.high,
            "accuracy_lost": test.lost,
            "accuracy_won": test.won,
            "accuracy_p": test.p,
        }
    comparison["reason"] = "; ".join(dict.fromkeys(reasons)) or None
    return comparison


def _absence(entry: Entry, what: str) -> str:
    """Why a part of a comparison is missing: the reason of a variant that failed, once for all parts."""
    if entry.row["status"] != "ok":
        return f"{entry.name}: {entry.row['reason']}"
    return f"{entry.name} has no {what}"


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _verdicts(entries: Sequence[Entry]) -> None:
    """Holm's correction over the comparisons of one kind on one device: the family that a reader scans for a winner."""
    for kind in KINDS:
        for device in {e.row["device"] for e in entries}:
            family = [e.row[kind] for e in entries if e.row["device"] == device and e.row[kind]]
            family = [c for c in family if c["accuracy_p"] is not None]
            adjusted = stats.holm([c["accuracy_p"] for c in family])
            for comparison, p in zip(family, adjusted, strict=True):
                comparison["accuracy_p_adjusted"] = p
                comparison["accuracy_verdict"] = stats.accuracy_verdict(comparison["accuracy_difference"], p)


def _consequences(entry: Entry, by_key: dict[tuple[str, str, str], Entry], baseline: str | None) -> None:
    """Notes and warnings that only a comparison can give."""
    row, device = entry.row, entry.row["device"]
    against_float = row["vs_float"]
    partner = by_key.get((row["recipe"], float_format(row["format"]), device))
    if (
        against_float
        and against_float["speedup"] is not None
        and against_float["speed_verdict"] != "faster"
        and entry.artifact
        and entry.result
        and partner
    ):
        float_ms = partner.row["latency_ms_p50"]
        row["notes"].append(findings.why_int8_is_not_faster(entry.artifact, entry.result, float_ms, entry.before))
    others = [by_key.get((baseline or "", form, device)) for form in (row["format"], float_format(row["format"]))]
    for other in {id(o): o for o in (partner, *others) if o and o is not entry}.values():
        if entry.result and other.result and entry.blocks_ms and other.blocks_ms:
            across = findings.board_warnings(row["member"], other.row["member"])
            for text in (
                *across,
                *findings.difference_warnings(entry.result, other.result, entry.before, other.before),
            ):
                row["warnings"].append(f"against {other.name}: {text}")


def mark_pareto(entries: Sequence[Entry]) -> None:
    """Set the pareto flags: rows of a device that no other row beats in both figures (point estimates).

    None where a figure is missing: such a row is neither on the front nor beaten.
    """
    for flag, cost in PARETO:
        for entry in entries:
            entry.row[flag] = None
        for device in {e.row["device"] for e in entries}:
            rows = [e.row for e in entries if e.row["device"] == device]
            rows = [r for r in rows if r["top1"] is not None and r[cost] is not None]
            for row in rows:
                rivals = [r for r in rows if cost != "energy_mj" or r["power_scope"] == row["power_scope"]]
                row[flag] = not any(_beats(other, row, cost) for other in rivals)


def _beats(other: Row, row: Row, cost: str) -> bool:
    no_worse = other["top1"] >= row["top1"] and other[cost] <= row[cost]
    return bool(no_worse and (other["top1"] > row["top1"] or other[cost] < row[cost]))


def best(rows: Sequence[Row], baseline: str | None) -> list[Row]:
    """Per device: the fastest, smallest and most frugal variant that lost no measurable accuracy against the baseline's float file.

    Indices into rows; None where no variant is also measurably faster (smaller, more frugal) than that file.
    """
    found = []
    for device in dict.fromkeys(r["device"] for r in rows):
        kept = [
            (i, r)
            for i, r in enumerate(rows)
            if r["device"] == device
            and r["vs_reference"]
            and r["vs_reference"]["accuracy_verdict"] in (stats.NO_DIFFERENCE, "higher")
        ]
        compared = [
            r for r in rows if r["device"] == device and r["vs_reference"] and r["vs_reference"]["accuracy_verdict"]
        ]
        faster = [(i, r) for i, r in kept if r["vs_reference"]["speed_verdict"] == "faster"]
        smaller = [(i, r) for i, r in kept if (r["vs_reference"]["size_ratio"] or 0) > 1]
        frugal = [(i, r) for i, r in kept if r["vs_reference"]["energy_verdict"] == "less"]
        reason = None
        if baseline is None:
            reason = "the study has no recipe without steps to compare with"
        elif not compared:
            reason = "no variant could be compared with the baseline's float file"
        found.append(
            {
                "device": device,
                "fastest": _first(faster, lambda r: r["latency_ms_p50"]),
                "smallest": _first(smaller, lambda r: r["file_bytes"]),
                "least_energy": _first(frugal, lambda r: r["energy_mj"]),
                "reason": reason,
            }
        )
    return found


def _first(candidates: list[tuple[int, Row]], cost: Callable[[Row], float]) -> int | None:
    return min(candidates, key=lambda c: cost(c[1]))[0] if candidates else None
