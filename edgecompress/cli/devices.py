"""The verbs about devices: device list, doctor, trust, setup."""

from __future__ import annotations

import argparse
import sys

from edgecompress.cli.bars import progress
from edgecompress.errors import UserError
from edgecompress.study import DeviceProfile
from edgecompress.studyfile import read_device, shipped_profiles


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
        lines = setup(_named(arguments.device), progress=bars, offline=arguments.offline)
    for line in lines:
        print(line)
    return 0
