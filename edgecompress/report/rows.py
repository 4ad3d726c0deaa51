"""From records to the rows of results.json: all the arithmetic of a report. The formats only write what stands here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from edgecompress_agent import wire

from edgecompress import stats
from edgecompress.device_profile import CONNECTION
from edgecompress.records import Artifact, Failure, Measurement, ModelRecord, to_json
from edgecompress.report import comparing, energies, fields, findings, profiles
from edgecompress.report.comparing import Entry, Row

NOT_SCORED = "not scored: the study says score_on: none"
CONNECTION_KEYS = frozenset(key for keys in CONNECTION.values() for key in keys)
"""How a device is reached is nobody's business who is sent a report."""

ArtifactKey = tuple[str, str, str | None]
VariantKey = tuple[str, str, str]


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made of, as a run directory holds it.

    study: StudySpec as JSON. data: Dataset.record(). models: recipe → its model. artifacts: (recipe, format, activation
    type or None) → the file. measurements: (recipe, format, device) → what the device answered; None: not there yet.
    devices: name → DeviceProfile as JSON. host: facts about the machine that compressed and exported.
    """

    study: dict[str, Any]
    data: dict[str, Any]
    models: Mapping[str, ModelRecord | Failure]
    artifacts: Mapping[ArtifactKey, Artifact | Failure]
    measurements: Mapping[VariantKey, Measurement | Failure | None]
    devices: dict[str, dict[str, Any]]
    created_unix_s: float
    edgecompress_version: str
    command: str
    host: dict[str, Any] = field(default_factory=dict)


def document(report: ReportInput) -> dict[str, Any]:
    """The whole of results.json as plain JSON values (docs/results-format.md): the rows and what they were made under."""
    baseline = comparing.baseline_of(report.study)
    entries = _entries(report)
    made = [e.row for e in entries]
    document = {
        "schema_version": fields.SCHEMA_VERSION,
        "edgecompress_version": report.edgecompress_version,
        "created_unix_s": report.created_unix_s,
        "command": report.command,
        "study": report.study,
        "data": report.data,
        "devices": {name: _without_connection(profile) for name, profile in report.devices.items()},
        "host": report.host,
        "confidence": stats.CONFIDENCE,
        "rows": made,
        "best": comparing.best(made, baseline),
        "findings": [_device_findings(name, profile, entries) for name, profile in report.devices.items()],
    }
    cleaned: dict[str, Any] = _writable(document)
    return cleaned


def _without_connection(profile: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in profile.items() if k not in CONNECTION_KEYS}
    if "pool" in kept:
        kept["pool"] = [_without_connection(member) for member in kept["pool"]]
    return kept


def rows(report: ReportInput) -> list[Row]:
    """One row for each recipe × format × device of the study, in its order; the fields are those of `fields.ROW`."""
    return [e.row for e in _entries(report)]


def latency_summary(result: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The latency fields of a row (and load, first inference, memory) from a wire.Result as JSON.

    WireError when it is no result; ValueError when its latencies cannot be latencies.
    """
    read = wire.from_json(wire.Result, result)
    return _latency(read, _blocks_ms(read), seed)


def _entries(report: ReportInput) -> list[Entry]:
    study = report.study
    entries = [
        _entry(report, recipe, form, device)
        for device in report.devices
        for recipe in study["recipes"]
        for form in study["formats"]
    ]
    comparing.compare_all(entries, comparing.baseline_of(study), study["seed"])
    comparing.mark_pareto(entries)
    order = [f.name for f in fields.ROW]
    for entry in entries:
        if set(entry.row) != set(order):
            raise AssertionError(f"row and fields.ROW differ in {sorted(set(entry.row) ^ set(order))}")
        entry.row["warnings"] = list(dict.fromkeys(entry.row["warnings"]))
        ordered = {name: entry.row[name] for name in order}
        entry.row.clear()
        entry.row.update(ordered)
    return entries


