"""One variant with everything that is known of it, as labelled text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.report import wording as w
from edgecompress.report.profiles import NOT_ASKED
from edgecompress.report.searches import LONG_NOTES

Pairs = tuple[tuple[str, str], ...]


CONDITIONS = {
    "board": "Board",
    "cpu_model": "CPU",
    "cpus_online": "CPUs online",
    "machine": "Machine",
    "os": "System",
    "kernel": "Kernel",
    "python": "Python",
    "governors": "Clock governors",
    "cpu_mhz": "Clocks, MHz",
    "temperatures_c": "Temperatures, °C",
    "throttled": "Throttled (bits)",
    "throttle_counts": "Throttle events since boot",
    "power_mode": "Power mode",
    "int8_instructions": "Instructions for int8",
    "load_1m": "Load average, 1 min",
    "mem_available_bytes": "Memory available",
    "swap_used_bytes": "Swap used",
}
"""Label of each field of wire.Conditions that a person is shown."""


@dataclass(frozen=True)
class Detail:
    """title; status; notes and warnings; groups of (heading, pairs of label and text); key: unique in a report."""

    title: str
    status: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    groups: tuple[tuple[str, Pairs], ...]
    reason: str = ""
    key: str = ""


def detail(row: dict[str, Any], title: str, key: str) -> Detail:
    groups = [
        ("Accuracy", _accuracy(row)),
        ("Latency", _latency(row)),
        ("Energy", _energy(row)),
        ("File", _file(row)),
        ("Model", _model(row)),
        *((f"Step {i}: {w.plain(s['method'])}", _step(s)) for i, s in enumerate(row["step_results"] or [], 1)),
        *((f"Against {w.plain(c['with'])}", _comparison(c)) for c in _comparisons(row)),
        ("How it was measured", _measured(row)),
        *((f"Device, {w.plain(c['phase'])}", _conditions(c)) for c in row["conditions"] or []),
    ]
    return Detail(
        title,
        row["status"],
        tuple(w.plain(n) for n in row["notes"]),
        tuple(w.plain(n) for n in row["warnings"]),
        tuple((heading, pairs) for heading, pairs in groups if pairs),
        w.plain(row["reason"] or ""),
        key,
    )


def _accuracy(row: dict[str, Any]) -> Pairs:
    if row["top1"] is None:
        return (("Exported file", w.plain(row["accuracy_reason"])),)
    return _pairs(
        ("Top-1 of the file", f"{w.percent(row['top1'])} ({w.percent_interval(row['top1_low'], row['top1_high'])})"),
        ("Top-5 of the file", None if row["top5"] is None else w.percent(row["top5"])),
        ("Scored on", f"{row['scored_images']} images of {row['scored_on']}, on the device"),
    )


def _latency(row: dict[str, Any]) -> Pairs:
    if row["latency_ms_p50"] is None:
        return ()
    lines = []
    for name, low, high, label in (
        ("latency_ms_p50", "latency_ms_low", "latency_ms_high", "Median"),
        ("latency_ms_p90", "latency_ms_p90_low", "latency_ms_p90_high", "p90"),
        ("latency_ms_p99", "latency_ms_p99_low", "latency_ms_p99_high", "p99"),
    ):
        lines.append((label, f"{w.milliseconds(row[name])} ms ({w.milliseconds_interval(row[low], row[high])})"))
    return _pairs(
        *lines,
        ("Range", f"{w.milliseconds(row['latency_ms_min'])} to {w.milliseconds(row['latency_ms_max'])} ms"),
        ("Timed inferences", f"{row['latency_samples']:,} in {len(row['latency_block_ms_p50'])} blocks"),
        ("Median of each block", ", ".join(w.milliseconds(m) for m in row["latency_block_ms_p50"]) + " ms"),
        ("Warm-up inferences", f"{row['warmup_samples']:,}"),
        ("Loading the file", None if row["load_ms"] is None else f"{w.milliseconds(row['load_ms'])} ms"),
        (
            "First inference",
            None if row["first_inference_ms"] is None else f"{w.milliseconds(row['first_inference_ms'])} ms",
        ),
        ("Time by operator", None if row["operator_times_reason"] == NOT_ASKED else row["operator_times_reason"]),
        ("Peak memory of the process", None if row["peak_rss_bytes"] is None else w.size(row["peak_rss_bytes"])),
    )


def _energy(row: dict[str, Any]) -> Pairs:
    if row["energy_mj"] is None:
        return (("Per inference", w.plain(row["energy_reason"] or "not measured")),)
    dynamic, info, budget = row["energy_dynamic_mj"], row["sensor_info"], row["energy_budget_mj"]
    idle = f"{w.watts(row['idle_w'])} ({w.watts(row['idle_before_w'])} before, {w.watts(row['idle_after_w'])} after)"
    over_idle = f"{w.milliseconds(dynamic)} mJ ({w.interval(row, 'energy_dynamic_mj')})"
    gross = (
        f"{w.milliseconds(row['energy_mj'])} mJ ({w.interval(row, 'energy_mj')}), {row['power_scope']}, {row['sensor']}"
    )
    return _pairs(
        ("Per inference", gross),
        ("Over the idle device", "idle was not measured" if dynamic is None else over_idle),
        ("Power", f"{w.watts(row['power_mean_w'])} on average, {w.watts(row['power_peak_w'])} at most"),
        ("Idle power", None if row["idle_w"] is None else idle),
        ("Energy-delay product", f"{row['energy_delay_mjs']:.4g} mJ·s"),
        ("Inferences per Wh", w.count(row["inferences_per_wh"])),
        ("On the battery", row["battery_reason"] or f"{row['battery_hours']:.3g} h of inferences back to back"),
        ("Each window", ", ".join(w.milliseconds(v) for v in row["energy_window_mj"]) + " mJ"),
        (
            "The interval is made of",
            ", ".join(f"{part} ±{value:.3g}" for part, value in budget.items() if value) + " mJ",
        ),
        ("Sensor", info["description"]),
        ("Inferences beside it", None if row["sensor_cost"] is None else f"{w.ratio(row['sensor_cost'])} as long"),
        ("About the sensor", "; ".join(info["notes"]) or None),
        ("Readings", f"{row['energy_samples']:,} in all, {row['energy_windows']} windows"),
    )


def _file(row: dict[str, Any]) -> Pairs:
    if row["file"] is None:
        return ()
    parity, zeros = row["parity"], row["zero_fraction"]
    limit = (
        f"largest difference accepted {parity['tolerance']:.3g}"
        if parity["tolerance"] is not None
        else f"agreement required {w.percent(parity['agreement_floor'])}"
    )
    return _pairs(
        ("File", row["file"]),
        ("SHA-256", row["sha256"]),
        ("Bytes", f"{row['file_bytes']:,}, packed (xz -6) {row['packed_bytes']:,}"),
        (
            "Weights that are zero",
            None if zeros is None else f"{row['file_zeros']:,} of {row['file_weights']:,} ({w.percent(zeros)})",
        ),
        (
            "of them zero before the export",
            None if zeros is None or row["model_zeros"] is None else f"{row['model_zeros']:,}",
        ),
        (
            "Parity with PyTorch",
            f"{parity['images']} images: logits differ by {parity['max_abs_diff']:.3g} at most, {parity['mean_abs_diff']:.3g} on "
            f"average; same top-1 on {w.percent(parity['top1_agreement'])}; {limit}",
        ),
        ("Activations", row["activation_type"]),
        ("Input", f"{row['input_dtype']} {w.value_text(row['input_shape'])}"),
        ("Operators", w.value_text(row["operators"])),
        ("Written by", w.value_text(row["toolchain"])),
    )


def _model(row: dict[str, Any]) -> Pairs:
    if row["params"] is None:
        return ()
    return _pairs(
        ("Top-1 before export", f"{w.percent(row['model_top1'])} ({row['model_scored_on']})"),
        ("Parameters", f"{row['params']:,}, non-zero {row['nonzero_params']:,}"),
        ("MACs", f"{row['macs']:,}, without zero weights {row['effective_macs']:,}"),
        ("Activations at their largest", w.size(row["peak_activation_bytes"]) + " as float32"),
        ("Weights from", row["weights"]),
        ("Training", row["train_reason"] or w.seconds(row["train_seconds"])),
        ("Energy of training", row["train_energy_reason"] or f"{row['train_energy_j']:.4g} J"),
    )


def _step(step: dict[str, Any]) -> Pairs:
    return _pairs(
        *((w.plain(k), w.value_text(v)) for k, v in step["params"].items() if v is not None),
        (
            "Took",
            f"{w.seconds(step['seconds'])}, of which training {w.seconds(step['train_seconds'])}, {step['epochs']} epochs",
        ),
        *((w.plain(k).capitalize(), w.value_text(v)) for k, v in step["notes"].items() if k not in LONG_NOTES),
    )


def _comparisons(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons of a row, each other row once."""
    found = [row[kind] for kind in ("vs_baseline", "vs_float", "vs_reference") if row[kind] and row[kind]["with"]]
    return list({c["with"]: c for c in found}.values())


