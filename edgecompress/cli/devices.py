"""The verbs about devices: profile, device list, doctor, trust, setup."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

from edgecompress.cli.bars import progress
from edgecompress.errors import StepFailed, UserError
from edgecompress.study import DeviceProfile
from edgecompress.studyfile import read_device, shipped_profiles, validate


def profile(arguments: argparse.Namespace) -> int:
    from edgecompress.study import MeasureSpec

    artifact: Path = arguments.artifact
    if artifact.suffix not in (".onnx", ".tflite") or not artifact.is_file():
        raise UserError("is no .onnx or .tflite file", where=str(artifact), fix="Give the path of a model file.")
    values = {key: getattr(arguments, key) for key in ("threads", "warmup_s", "min_s", "blocks")}
    measure = validate(MeasureSpec, {**values, "score_on": "none"}, where="profile", base=Path())
    device = read_device(arguments.device)

    from edgecompress_agent import wire

    from edgecompress import measurement
    from edgecompress.board.session import connect
    from edgecompress.report.rows import latency_summary

    job, files = measurement.make_job(
        uuid.uuid4().hex[:16], artifact, None, normalisation=((), ()), profile=device, measure=measure
    )
    with progress() as bars, connect(device) as session:
        result = session.measure(job, files, progress=bars, label=artifact.name)
    if result.status != "ok":
        raise StepFailed(f"{artifact} on {device.name}: {result.reason}")
    try:
        summary = latency_summary(wire.to_json(result))
    except ValueError as error:
        raise StepFailed(f"{artifact} on {device.name}: the answer of the device makes no sense: {error}") from None
    if arguments.json:
        print(json.dumps({"summary": summary, "result": wire.to_json(result)}))
        return 0
    print(
        f"{artifact.name} on {device.name}, {measure.threads} thread{'s' if measure.threads > 1 else ''}, random inputs"
    )
    for key, value in summary.items():
        print(f"  {key:<24}{value if not isinstance(value, float) else format(value, '.4g')}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def device_list(arguments: argparse.Namespace) -> int:
    for name in shipped_profiles("devices"):
        device = read_device(name)
        where = "this machine" if device.transport == "local" else f"ssh {device.host}"
        print(f"{name:<20}{where:<28}{device.board or ''}")
    return 0


def _named(name: str) -> DeviceProfile:
    return read_device(name, where="device")


def device_doctor(arguments: argparse.Namespace) -> int:
    from edgecompress.board.devices import doctor

    checks = doctor(_named(arguments.device))
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        if check.fix:
            print(f"      {check.fix}")
    return 0 if all(check.ok for check in checks) else 1


def device_trust(arguments: argparse.Namespace) -> int:
    from edgecompress.board.devices import trust

    def confirm(question: str) -> bool:
        print(question)
        if arguments.yes:
            return True
        if not sys.stdin.isatty():
            raise UserError(
                "nobody is there to confirm the fingerprint", where="device trust", fix="Compare it and add --yes."
            )
        return input("Pin this key? [y/N] ").strip().lower() in ("y", "yes")

    for line in trust(_named(arguments.device), confirm):
        print(line)
    return 0


def device_setup(arguments: argparse.Namespace) -> int:
    from edgecompress.board.devices import setup

    with progress() as bars:
        lines = setup(_named(arguments.device), progress=bars)
    for line in lines:
        print(line)
    return 0