def _entry(report: ReportInput, recipe: str, form: str, device: str) -> Entry:
    row: Row = dict.fromkeys((f.name for f in fields.ROW), None)
    row |= {"recipe": recipe, "format": form, "device": device, "status": "ok", "notes": [], "warnings": []}
    row["steps"] = to_json(report.study["recipes"][recipe])
    model = report.models.get(recipe)
    artifact = _artifact_of(report, recipe, form, device)
    measured = report.measurements.get((recipe, form, device))
    found_artifact = found_accuracy = found_energy = result = None
    blocks_ms: tuple[tuple[float, ...], ...] = ()
    if isinstance(model, ModelRecord):
        _model_fields(row, model)
    if isinstance(artifact, Artifact):
        found_artifact = artifact
        _artifact_fields(row, artifact)
    failure = next((f for f in (model, artifact, measured) if isinstance(f, Failure)), None)
    if failure is not None:
        row |= {"status": "failed", "reason": f"{failure.stage}: {failure.reason}"}
    elif isinstance(measured, Measurement):
        try:
            result = wire.from_json(wire.Result, measured.result)
            if result.status != "ok":
                raise ValueError(result.reason)
            blocks_ms = _blocks_ms(result)
            row |= _latency(result, blocks_ms, crc32(f"{study_seed(report)}/{recipe}/{form}/{device}".encode()))
        except ValueError as error:  # WireError is one: what a device sends is checked, not believed
            row |= {"status": "failed", "reason": f"measurement: {error}"}
            result, blocks_ms = None, ()
        else:
            found_accuracy = measured.accuracy
            _measured_fields(row, measured, result)
            plan, battery_wh = wire.from_json(wire.Job, measured.job).power, report.devices[device].get("battery_wh")
            energy_fields, found_energy = energies.of_result(result, plan, battery_wh)
            row |= energy_fields
            row["warnings"] += energies.warnings(row, found_energy)
            row |= profiles.operator_fields(measured.job, result, row["latency_ms_p50"])
            row["warnings"] += findings.latency_warnings(blocks_ms)
    else:
        row |= {"status": "not-measured", "reason": "not measured yet"}
    if row["status"] != "ok":
        row["accuracy_reason"] = row["operator_times_reason"] = f"not measured: {row['reason']}"
        no_sensor = report.devices[device].get("sensor", "none") == "none"
        row["energy_reason"] = row["battery_reason"] = energies.NO_SENSOR if no_sensor else row["accuracy_reason"]
    if found_artifact is not None:
        row["notes"] += findings.zero_note(found_artifact, row["macs"], row["effective_macs"])
    return Entry(row, found_artifact, found_accuracy, result, blocks_ms, found_energy)


def study_seed(report: ReportInput) -> int:
    return int(report.study["seed"])


def _artifact_of(report: ReportInput, recipe: str, form: str, device: str) -> Artifact | Failure | None:
    """The file of this variant: int8 ONNX files are made per activation type, which the device's profile chooses."""
    chosen = report.devices[device].get("int8_activations")
    return report.artifacts.get((recipe, form, chosen)) or report.artifacts.get((recipe, form, None))


def _model_fields(row: Row, model: ModelRecord) -> None:
    row |= to_json(model.cost)
    row |= {"model_top1": model.accuracy.top1, "model_scored_on": model.accuracy.split, "weights": model.weights}
    # The baseline's trainings travel with every recipe's record; they are the baseline's cost, not the recipe's.
    trainings = [t for s in model.steps for t in s.trainings] if model.steps else list(model.trainings)
    row["compress_seconds"] = sum(s.seconds for s in model.steps)
    row["step_results"] = [
        {
            "method": s.method,
            "params": s.params,
            "seconds": s.seconds,
            "train_seconds": s.train_seconds,
            "epochs": sum(t.epochs for t in s.trainings),
            "notes": s.notes,
        }
        for s in model.steps
    ]
    if not model.steps and not trainings and model.weights:
        row["train_reason"] = f"weights from a file ({model.weights}): trained elsewhere"
        row["train_energy_reason"] = row["train_reason"]
        return
    row["train_seconds"] = sum(t.seconds for t in trainings)
    if any(t.energy_j is None for t in trainings):
        row["train_energy_reason"] = next(t.energy_reason for t in trainings if t.energy_j is None) or "not measured"
    elif trainings:
        row["train_energy_j"] = sum(t.energy_j for t in trainings if t.energy_j is not None)
    else:
        row["train_energy_reason"] = "nothing was trained"


def _artifact_fields(row: Row, artifact: Artifact) -> None:
    for name in (
        *("file", "sha256", "file_bytes", "packed_bytes", "activation_type", "input_dtype", "operators", "toolchain"),
        *("parity", "input_shape"),
    ):
        row[name] = to_json(getattr(artifact, name))
    row |= {"file_weights": artifact.weights, "file_zeros": artifact.zeros, "model_zeros": artifact.model_zeros}
    row["zero_fraction"] = artifact.zeros / artifact.weights if artifact.weights else None
    row["warnings"] += artifact.warnings
    row["notes"] += artifact.notes


