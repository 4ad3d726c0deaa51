"""`device doctor`: everything that a measurement on a device needs, in one table, before anything is copied to it.

Each line has a name that stays. A red one says what is wrong and names what mends it; a line that is well may carry advice, and a
warning says what will be missing. Lines that could not be looked at, because an earlier one is red, are left out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Generator, Iterator

from edgecompress_agent import sensor_check, wire
from edgecompress_agent.survey_record import Survey

from edgecompress.board import device_python, survey
from edgecompress.board.agent import UNFINISHED, engine_hint, interpreter
from edgecompress.board.health import BUSY, Check, health
from edgecompress.board.link import Link, need_host_key
from edgecompress.board.route import resolve
from edgecompress.board.transport import (
    DeviceError,
    LinkLost,
    Transport,
    command,
    on_device,
    open_transport,
    readable,
)
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError, without_name

_GROUP_COMMAND = re.compile(r"sudo usermod -aG [\w-]+ [\w.-]+")
_CLOCK_RED_S, _CLOCK_ADVICE_S = 60.0, 2.0
_ROOM_BYTES, _ENGINES_BYTES = 64e6, 440e6
"""For models, images and a result; for the engines as wheels and installed."""
_SFTP = "sudo apt install openssh-sftp-server (small systems with dropbear); no start-up file of the shell may print"


def doctor(profile: DeviceProfile) -> Iterator[Check]:
    """The lines, as they are found. Raises nothing for what is wrong with the device."""
    transport: Transport | None = None
    try:
        transport = yield from _way_in(profile)
        if transport is not None:
            yield from _board(profile, transport)
    except LinkLost as error:
        yield Check("link", False, without_name(profile.name, error), f"Try again: {command('doctor', profile.name)}")
    except DeviceError as error:
        yield Check(
            "answers", False, without_name(profile.name, error), f"Try by hand what it says: {_by_hand(profile)}"
        )
    finally:
        if transport is not None:
            transport.close()


def _way_in(profile: DeviceProfile) -> Generator[Check, None, Transport | None]:
    """Connect, with a line for each step; None after a red one."""
    if profile.transport == "ssh":
        return (yield from _ssh_in(profile))
    try:
        transport = open_transport(profile)
    except UserError as error:
        yield Check("reachable", False, error.what, error.fix)
        return None
    except (LinkLost, StepFailed) as error:
        yield Check(
            "reachable", False, without_name(profile.name, error), "Is it on, and connected as the profile says?"
        )
        return None
    console = f"a helper runs on its console, {profile.serial_port} at {profile.baud_rate} baud"
    yield Check("reachable", True, "this machine" if profile.transport == "local" else console)
    return transport


def _ssh_in(profile: DeviceProfile) -> Generator[Check, None, Transport | None]:
    from edgecompress.board.ssh import SshTransport

    step, link = "reachable", Link(profile.name, profile.connect_timeout_s)
    try:
        hops = resolve(profile)
        for hop in hops:
            last = hop is hops[-1]
            step = "reachable"
            key = link.connect(hop)
            if last:
                through = f", through {', '.join(str(h) for h in hops[:-1])}" if len(hops) > 1 else ""
                yield Check(step, True, f"{hop} answers SSH{through}")
            step = "host key"
            need_host_key(hop, key, profile.name)
            if last:
                yield Check(step, True, f"{key.kind} {key.fingerprint}, as pinned")
            step = "user"
            link.log_in(hop)
        return SshTransport(profile, link)
    except UserError as error:
        yield Check(step, False, error.what, error.fix)
    except (LinkLost, StepFailed) as error:
        fix = f"Is it on, and are host and port right? Try: {_by_hand(profile)}"
        if step == "user":
            fix = "Set user and identity_file in the device profile: a server lets only so many keys be tried."
        yield Check(step, False, without_name(profile.name, error), fix)
    link.close()
    return None


def _by_hand(profile: DeviceProfile) -> str:
    if profile.transport == "serial":
        return f"picocom -b {profile.baud_rate} {profile.serial_port}"
    if profile.transport != "ssh":
        return f"{profile.python or 'python3'} --version"
    port = f"-p {profile.port} " if profile.port else ""
    return f"ssh {port}{f'{profile.user}@' if profile.user else ''}{profile.host} uname -a"


def _board(profile: DeviceProfile, transport: Transport) -> Iterator[Check]:
    home: str | None = None
    try:
        home = transport.home()
        if not home.startswith("/") or not home.isprintable():
            raise DeviceError(f"says that its home directory is {readable(home, 80)!r}")
        files = Check("files", True, f"can be sent; home is {home}")
    except DeviceError as error:
        home, files = None, Check("files", False, without_name(profile.name, error), _SFTP)
    # the device's own Python expands `~` where the home directory is not known
    root = profile.workdir if home is None else on_device(profile.workdir, home)
    python = profile.python or "python3" if home is None else interpreter(profile, transport, root, home)
    try:
        seen = survey.look(profile, transport, python, root)
    except device_python.OldPython as error:
        yield from (files, Check("python", False, error.what, error.fix))
        what = survey.kernel(transport)
        if what is not None:
            yield Check("os", True, what)
        return
    groups = f", in the groups {', '.join(seen.groups)}" if seen.groups else ""
    yield Check("user", True, f"{seen.user}{groups}")
    yield files
    half_made = python == f"{root}/venv/bin/python" and not seen.measuring and transport.exists(f"{root}/{UNFINISHED}")
    yield _python(profile, seen, half_made=half_made)
    yield Check("architecture", True, f"{seen.machine}, {seen.conditions.cpus_online} CPUs: {_cpu(seen.conditions)}")
    yield Check("os", True, f"{seen.conditions.os or 'unknown'}, kernel {seen.conditions.kernel}")
    yield _workdir(profile, seen)
    yield from _engines(profile, seen)
    yield sensor_line(profile, seen)
    yield from health(profile, seen)
    yield _clock(profile, transport, python, seen)


def _python(profile: DeviceProfile, seen: Survey, *, half_made: bool) -> Check:
    said = f"{seen.python} ({seen.executable})"
    if not half_made:
        return Check("python", True, said)
    said += ": its environment is half made, as a `device setup` was interrupted"
    return Check("python", True, said, engine_hint(profile), warning=True)


def _cpu(now: wire.Conditions) -> str:
    return ", ".join(text for text in (now.board, now.cpu_model) if text) or "not told"


def _workdir(profile: DeviceProfile, seen: Survey) -> Check:
    place, has_engines = seen.workdir, any(e.version for e in seen.engines.values())
    quoted = shlex.quote(place.path)
    if place.complaint is not None:
        what, _, fix = place.complaint.rpartition(": ")
        return Check("workdir", False, what, f"On the device: {fix}")
    free, needed = place.free_bytes, _ROOM_BYTES if has_engines or seen.measuring else _ROOM_BYTES + _ENGINES_BYTES
    if free is not None and free < needed:
        what = f"{place.path}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed"
        fix = f"On the device: rm -rf {quoted}/blobs (models and images are sent again), sudo apt clean; or set workdir"
        return Check("workdir", False, what, fix)
    made = "" if place.nearest == place.path else ", will be made"
    return Check("workdir", True, place.path + made + ("" if free is None else f": {free / 1e9:.1f} GB free"))


def _engines(profile: DeviceProfile, seen: Survey) -> Iterator[Check]:
    for file_type, name in sorted(profile.engines.items()):
        if seen.measuring:
            yield Check(f"engine {name}", True, f"not looked at: {BUSY}")
            continue
        found = seen.engines.get(name)
        if found is None or found.version is None:
            reason = (found.reason if found else None) or "not installed"
            yield Check(f"engine {name}", False, f"{reason} (.{file_type} files need it)", engine_hint(profile))
            continue
        yield Check(f"engine {name}", True, f"{found.version} ({found.package or name})")
        missing = [p for p in profile.providers if p not in found.providers] if name == "onnxruntime" else []
        if missing:
            there = ", ".join(found.providers)
            fix = "Change providers in the device profile, or install an onnxruntime that has them (docs/devices.md)."
            yield Check("providers", False, f"no {', '.join(missing)}; it has {there}", fix)


def sensor_line(profile: DeviceProfile, seen: Survey) -> Check:
    """It was opened and read once, where it hangs: a reading, or why there is none and which command lets the user read it."""
    if profile.sensor == "none":
        return Check("sensor", True, "none: energy is not measured")
    if profile.meter_at == "host":
        found, where = sensor_check.check(profile.sensor, profile.sensor_options), f"{profile.sensor} at this machine"
    elif seen.measuring:
        return Check("sensor", True, f"{profile.sensor}: not looked at: {BUSY}")
    else:
        found, where = seen.sensor or wire.SensorReading(), profile.sensor
    if found.info is None or found.power_uw is None:
        reason = readable(found.reason or "it gave no reading", 1000)
        asked = _GROUP_COMMAND.search(reason)
        at = "On this machine" if profile.meter_at == "host" else "On the device"
        fix = (
            f"{at}: {asked.group()}, then log in again."
            if asked
            else f"{profile.sensor} in docs/sensors.md; or sensor: none in the device profile, where energy is not wanted."
        )
        if found.busy:
            return Check("sensor", True, f"{where}: {reason}")
        if profile.sensor == "auto" and found.info is None:  # no sensor was asked for by name
            return Check("sensor", True, f"{where}: {reason}; energy is not measured", fix, warning=True)
        return Check("sensor", False, f"{where}: {reason}", fix)
    info = found.info
    detail = f"{found.power_uw / 1e6:.3f} W now; a value every {1e3 * info.interval_s:.3g} ms"
    scope = profile.scope if info.scope == "as-wired" and profile.scope else info.scope
    chosen = f"; chosen because {info.chosen_because}" if info.chosen_because else ""
    said = readable(f"{where}: {info.description}: {detail}; scope {scope}{chosen}", 800)
    return Check("sensor", True, said, readable("; ".join(info.notes), 1000))


def _clock(profile: DeviceProfile, transport: Transport, python: str, seen: Survey) -> Check:
    """Within a measurement only the device's monotonic clock counts. The calendar matters for the dates of records and logs, for
    the age of what is cleaned up, and for the certificates of a package index."""
    found = survey.clock_offset(transport, python)
    if found is None:
        return Check("clock", True, "it does not tell the time")
    off, uncertain = found.seconds, found.uncertain_s
    kept = {True: ", kept by a time server", False: ", kept by nobody", None: ""}[seen.clock_kept]
    if abs(off) <= uncertain:
        said = f"as this machine's, to within ±{1e3 * uncertain:.0f} ms{kept}"
    else:
        said = (
            f"{_span(abs(off))} {'ahead of' if off > 0 else 'behind'} this machine's, ±{1e3 * uncertain:.0f} ms{kept}"
        )
    mend = "On the device: sudo timedatectl set-ntp true (without a network: sudo date -s '@SECONDS' with the seconds of: date +%s)"
    if abs(off) - uncertain > _CLOCK_RED_S:
        why = "dates of records and logs, ages for cleaning up and certificates will be wrong; energy and latency will not"
        return Check("clock", False, f"{said}: {why}", mend)
    return Check("clock", True, said, mend if abs(off) - uncertain > _CLOCK_ADVICE_S else "")


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    return (
        f"{seconds:.1f} s"
        if seconds < 600
        else f"{seconds / 3600:.1f} hours"
        if seconds < 2e5
        else f"{seconds / 86400:.0f} days"
    )


def document(profile: DeviceProfile, checks: list[Check]) -> dict[str, object]:
    """The table for a program."""
    return {
        "device": profile.name,
        "ok": all(check.ok for check in checks),
        "checks": [dataclasses.asdict(check) for check in checks],
    }
