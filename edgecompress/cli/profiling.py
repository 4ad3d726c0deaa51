"""The verb `profile`: one file on one device, for one or more numbers of threads and batch sizes, and by operator."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.cli.bars import progress
from edgecompress.cli.settings import key_values
from edgecompress.errors import StepFailed, UserError
from edgecompress.studyfile import read_device, validate

if TYPE_CHECKING:
    from edgecompress_agent import wire

    from edgecompress.board.session import Session
    from edgecompress.device_profile import DeviceProfile
    from edgecompress.progress import Progress
    from edgecompress.report.tables import Table
    from edgecompress.study import MeasureSpec


@dataclass(frozen=True)
class _Measured:
    """One configuration: what it came to, or the reason why it came to nothing."""

    threads: int
    batch: int
    summary: dict[str, Any] | None = None
    operators: dict[str, Any] | None = None
    operators_reason: str | None = None
    result: wire.Result | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()


def profile(arguments: argparse.Namespace) -> int:
    from edgecompress.study import MeasureSpec

    artifact: Path = arguments.artifact
    if not artifact.exists():
        raise UserError("does not exist", where=str(artifact), fix="Give the path of a model file.")
    if artifact.suffix not in (".onnx", ".tflite") or not artifact.is_file():
        raise UserError("is no .onnx or .tflite file", where=str(artifact), fix="Give the path of a model file.")
    values = {key: getattr(arguments, key) for key in ("warmup_s", "min_s", "blocks", "profile_ops")}
    power = None if arguments.power == ["off"] else key_values(arguments.power, "--power", "window_s=2")
    values |= {"power": power}
    measures = [
        (validate(MeasureSpec, {**values, "threads": n, "score_on": "none"}, where="profile", base=Path()), batch)
        for batch in arguments.batch
        for n in arguments.threads
    ]
    device = read_device(arguments.device)

    from edgecompress.board.session import connect

    with progress() as bars, connect(device) as session:
        measured = [_measure(session, artifact, device, measure, batch, bars) for measure, batch in measures]
    if arguments.json:
        print(json.dumps(_document(artifact, device, measured), allow_nan=False))
    if len(measured) == 1 and measured[0].reason:
        raise StepFailed(f"{artifact} on {device.name}: {measured[0].reason}")
    if not arguments.json:
        _show(artifact, device, measured, profile_ops=arguments.profile_ops)
    return 1 if any(m.reason for m in measured) else 0


def _measure(
    session: Session, artifact: Path, device: DeviceProfile, measure: MeasureSpec, batch: int, bars: Progress
) -> _Measured:
    from edgecompress_agent import wire

    from edgecompress import measurement, operators
    from edgecompress.report import energies, findings, profiles
    from edgecompress.report.rows import latency_summary

    job, files = measurement.make_job(
        uuid.uuid4().hex[:16], artifact, None, normalisation=((), ()), profile=device, measure=measure
    )
    job = replace(job, batch=batch)
    label = f"{artifact.name}, threads {measure.threads}, batch {batch}"
    this = _Measured(measure.threads, batch)
    try:
        result = operators.measure(session, job, files, artifact, progress=bars, label=label)
    except StepFailed as error:
        return replace(this, reason=str(error))
    if result.status != "ok":
        return replace(this, reason=result.reason, result=result)
    try:
        summary = latency_summary(wire.to_json(result))
        summary |= {"throughput_per_s": profiles.throughput_per_s(job, result)}
    except ValueError as error:
        return replace(this, reason=f"the answer of the device makes no sense: {error}")
    fields = profiles.operator_fields(wire.to_json(job), result, summary["latency_ms_p50"])
    asked = fields["operator_times_reason"] if job.profile_ops else None
    energy_fields, energy = energies.of_result(result, job.power, device.battery_wh)
    blocks_ms = [[ns / 1e6 for ns in block.latencies_ns] for block in result.blocks]
    warnings = [*energies.warnings(energy_fields, energy), *findings.latency_warnings(blocks_ms)]
    warnings += [*findings.condition_warnings(result.conditions), *result.warnings]
    return replace(
        this, summary=summary | energy_fields, operators=fields["operator_times"], operators_reason=asked, result=result,
        warnings=tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def _document(artifact: Path, device: DeviceProfile, measured: list[_Measured]) -> dict[str, Any]:
    from edgecompress_agent import wire

    return {
        "artifact": artifact.name,
        "device": device.name,
        "measurements": [
            {
                "threads": m.threads,
                "batch": m.batch,
                "status": "failed" if m.reason else "ok",
                "reason": m.reason,
                "summary": m.summary,
                "warnings": list(m.warnings),
                "operator_times": m.operators,
                "operator_times_reason": m.operators_reason,
                "result": None if m.result is None else wire.to_json(m.result),
            }
            for m in measured
        ],
    }


def _show(artifact: Path, device: DeviceProfile, measured: list[_Measured], *, profile_ops: bool) -> None:
    from edgecompress.report import profiles
    from edgecompress.report import wording as w
    from edgecompress.report.tables import Cell, Column, Table

    names = (
        ("Threads", ""),
        ("Batch", ""),
        ("Median", "ms"),
        ("95 % interval", "ms"),
        ("p99", "ms"),
        ("Throughput", "per s"),
    )
    more = ("Load", "ms"), ("First", "ms"), ("Memory", "peak")
    rows = []
    for m in measured:
        s = m.summary
        cells = [str(m.threads), str(m.batch)]
        if s is None:
            cells += ["failed", *[w.NONE] * 6]
        else:
            cells += [
                w.milliseconds(s["latency_ms_p50"]),
                w.milliseconds_interval(s["latency_ms_low"], s["latency_ms_high"]),
                w.milliseconds(s["latency_ms_p99"]),
                f"{s['throughput_per_s']:.4g}",
                w.milliseconds(s["load_ms"]),
                w.milliseconds(s["first_inference_ms"]),
                w.size(s["peak_rss_bytes"]),
            ]
        rows.append(tuple(Cell(text) for text in cells))
    columns = tuple(Column(*name) for name in (*names, *more))
    _print(Table("profile", f"{w.plain(artifact.name)} on {device.name}, random inputs", "", columns, tuple(rows)))
    engine = next((m.result.engine for m in measured if m.result and m.result.engine), None)
    if engine is not None:
        what = "each row is a new process; load: from the cached file, without importing the engine"
        print(w.plain(f"{engine.package} {engine.version}; {what}"))
    for m in measured if device.sensor != "none" else ():
        if m.summary is not None:
            print(f"Energy, threads {m.threads}, batch {m.batch}: {profiles.energy_text(m.summary)}")
    for m in measured if profile_ops else ():
        where = f"threads {m.threads}, batch {m.batch}"
        if m.operators is not None:
            _print(profiles.operator_table(m.operators, "operators", f"Time by operator, {where}"))
        elif m.operators_reason:
            print(w.plain(f"Time by operator, {where}: {m.operators_reason}"))
    for m in measured:
        for warning in [m.reason] if m.reason else m.warnings:
            print(f"warning: threads {m.threads}, batch {m.batch}: {w.plain(warning)}", file=sys.stderr)


def _print(table: Table) -> None:
    """A table for the terminal, its introduction below it."""
    from edgecompress.report.terminal import plain_table

    print(plain_table(table))