def _comparison(c: dict[str, Any]) -> Pairs:
    accuracy = speed = None
    if c["accuracy_verdict"]:
        accuracy = (
            f"{c['accuracy_verdict']}: {w.points(c['accuracy_difference'])} points "
            f"({w.points_interval(c['accuracy_difference_low'], c['accuracy_difference_high'])}), {c['accuracy_won']} images won, "
            f"{c['accuracy_lost']} lost, p {w.probability(c['accuracy_p'])}, corrected {w.probability(c['accuracy_p_adjusted'])}"
        )
    if c["speed_verdict"]:
        speed = (
            f"{c['speed_verdict']}: {w.ratio(c['speedup'])} ({w.ratio_interval(c['speedup_low'], c['speedup_high'])})"
        )
    sizes = (
        None if c["size_ratio"] is None else f"{w.ratio(c['size_ratio'])} smaller, packed {w.ratio(c['packed_ratio'])}"
    )
    energy = c["energy_reason"]
    if c["energy_verdict"]:
        ratio = w.ratio_interval(c["energy_ratio_low"], c["energy_ratio_high"])
        energy = f"{c['energy_verdict']}: {w.ratio(c['energy_ratio'])} less ({ratio})"
    return _pairs(
        ("Accuracy", accuracy), ("Speed", speed), ("Size", sizes), ("Energy", energy), ("Not compared", c["reason"])
    )


def _measured(row: dict[str, Any]) -> Pairs:
    if row["engine"] is None:
        return ()
    return _pairs(
        ("Board", row["member"] if row["member"] not in (None, row["device"]) else None),
        ("Engine", f"{row['engine']} ({row['engine_package']})"),
        ("Providers", w.value_text(row["providers"]) if row["providers"] else None),
        ("Threads", str(row["threads"])),
        ("CPUs", "not pinned" if row["cpus"] is None else w.value_text(row["cpus"])),
        ("Agent", f"SHA-256 {row['agent_sha256']}"),
        ("Power sensor", row["sensor"]),
    )


def _conditions(conditions: dict[str, Any]) -> Pairs:
    return tuple(
        (label, w.size(conditions[key]) if key.endswith("_bytes") else w.value_text(conditions[key]))
        for key, label in CONDITIONS.items()
        if conditions.get(key) not in (None, [], {})
    )


def _pairs(*pairs: tuple[str, str | None]) -> Pairs:
    return tuple((label, w.plain(text)) for label, text in pairs if text)
