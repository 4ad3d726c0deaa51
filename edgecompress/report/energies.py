"""The energy of a row: what a power trace amounts to, under the names of results.json, and why there is none."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgecompress_agent import wire

from edgecompress import energy
from edgecompress.energy import EnergyComparison, EnergySummary
from edgecompress.report import wording as w
from edgecompress.stats import Estimate

NO_SENSOR = "not measured: no sensor on this device"
NO_BATTERY = "the device's profile names no battery (battery_wh)"
FIELDS = (
    "energy_mj", "energy_mj_low", "energy_mj_high", "energy_dynamic_mj", "energy_dynamic_mj_low", "energy_dynamic_mj_high",
    "power_mean_w", "power_peak_w", "idle_w", "idle_before_w", "idle_after_w", "energy_delay_mjs", "inferences_per_wh",
    "battery_hours", "energy_windows", "energy_samples", "energy_window_mj", "energy_budget_mj", "power_scope", "sensor_cost",
    "sensor_info",
)  # fmt: skip


def of_result(
    result: wire.Result, plan: wire.PowerPlan | None, battery_wh: float | None
) -> tuple[dict[str, Any], EnergySummary | None]:
    """The fields of a row, and what they came from (None: no valid energy). battery_wh: of the device's profile."""
    row: dict[str, Any] = dict.fromkeys(FIELDS) | {"sensor": w.plain(result.sensor)}
    if result.power is None:
        no_sensor = result.sensor == "none" and not result.windows
        reason = w.plain(result.power_reason or "no reason was given")
        row["energy_reason"] = NO_SENSOR if no_sensor else f"not measured: {reason}"
        return row | {"battery_reason": row["energy_reason"]}, None
    summary = energy.summarise(result.power, conditions=result.conditions, plan=plan)
    info = summary.sensor
    row["sensor"] = f"{w.plain(info.name)} (replayed)" if info.replayed else w.plain(info.name)
    row |= {"power_scope": summary.scope, "sensor_info": wire.to_json(info), "sensor_cost": energy.sensor_cost(result)}
    row |= {"energy_windows": summary.windows, "energy_samples": summary.samples}
    if summary.gross_j is None or summary.budget is None:
        reason = f"not measured: {w.plain('; '.join(summary.invalid))}"
        return row | {"energy_reason": reason, "battery_reason": reason}, None
    row |= _millijoules("energy_mj", summary.gross_j) | _millijoules("energy_dynamic_mj", summary.dynamic_j)
    row |= {
        "energy_reason": None,
        "power_mean_w": summary.mean_w,
        "power_peak_w": summary.peak_w,
        "idle_w": summary.idle_w,
        "idle_before_w": summary.idle_before_w,
        "idle_after_w": summary.idle_after_w,
        "energy_delay_mjs": None if summary.edp_js is None else 1e3 * summary.edp_js,
        "inferences_per_wh": summary.inferences_per_wh,
        "energy_window_mj": [1e3 * j for j in summary.window_j],
        "energy_budget_mj": {part: 1e3 * j for part, j in asdict(summary.budget).items()},
    }
    return row | _battery(summary, battery_wh), summary


def warnings(row: dict[str, Any], summary: EnergySummary | None) -> list[str]:
    """What makes the energy less certain than its interval says. row, summary: of `of_result`."""
    return [] if summary is None else [*summary.warnings, *energy.sensor_warnings(row["sensor_cost"])]


def comparison(reference: EnergySummary | None, variant: EnergySummary | None) -> dict[str, Any]:
    """The energy's part of a comparison: `reference` is the other row."""
    found = EnergyComparison(None, None) if reference is None or variant is None else energy.compare(reference, variant)
    ratio = found.ratio
    return {
        "energy_ratio": ratio.value if ratio else None,
        "energy_ratio_low": ratio.low if ratio else None,
        "energy_ratio_high": ratio.high if ratio else None,
        "energy_verdict": found.verdict,
        "energy_reason": found.reason,
    }


def device_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What read the power of a device's measured rows; why nothing did, when none of them has an energy."""
    measured = [r for r in rows if r["energy_mj"] is not None]
    if not measured:
        return {"energy": next((r["energy_reason"] for r in rows if r["energy_reason"]), None)}
    told = []
    for row in measured:
        info = row["sensor_info"]
        text = (
            f"{row['sensor']} ({info['description']}), scope {row['power_scope']}, "
            f"a reading every {1e3 * info['interval_s']:.3g} ms, "
            f"limits ±{100 * info['gain_error']:.2g} % and ±{info['offset_error_w']:.2g} W, one step {info['resolution_w']:.2g} W"
        )
        told.append(text + (f"; chosen because {info['chosen_because']}" if info["chosen_because"] else ""))
    return {"energy": None, "power_sensor": list(dict.fromkeys(told))}


def _millijoules(name: str, found: Estimate | None) -> dict[str, float | None]:
    values = (None, None, None) if found is None else (1e3 * found.value, 1e3 * found.low, 1e3 * found.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _battery(summary: EnergySummary, battery_wh: float | None) -> dict[str, Any]:
    if battery_wh is None:
        return {"battery_hours": None, "battery_reason": NO_BATTERY}
    hours = summary.hours_on_battery(battery_wh)
    reason = None
    if hours is None and summary.scope == "as-wired":
        reason = "nobody said what the power includes (scope in the device's profile)"
    elif hours is None:
        reason = f"power of scope {summary.scope} is not all that a battery would supply"
    return {"battery_hours": hours, "battery_reason": reason}
