"""The energy of one variant over that of another, on one device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgecompress.energy.summary import EnergySummary
from edgecompress.stats import CONFIDENCE, NO_DIFFERENCE, Estimate, student_quantile


@dataclass(frozen=True)
class EnergyComparison:
    """Energy of a reference over that of a variant: above 1, the variant needs less. reason: why there is none."""

    ratio: Estimate | None
    verdict: str | None
    reason: str | None = None


def compare(reference: EnergySummary, variant: EnergySummary) -> EnergyComparison:
    """Gross energy of `reference` over that of `variant`, with its interval and the variant's verdict: less, more, or
    `NO_DIFFERENCE` when the interval holds 1 or the difference is smaller than one step of the meter.

    What one meter does wrong in both cancels: its gain wholly, its offset as far as the powers are alike. Different scopes,
    and a recording with a measurement, are not compared.
    """
    if reference.gross_j is None or variant.gross_j is None:
        return EnergyComparison(None, None, "one of the two has no valid energy")
    a, b = reference.sensor, variant.sensor
    if a.scope != b.scope:
        return EnergyComparison(None, None, f"energies of different scopes are not compared ({a.scope}, {b.scope})")
    if a.replayed != b.replayed:
        return EnergyComparison(None, None, "a recorded trace is not compared with a measured one")
    parts = [_relative(s) for s in (reference, variant)]
    errors = [p["chance"] for p in parts]
    chance = math.hypot(*errors)
    # Welch and Satterthwaite: the two may scatter differently, and the noisier one decides how sure the error is
    freedom = (
        chance**4 / sum(e**4 / s.freedom for e, s in zip(errors, (reference, variant), strict=True)) if chance else 1
    )
    half = student_quantile((1 + CONFIDENCE) / 2, max(1, math.floor(freedom))) * chance + sum(p["clock"] for p in parts)
    # a meter's name and limits are all that is known of its identity: one profile has one meter
    if replace(a, notes=(), chosen_because="") == replace(b, notes=(), chosen_because=""):
        half += abs(parts[0]["offset"] - parts[1]["offset"]) + max(p["step"] for p in parts)
    else:
        half += sum(p["gain"] + p["offset"] + p["step"] for p in parts)
    value = reference.gross_j.value / variant.gross_j.value
    ratio = Estimate(value, value * math.exp(-half), value * math.exp(half))
    assert reference.budget and variant.budget  # there is a budget where there is an energy
    step_j = max(reference.budget.step, variant.budget.step)
    if ratio.low <= 1 <= ratio.high or abs(reference.gross_j.value - variant.gross_j.value) < step_j:
        return EnergyComparison(ratio, NO_DIFFERENCE)
    return EnergyComparison(ratio, "less" if value > 1 else "more")


def _relative(summary: EnergySummary) -> dict[str, float]:
    """The parts of the interval as fractions of the energy; chance as a standard error."""
    assert summary.gross_j and summary.budget
    value, budget = summary.gross_j.value, summary.budget
    parts = {"gain": budget.gain, "offset": budget.offset, "step": budget.step, "clock": budget.clock}
    return {name: part / value for name, part in parts.items()} | {"chance": summary.standard_error_j / value}