def _measured_fields(row: Row, measured: Measurement, result: wire.Result) -> None:
    job = wire.from_json(wire.Job, measured.job)
    row |= {"threads": job.threads, "cpus": to_json(job.cpus), "measured_unix_s": result.started_unix_s}
    row["member"] = measured.member
    row |= {"conditions": wire.to_json(result.conditions), "agent_sha256": result.agent_sha256}
    if result.engine is not None:
        row["engine"] = f"{result.engine.name} {result.engine.version}"
        row |= {"engine_package": result.engine.package, "providers": list(result.engine.providers)}
    accuracy = measured.accuracy
    row["accuracy_reason"] = NOT_SCORED if accuracy is None else None
    if accuracy is not None:
        low, high = stats.wilson(accuracy.correct.count("1"), len(accuracy.correct))
        row |= {"top1": accuracy.top1, "top1_low": low, "top1_high": high, "top5": accuracy.top5}
        row |= {"scored_on": accuracy.split, "scored_images": accuracy.images}
        row["warnings"] += findings.accuracy_warnings(low, high, accuracy.images)
    row["warnings"] += [*findings.condition_warnings(result.conditions), *result.warnings, *measured.warnings]


def _blocks_ms(result: wire.Result) -> tuple[tuple[float, ...], ...]:
    blocks = tuple(tuple(ns / 1e6 for ns in block.latencies_ns) for block in result.blocks)
    if any(ms <= 0 for block in blocks for ms in block):
        raise ValueError("the device reported an inference that took no time")
    return blocks


def _latency(result: wire.Result, blocks_ms: tuple[tuple[float, ...], ...], seed: int) -> Row:
    p50, p90, p99 = stats.quantiles_with_intervals(blocks_ms, (0.5, 0.9, 0.99), seed)
    medians = [stats.quantile(block, 0.5) for block in blocks_ms]
    return {
        "latency_ms_p50": p50.value, "latency_ms_low": p50.low, "latency_ms_high": p50.high,
        "latency_ms_p90": p90.value, "latency_ms_p90_low": p90.low, "latency_ms_p90_high": p90.high,
        "latency_ms_p99": p99.value, "latency_ms_p99_low": p99.low, "latency_ms_p99_high": p99.high,
        "latency_ms_min": min(min(b) for b in blocks_ms), "latency_ms_max": max(max(b) for b in blocks_ms),
        "latency_samples": sum(len(b) for b in blocks_ms),
        "latency_block_ms_p50": medians,
        "warmup_samples": len(result.warmup_ns),
        "load_ms": None if result.load_ns is None else result.load_ns / 1e6,
        "first_inference_ms": None if result.first_inference_ns is None else result.first_inference_ns / 1e6,
        "peak_rss_bytes": result.peak_rss_bytes,
    }  # fmt: skip


def _device_findings(name: str, profile: dict[str, Any], entries: list[Entry]) -> Row:
    """What the device is, in a few facts for the report's head, and the warnings that all its measured rows share."""
    mine = [e for e in entries if e.row["device"] == name]
    measured = [e for e in mine if e.row["status"] == "ok"]
    first = next((e.before for e in measured if e.before), None)
    facts: Row = {"board": profile.get("board") or (first.board if first else None)}
    if first is not None:
        for key in ("cpu_model", "cpus_online", "machine", "kernel", "os", "python", "power_mode"):
            facts[key] = getattr(first, key)
        facts["governors"] = sorted(set(first.governors or ())) or None
    members = Counter(e.row["member"] for e in measured if e.row["member"] not in (None, name))
    facts["members"] = [f"{member} ({count})" for member, count in sorted(members.items())] or None
    facts["engines"] = sorted({e.row["engine"] for e in measured if e.row["engine"]})
    facts |= energies.device_facts([e.row for e in measured])
    shared = (
        [w for w in measured[0].row["warnings"] if all(w in e.row["warnings"] for e in measured)] if measured else []
    )
    return {"device": name, "facts": facts, "warnings": shared if len(measured) > 1 else []}


def _writable(value: Any) -> Any:
    """The value as JSON in UTF-8 can hold it: None for a number that is not finite, '?' for half a character."""
    if isinstance(value, dict):
        return {_writable(str(k)): _writable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(v) for v in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value
