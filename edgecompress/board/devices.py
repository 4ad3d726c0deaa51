"""A person's dealings with a device: pin its key (`trust`), see what is wrong with it (`doctor`), install engines (`setup`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgecompress_agent import wire

from edgecompress.board import known_hosts, reading
from edgecompress.board.agent import Agent, open_agent
from edgecompress.board.link import Link, check_host_key
from edgecompress.board.provision import setup
from edgecompress.board.route import resolve
from edgecompress.board.transport import LinkLost, readable
from edgecompress.errors import StepFailed, UserError
from edgecompress.study import DeviceProfile

__all__ = ["Check", "doctor", "setup", "trust"]

_NEEDED_BYTES = 500e6
_NEEDED_MEMORY_BYTES = 200e6
_THROTTLED_BITS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""`vcgencmd get_throttled` of a Raspberry Pi: bits 0 to 3 now, 16 to 19 since boot."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ok False: measurements will fail or be wrong. fix: what to do; with ok True, advice."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def trust(profile: DeviceProfile, confirm: Callable[[str], bool]) -> list[str]:
    """Pin the host keys on the way to a device, each after `confirm(question)`; a sentence for each host.

    UserError: not confirmed, a key that has changed, a local device. StepFailed: it cannot be reached.
    """
    if profile.transport == "local":
        raise UserError(
            "it is this machine: there is no key to trust", where=profile.name, fix="Only ssh devices have one."
        )
    said = []
    hops = resolve(profile)
    link = Link(profile.name, profile.connect_timeout_s)
    try:
        for hop in hops:
            key = link.connect(hop)
            if check_host_key(hop, key, profile.name):
                said.append(f"{hop}: {key.kind} {key.fingerprint} is pinned already")
            else:
                question = (
                    f"{hop} shows the key\n  {key.kind} {key.fingerprint}\n"
                    "Is it the one that the device itself shows with: ssh-keygen -lf "
                    f"/etc/ssh/ssh_host_{key.kind.removeprefix('ssh-').partition('-')[0]}_key.pub ?"
                )
                if not confirm(question):
                    fix = "Compare the fingerprints, then run the command again."
                    raise UserError(f"the key of {hop} was not pinned", where=profile.name, fix=fix)
                known_hosts.pin(hop.known_hosts[0], hop.key_name, key)
                said.append(f"{hop}: {key.kind} {key.fingerprint} is pinned in {hop.known_hosts[0]}")
            if hop is not hops[-1]:
                link.log_in(hop)  # a jump host has to let us through to the next
    except LinkLost as error:
        raise StepFailed(f"{error}. Is it on, and are host and port right?") from None
    finally:
        link.close()
    return said


def doctor(profile: DeviceProfile) -> list[Check]:
    """Everything that can be found out without measuring. Raises nothing for what is wrong with the device."""
    return list(_checks(profile))


def _checks(profile: DeviceProfile) -> Iterator[Check]:
    agent = None
    try:
        agent = open_agent(profile)
        yield Check("connection", True, _way(profile))
        hello = agent.hello()
    except UserError as error:
        yield Check("agent" if agent else "connection", False, error.what, error.fix)
    except StepFailed as error:
        yield Check("agent" if agent else "connection", False, str(error))
    else:
        yield Check(
            "agent", True, f"Python {readable(hello.python, 40)} ({agent.python}) on {readable(hello.machine, 40)}"
        )
        yield from _engines(profile, agent, hello)
        yield from _room(agent, hello)
        yield from _conditions(profile, hello.conditions)
        yield _sensor(profile, agent)
    finally:
        if agent is not None:
            agent.close()


def _way(profile: DeviceProfile) -> str:
    if profile.transport == "local":
        return "this machine"
    *before, last = resolve(profile)
    return f"SSH to {last.user}@{last}" + (f" through {', '.join(str(h) for h in before)}" if before else "")


def _engines(profile: DeviceProfile, agent: Agent, hello: wire.Hello) -> Iterator[Check]:
    for file_type, name in sorted(profile.engines.items()):
        found = hello.engines.get(name)
        if found is None or found.version is None:
            reason = readable((found.reason if found else None) or "not installed", 500)
            yield Check(f"engine {name}", False, f"{reason} (.{file_type} files need it)", agent.setup_hint())
            continue
        yield Check(f"engine {name}", True, f"{readable(found.version, 40)} ({readable(found.package or name, 60)})")
        missing = [p for p in profile.providers if p not in found.providers] if name == "onnxruntime" else []
        if missing:
            there = readable(", ".join(found.providers), 300)
            fix = "Change providers in the device profile, or install an onnxruntime that has them (docs/devices.md)."
            yield Check("providers", False, f"no {', '.join(missing)}; it has {there}", fix)


def _sensor(profile: DeviceProfile, agent: Agent) -> Check:
    """It is opened and read once, where it hangs: a reading, or why there is none."""
    if profile.sensor == "none":
        return Check("sensor", True, "none: energy is not measured")
    found = reading.read_once(profile, agent)
    where = f"{profile.sensor} at this machine" if profile.meter_at == "host" else profile.sensor
    if found.info is None or found.power_uw is None:
        return Check("sensor", found.busy, f"{where}: {readable(found.reason or 'it gave no reading', 1000)}")
    info = found.info
    detail = f"{found.power_uw / 1e6:.3f} W now; a value every {1e3 * info.interval_s:.3g} ms"
    scope = profile.scope if info.scope == "as-wired" and profile.scope else info.scope
    chosen = f"; chosen because {info.chosen_because}" if info.chosen_because else ""
    said = readable(f"{where}: {info.description}: {detail}; scope {scope}{chosen}", 800)
    return Check("sensor", True, said, readable("; ".join(info.notes), 1000))


def _room(agent: Agent, hello: wire.Hello) -> Iterator[Check]:
    free = hello.free_bytes
    if not hello.writable:
        yield Check("workdir", False, f"cannot write to {agent.root}", "Set workdir in the device profile.")
    elif free is not None and free < _NEEDED_BYTES:
        fix = "Free some space, or set workdir in the device profile."
        yield Check("workdir", False, f"{agent.root}: {free / 1e6:.0f} MB free", fix)
    else:
        yield Check("workdir", True, agent.root if free is None else f"{agent.root}: {free / 1e9:.1f} GB free")


def _conditions(profile: DeviceProfile, now: wire.Conditions) -> Iterator[Check]:
    board = ", ".join(readable(t, 80) for t in (now.board, now.cpu_model, now.os) if t)
    yield Check("board", True, board or "unknown")
    if profile.cpus and now.cpus_online is not None and max(profile.cpus) >= now.cpus_online:
        fix = "Change cpus in the device profile."
        yield Check("cpus", False, f"pinned to {list(profile.cpus)}, {now.cpus_online} are online", fix)
    governors = sorted(set(now.governors or ()))
    if governors:
        advice = "" if governors == ["performance"] else (
            "Clocks that move add noise; to hold them: echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor (Jetson: sudo jetson_clocks)."
        )  # fmt: skip
        yield Check("clocks", True, f"governor {', '.join(readable(g, 40) for g in governors)}", advice)
    yield from _throttling(now.throttled)
    if now.temperatures_c:
        hottest = max(now.temperatures_c.values())
        fix = "Cool it: most boards lower their clocks between 80 and 85 °C." if hottest >= 75 else ""
        yield Check("temperature", hottest < 80, f"{hottest:.0f} °C", fix)
    if now.load_1m is not None and now.cpus_online:
        busy = now.load_1m > 0.5 * now.cpus_online
        fix = "Stop what else runs there while measuring." if busy else ""
        yield Check("load", True, f"{now.load_1m:.2f} on {now.cpus_online} CPUs", fix)
    if now.mem_available_bytes is not None:
        enough = now.mem_available_bytes >= _NEEDED_MEMORY_BYTES
        fix = "" if enough else "Stop what else runs there."
        yield Check("memory", enough, f"{now.mem_available_bytes / 1e6:.0f} MB available", fix)


def _throttling(throttled: str | None) -> Iterator[Check]:
    if throttled is None:
        return
    try:
        bits = int(throttled, 16)
    except ValueError:
        yield Check("throttling", True, f"not understood: {readable(throttled, 40)}")
        return
    now = [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> bit & 1]
    before = [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> (16 + bit) & 1]
    fix = "Use the board's own power supply and a heat sink or fan." if now or before else ""
    detail = f"now: {', '.join(now) or 'none'}; since boot: {', '.join(before) or 'none'}"
    yield Check("throttling", not now, detail, fix)
