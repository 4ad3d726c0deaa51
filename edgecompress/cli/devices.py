"""The verbs about devices: device list, doctor, trust, setup."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from edgecompress.cli import complain
from edgecompress.cli.bars import progress
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.pools import Device, DevicePool, members_of, read_device_or_pool
from edgecompress.studyfile import read_device, shipped_profiles


def device_list(arguments: argparse.Namespace) -> int:
    for name in shipped_profiles("devices"):
        device = read_device(name)
        where = {"local": "this machine", "ssh": f"ssh {device.host}", "serial": f"serial {device.serial_port}"}
        print(f"{name:<20}{where[device.transport]:<28}{device.board or ''}")
    return 0


def _each(device: Device, arguments: argparse.Namespace, act: Callable[[DeviceProfile], int]) -> int:
    """Do it for the board, or for each one of a pool, of which one that fails does not keep the others: the worst exit status."""
    if isinstance(device, DeviceProfile):
        return act(device)
    worst = 0
    for number, profile in enumerate(members_of(device)):
        if not getattr(arguments, "json", False):
            print(f"{'' if number == 0 else chr(10)}{profile.name}", flush=True)
        try:
            status = act(profile)
        except (UserError, StepFailed) as error:
            status = complain(error, arguments.verbose)
        worst = max(worst, status)
    return worst


def device_doctor(arguments: argparse.Namespace) -> int:
    from edgecompress.board.doctor import doctor, document

    device, documents = read_device_or_pool(arguments.device, where="device"), []

    def look(profile: DeviceProfile) -> int:
        checks = []
        for check in doctor(profile):
            checks.append(check)
            if not arguments.json:
                mark = "FAIL" if not check.ok else "warn" if check.warning else "ok  "
                print(f"{mark}  {check.name:<18} {check.detail}", flush=True)
                if check.fix:
                    print(f"{'':<25}→ {check.fix}", flush=True)
        documents.append(document(profile, checks))
        return 0 if all(check.ok for check in checks) else 1

    status = _each(device, arguments, look)
    if arguments.json:
        print(json.dumps(documents if isinstance(device, DevicePool) else documents[0], indent=1))
    return status


def device_trust(arguments: argparse.Namespace) -> int:
    from edgecompress.board.devices import trust

    def pin(profile: DeviceProfile) -> int:
        def confirm(question: str) -> bool:
            print(question)
            if arguments.yes:
                return True
            if not sys.stdin.isatty():
                fix = "Compare it and add --yes."
                raise UserError("nobody is there to confirm the fingerprint", where=profile.name, fix=fix)
            return input("Pin this key? [y/N] ").strip().lower() in ("y", "yes")

        for line in trust(profile, confirm):
            print(line)
        return 0

    return _each(read_device_or_pool(arguments.device, where="device"), arguments, pin)


def device_setup(arguments: argparse.Namespace) -> int:
    from edgecompress.board.devices import remove, setup

    def prepare(profile: DeviceProfile) -> int:
        with progress(steps=True) as bars:
            if arguments.remove:
                lines = remove(profile, dry_run=arguments.dry_run)
            else:
                lines = setup(profile, progress=bars, offline=arguments.offline, dry_run=arguments.dry_run)
        for line in lines:
            print(line, flush=True)
        return 0

    return _each(read_device_or_pool(arguments.device, where="device"), arguments, prepare)


def device_channels(arguments: argparse.Namespace) -> int:
    from edgecompress.benches import check_before
    from edgecompress.board.session import connect
    from edgecompress.channel_sweep import Setting, centre_for
    from edgecompress.on_device import DeviceBench

    profile = read_device(arguments.device, where="device")
    if arguments.threads < 1 or arguments.width < 1:
        raise UserError("--threads and --width are 1 or more", where="device channels", fix="For example --width 48.")
    try:
        setting = Setting(centre_for(arguments.width), arguments.sizes)
    except ValueError as error:
        raise UserError(str(error), where="--sizes", fix="For example --sizes 32,16,8.") from None
    with progress() as bars:
        session = check_before(profile.name, arguments.format, lambda _: connect(profile))
        with session:
            bench = DeviceBench(session, arguments.format, threads=arguments.threads, progress=bars)
            found = bench.sweep(setting, fresh=arguments.fresh)
    print(json.dumps(found, allow_nan=False) if arguments.json else _sweep_text(profile.name, found))
    return 0


def _sweep_text(device: str, found: dict[str, Any]) -> str:
    """Both tables of a sweep, and the result, for a person."""
    from statistics import median

    from edgecompress.report.tables import Cell, Column, Table
    from edgecompress.report.terminal import plain_table

    identity, spread = found["identity"], 100 * found["spread"]
    widths = Table(
        "widths", f"Networks of one width in {identity['format']} on {device}", "",
        (Column("Width"), Column("Multiple of"), Column("MACs", "M"), Column("Latency", "ms"), Column("Per MAC", "best = 1")),
        tuple(
            tuple(map(Cell, (
                str(row["width"]), str(row["class"]), f"{row['macs'] / 1e6:.1f}",
                f"{median(row['latency_ms']):.3f}", f"{row['relative']:.3f}",
            )))
            for row in found["widths"]
        ),
    )  # fmt: skip
    costs = Table(
        "multiples", "Widths rounded to a multiple", "",
        (Column("Multiple"), Column("Latency per MAC", "best = 1"), Column("95 % interval")),
        tuple(
            tuple(map(Cell, (
                str(cost["multiple"]), f"{cost['relative']:.3f}", f"{cost['low']:.3f} to {cost['high']:.3f}"
            )))
            for cost in found["costs"]
        ),
    )  # fmt: skip
    rounds = len(found["widths"][0]["latency_ms"])
    how = "kept from an earlier sweep" if found["cached"] else f"measured in {found['seconds']:.0f} s"
    return "\n".join([
        plain_table(widths), "", plain_table(costs), "",
        f"{identity['engine_version']}, {identity['cpu'] or identity['machine']}, threads {identity['threads']}; {how}: "
        f"{rounds} rounds, which lie {spread:.1f} % apart",
        f"multiple: {found['multiple']}, in {100 * found['agreement']:.0f} % of the resampled rounds",
    ])  # fmt: skip
