"""The arithmetic of `profile` and of the time by operator: what the device told, summed, set in relation and put into words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from edgecompress_agent import wire

from edgecompress.report import wording as w
from edgecompress.report.tables import Cell, Column, Table

NOT_ASKED = "not asked for: measure.profile_ops is false"
TOP = 10
_FAR = 0.2
"""A sum that is farther than this from the whole inference is said to be: read the shares, then, not the ms."""

METHODS = {
    "profiler": "Timing an operator has a cost of its own, so the operators' times are those of a slowed inference.",
    "cut in turn": "Every piece runs by itself, one after the other as in the whole; it pays for one call of its own (about 1 µs "
    "on a desktop CPU), and what the engine fuses across operators is not fused.",
    "cut alone": "Every piece runs by itself many times, and then the next, with its data in the cache; it pays for one call of "
    "its own, and what the engine fuses across operators is not fused.",
}


def inputs_at_once(job: wire.Job, result: wire.Result) -> int:
    """The batch that one inference was of: the one asked for, or the one that the file is fixed to."""
    inputs = result.engine.inputs if result.engine else ()
    fixed = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return job.batch if job.batch > 1 else max(fixed or 1, 1)


def throughput_per_s(job: wire.Job, result: wire.Result) -> float:
    """Inputs per second of back-to-back inference, over all timed ones. ValueError when they took no time."""
    taken_ns = sum(sum(block.latencies_ns) for block in result.blocks)
    if taken_ns <= 0:
        raise ValueError("the device reported no timed inference")
    return inputs_at_once(job, result) * sum(len(block.latencies_ns) for block in result.blocks) * 1e9 / taken_ns


def energy_text(fields: Mapping[str, Any]) -> str:
    """The energy of one inference (of the whole batch) and what follows from it, in one sentence. fields: `energies.of_result`."""
    if fields["energy_mj"] is None:
        return str(fields["energy_reason"])
    said = [f"{_energy('energy_mj', fields)} per inference, {fields['power_scope']}, {fields['sensor']}"]
    if fields["energy_dynamic_mj"] is not None:
        said.append(f"over idle {_energy('energy_dynamic_mj', fields)}")
    idle = "" if fields["idle_w"] is None else f", idle {fields['idle_w']:.4g} W"
    said.append(f"mean {fields['power_mean_w']:.4g} W, peak {fields['power_peak_w']:.4g} W{idle}")
    said.append(
        f"{fields['inferences_per_wh']:.4g} inferences per Wh, energy × time {fields['energy_delay_mjs']:.4g} mJ·s"
    )
    if fields["battery_hours"] is not None:
        said.append(f"the battery lasts {fields['battery_hours']:.3g} h")
    return "; ".join(said)


def _energy(name: str, fields: Mapping[str, Any]) -> str:
    interval = w.milliseconds_interval(fields[f"{name}_low"], fields[f"{name}_high"])
    return f"{w.milliseconds(fields[name])} mJ ({interval})"


def operator_times(result: wire.Result, latency_ms: float) -> dict[str, Any] | None:
    """Time by operator of one inference, largest first. latency_ms: median of the inferences that nobody profiled.

    An operator's ms is the median of its calls, times its calls in one inference.
    """
    profile = result.operators
    if profile is None:
        return None
    each: list[dict[str, Any]] = []
    for position, o in enumerate(profile.operators):
        calls = o.calls / profile.inferences
        each.append({
            "position": position, "name": w.plain(o.name), "layer": o.layer and w.plain(o.layer),
            "type": w.plain(o.type), "ms": o.p50_ns * calls / 1e6,
            "share": None, "macs": o.macs, "parameter_bytes": o.parameter_bytes, "activation_bytes": o.activation_bytes,
            "calls_per_inference": calls,
        })  # fmt: skip
    total_ms = sum(o["ms"] for o in each)
    types: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in each:
        one["share"] = one["ms"] / total_ms if total_ms else None
        types[one["type"]].append(one)
    by_type = [
        {
            "type": kind,
            "operators": len(members),
            "ms": sum(o["ms"] for o in members),
            "share": sum(o["ms"] for o in members) / total_ms if total_ms else None,
            "macs": None if any(o["macs"] is None for o in members) else sum(o["macs"] for o in members),
        }
        for kind, members in types.items()
    ]
    return {
        "method": profile.method,
        "tool": w.plain(profile.tool),
        "resolution_us": profile.resolution_ns / 1e3,
        "inferences": profile.inferences,
        "sum_ms": total_ms,
        "latency_ms_p50": latency_ms,
        "sum_to_latency": total_ms / latency_ms,
        "pass_latency_ms_p50": profile.whole_p50_ns / 1e6,
        "pass_to_latency": profile.whole_p50_ns / 1e6 / latency_ms,
        "output_difference": profile.output_difference,
        "by_type": sorted(by_type, key=lambda t: -t["ms"]),
        "operators": sorted(each, key=lambda o: -o["ms"]),
    }


def operator_fields(job: Mapping[str, Any], result: wire.Result, latency_ms: float) -> dict[str, Any]:
    """The fields of a row of results.json. job: wire.Job as JSON."""
    times = operator_times(result, latency_ms)
    reason = None
    if times is None:
        reason = (
            f"not available: {result.operators_reason or 'no reason was given'}"
            if job.get("profile_ops")
            else NOT_ASKED
        )
    return {"operator_times": times, "operator_times_reason": reason}


def sentences(times: dict[str, Any]) -> list[str]:
    """How the times came about, and how their sum compares with the whole inference."""
    ratio = times["sum_to_latency"]
    said = [
        f"Told by {times['tool']}, over {times['inferences']} inferences. The operators' medians sum to "
        f"{w.milliseconds(times['sum_ms'])} ms, {w.ratio(ratio)} the {w.milliseconds(times['latency_ms_p50'])} ms (median) of an "
        f"inference that nobody profiles."
    ]
    if times["method"] == "profiler":
        said.append(
            f"While it is profiled, an inference takes {w.milliseconds(times['pass_latency_ms_p50'])} ms. "
            f"{METHODS['profiler']} They are told in whole µs, rounded down."
        )
    else:
        same = (
            "exactly what the whole file puts out"
            if times["output_difference"] == 0
            else f"what the whole file puts out, but for {times['output_difference']:.2g}"
        )
        said.append(f"{METHODS[times['method']]} The pieces put out {same}.")
    if abs(ratio - 1) > _FAR:
        busy = (
            " A busy device does that: it interrupts a whole inference more often than one operator."
            if ratio < 1
            else ""
        )
        said.append(f"The sum is far from the whole: read the shares, not the milliseconds.{busy}")
    return said


def by_type_text(times: dict[str, Any]) -> str:
    parts = (f"{t['type']} {w.percent(t['share'])} ({t['operators']})" for t in times["by_type"][:6])
    return f"By type of operator (and how many): {', '.join(parts)}."


def operator_table(times: dict[str, Any], key: str, title: str) -> Table:
    """The `TOP` operators that take the longest, and the rest in one row."""
    top, rest = times["operators"][:TOP], times["operators"][TOP:]
    body = [
        (
            Cell(o["layer"] or o["name"] or w.NONE),
            Cell(o["type"]),
            Cell(w.milliseconds(o["ms"]), sort=o["ms"]),
            Cell(w.percent(o["share"]), sort=o["share"]),
            Cell(w.count(o["macs"]), sort=o["macs"]),
            Cell(w.size(o["parameter_bytes"]), sort=o["parameter_bytes"]),
            Cell(w.size(o["activation_bytes"]), sort=o["activation_bytes"]),
        )
        for o in top
    ]
    if rest:
        ms, share = sum(o["ms"] for o in rest), sum(o["share"] or 0 for o in rest)
        sums = [
            None if any(o[k] is None for o in rest) else sum(o[k] for o in rest) for k in ("macs", "parameter_bytes")
        ]
        body.append(
            (
                Cell(f"the {len(rest)} others", tone="muted"),
                Cell(""),
                Cell(w.milliseconds(ms), sort=ms),
                Cell(w.percent(share), sort=share),
                Cell(w.count(sums[0]), sort=sums[0]),
                Cell(w.size(sums[1]), sort=sums[1]),
                Cell(""),
            )
        )
    columns = (
        Column("Operator", numeric=False),
        Column("Type", numeric=False),
        Column("Time", "ms"),
        Column("Share", "of the sum"),
        Column("MACs"),
        Column("Weights"),
        Column("In and out"),
    )
    return Table(key, title, " ".join([*sentences(times), by_type_text(times)]), columns, tuple(body))
