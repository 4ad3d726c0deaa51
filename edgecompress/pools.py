"""Pools: several boards of one kind as one device of a study. A job goes to whichever of them is free (docs/adr/0011).

name: pi-pool
pool: [pi-a.yaml, pi-b.yaml]        # profiles of the boards, relative to this file
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.study import NAME, Spec
from edgecompress.studyfile import DEVICE_EXAMPLE, device_file, read_device, read_yaml, validate

ALIKE = ("engines", "providers", "int8_activations", "cpus", "sensor", "meter_at", "scope", "battery_wh")
"""Fields of a profile in which the boards of a pool must be equal: with another value a figure would mean something else. How
a board is reached, where its Python and workdir are, and how its own sensor is wired (sensor_options) are its own affair."""


class PoolSpec(Spec):
    """A pool as its file writes it."""

    name: str = Field(pattern=NAME)
    board: str | None = Field(default=None, description="what they are, in words, for the report")
    pool: tuple[str, ...] = Field(min_length=1, description="the boards: files of profiles, or names of shipped ones")


@dataclass(frozen=True)
class DevicePool:
    """A pool, its members read and found alike."""

    name: str
    board: str | None
    members: tuple[DeviceProfile, ...]


Device = DeviceProfile | DevicePool
"""What a study measures on."""


def members_of(device: Device) -> tuple[DeviceProfile, ...]:
    """The boards of a device: its own profile, or the members of a pool."""
    return device.members if isinstance(device, DevicePool) else (device,)


def facts_of(device: Device) -> dict[str, Any]:
    """What a measurement on the device depends on, as JSON, for its key.

    Of a pool: what its boards have in common, and the ways in which their sensors are wired. So a board may join a pool, or be
    taken out of it, and nothing is measured again.
    """
    if isinstance(device, DeviceProfile):
        return device.model_dump(mode="json")
    dumped = [member.model_dump(mode="json") for member in device.members]
    wirings = sorted({json.dumps(d["sensor_options"], sort_keys=True) for d in dumped})
    return {"name": device.name, **{field: dumped[0][field] for field in ALIKE}, "sensor_options": wirings}


def document_of(device: Device) -> dict[str, Any]:
    """The device as JSON, for plan.json and the report; of a pool what its boards have in common, and `pool`: their profiles."""
    if isinstance(device, DeviceProfile):
        return device.model_dump(mode="json")
    dumped = [member.model_dump(mode="json") for member in device.members]
    common = {field: dumped[0][field] for field in ALIKE}
    return {"name": device.name, "board": device.board, **common, "pool": dumped}


def read_device_or_pool(name_or_file: str, *, base: Path | None = None, where: str = "") -> Device:
    """A device of a study: as `read_device`, or a pool. UserError for a pool that is none, with what is wrong in it."""
    path = device_file(name_or_file, base=base, where=where)
    raw = read_yaml(path, example=DEVICE_EXAMPLE)
    if "pool" not in raw:
        return read_device(name_or_file, base=base, where=where)
    spec = validate(PoolSpec, raw, where=str(path), base=path.resolve().parent)
    members = []
    for member in spec.pool:
        file = device_file(member, base=path.resolve().parent, where=str(path))
        if not file.exists():
            fix = "Its members are profiles of boards, relative to the pool's file."
            raise UserError(f"pool: {member} is not there", where=str(path), fix=fix)
        if "pool" in read_yaml(file, example=DEVICE_EXAMPLE):
            raise UserError(f"pool: {member} is a pool itself", where=str(path), fix="Name its boards here.")
        members.append(read_device(member, base=path.resolve().parent, where=str(path)))
    return make_pool(spec.name, members, board=spec.board, where=str(path))


def make_pool(
    name: str, members: list[DeviceProfile], *, board: str | None = None, where: str | None = None
) -> DevicePool:
    """The pool of these boards. UserError when one is in it twice, is this machine, or is not like the first one."""
    where = where or f"pool {name}"
    by_name: dict[str, DeviceProfile] = {}
    by_place: dict[tuple[Any, ...], str] = {}
    first = members[0]
    for member in members:
        if member.name in by_name:
            raise UserError(
                f"pool: two boards are named {member.name!r}", where=where, fix="Give each profile its own name."
            )
        if member.transport == "local":
            fix = "Make it a device of the study by itself: it is measured when the boards are done."
            raise UserError(f"pool: {member.name} is this machine, not a board", where=where, fix=fix)
        other = by_place.setdefault(_place(member), member.name)
        if other != member.name:
            raise UserError(f"pool: {other} and {member.name} are the same board", where=where, fix="Leave one out.")
        by_name[member.name] = member
        differing = [field for field in ALIKE if getattr(member, field) != getattr(first, field)]
        if differing:
            here, there = ({f: p.model_dump(mode="json")[f] for f in differing} for p in (member, first))
            said = "; ".join(f"{f}: {here[f]} there, {there[f]} with {first.name}" for f in differing)
            fix = "Make their profiles agree, or make it a device of its own."
            raise UserError(f"pool: {member.name} is not like {first.name}: {said}", where=where, fix=fix)
    boards = {member.board for member in members}
    return DevicePool(name, board or (boards.pop() if len(boards) == 1 else None), tuple(members))


def _place(profile: DeviceProfile) -> tuple[Any, ...]:
    if profile.serial_port is not None:
        return profile.transport, str(profile.serial_port.resolve())
    return profile.transport, (profile.host or "").lower(), profile.port
