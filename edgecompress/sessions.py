"""The connections of a run: to every board that it needs, all opened at once, and each then used by one thread at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError, without_name
from edgecompress.pools import Device, DevicePool, members_of
from edgecompress.progress import Progress

if TYPE_CHECKING:
    from edgecompress.board.session import Session

_AT_ONCE = 16
"""Connections that are opened at the same time: a handshake is work for this machine, too."""


class Sessions:
    """By device and board. `get` and `drop` may be called by several threads, for different boards."""

    def __init__(self, devices: Mapping[str, Device], progress: Progress) -> None:
        self._devices, self._progress = devices, progress
        self._open: dict[tuple[str, str], Session] = {}
        self._told: set[tuple[str, str]] = set()

    def get(self, device: str, profile: DeviceProfile) -> Session:
        """The session with a board of a device. UserError, StepFailed (OutOfReach): as `connect`, which is tried once."""
        from edgecompress.board.session import connect

        found = self._open.get((device, profile.name))
        if found is None:
            found = self._open[device, profile.name] = connect(profile)
        return found

    def drop(self, device: str, board: str) -> None:
        """Close the session with a board, if there is one."""
        found = self.forget(device, board)
        if found is not None:
            found.close()

    def forget(self, device: str, board: str) -> Session | None:
        """Let go of a session without closing it."""
        return self._open.pop((device, board), None)

    def of(self, device: str) -> Session:
        """The session that a step measures with while it works: of a pool, with the first board that can be reached."""
        profiles = members_of(self._devices[device])
        connected = [p for p in profiles if (device, p.name) in self._open]
        for profile in connected or profiles[:-1]:
            try:
                return self.get(device, profile)
            except StepFailed as error:
                self._progress.say(f"warning: {device}: {without_name(device, error)}")
        return self.get(device, profiles[-1])

    def close(self) -> None:
        for device, board in list(self._open):
            self.drop(device, board)

    def check(
        self, devices: Sequence[str], *, skip_absent: bool, needed: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Reach every board of these devices, and bring the agent there. UserError, with all that is wrong, where a device cannot
        be used: not reached, or nothing can be written to its workdir, or it has no Python for the agent.

        A pool goes on without boards that are away, with a warning; skip_absent: so does the run without devices that are, but
        for those that steps measure on while they work (needed: device → these steps). What a person has to mend (a host key, a
        login) always ends it.
        """
        needed = needed or {}
        asked = [(name, profile) for name in devices for profile in members_of(self._devices[name])]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            answers = threads.map(lambda a: self._reach(*a), asked)
            errors = {(name, p.name): e for (name, p), e in zip(asked, answers, strict=True) if e is not None}
        refused = [UserError(e.what, where=e.where, fix=e.fix) for e in errors.values() if isinstance(e, UserError)]
        absent = []
        for name in devices:
            away = {b: e for (n, b), e in errors.items() if n == name and isinstance(e, StepFailed)}
            if len(away) == len(members_of(self._devices[name])):
                said = "; ".join(without_name(name, error) for error in away.values())
                if name in needed:
                    refused.append(UserError(said, where=f"device {name}", fix=_needed(name, needed[name])))
                else:
                    absent.append(UserError(said, where=f"device {name}", fix=_FIX))
            else:
                for board, error in away.items():
                    self._told.add((name, board))
                    self._progress.say(f"warning: {name} goes on without one of its boards: {error}")
            refused += self._unlike(name)
        if skip_absent:
            for problem in absent:
                self._progress.say(f"warning: {problem.where} is away: {problem.what}")
        _raise(refused + ([] if skip_absent else absent))

    def told_away(self, device: str, board: str) -> bool:
        """Whether `check` said that a pool goes on without this board."""
        return (device, board) in self._told

    def _reach(self, device: str, profile: DeviceProfile) -> UserError | StepFailed | None:
        try:
            session = self.get(device, profile)
            session.bring()
            if isinstance(self._devices[device], DevicePool):
                session.hello()
        except (UserError, StepFailed) as error:
            self.drop(device, profile.name)
            return error
        return None

    def _unlike(self, name: str) -> list[UserError]:
        """What makes boards of a pool other ones than the first, by what they say themselves; lesser differences are told."""
        device = self._devices[name]
        if not isinstance(device, DevicePool):
            return []
        hellos = [(p.name, self._open[name, p.name].hello()) for p in device.members if (name, p.name) in self._open]
        problems = []
        for board, hello in hellos[1:]:
            first_name, first = hellos[0]
            here, there = hello.conditions, first.conditions
            kinds = [" ".join(filter(None, (c.machine, c.cpu_model))) for c in (here, there)]
            if kinds[0] != kinds[1]:
                what = f"{board} ({kinds[0]}) is another kind of board than {first_name} ({kinds[1]})"
                problems.append(UserError(what, where=f"pool {name}", fix="Make it a device of its own."))
                continue
            versions = [
                ", ".join(f"{engine} {found.version}" for engine, found in sorted(h.engines.items()) if found.version)
                for h in (hello, first)
            ]
            for mine, theirs in ((here.board, there.board), (versions[0], versions[1])):
                if mine != theirs:
                    self._progress.say(f"warning: {name}: {board} has {mine}, {first_name} has {theirs}")
        return problems


_FIX = (
    "Switch it on, or run the study without it for now: --skip-absent goes on without those that are away, "
    "--device NAME names the devices to use."
)


def _needed(device: str, steps: Sequence[str]) -> str:
    """What helps where a device is away that steps cannot do without."""
    which, out = ("that step", "its recipe") if len(steps) == 1 else ("these steps", "their recipes")
    return (
        f"Switch {device} on: {' and '.join(steps)} cannot be done without it, and --skip-absent does not help. Or give {which} "
        f"another device, or take {out} out of the study for now; what is done already is kept."
    )


def _raise(problems: Sequence[UserError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        fixes = "\n  ".join(dict.fromkeys(p.fix for p in problems if p.fix))
        lines = "".join(f"\n  {p.where}: {p.what}" for p in problems)
        raise UserError(f"{len(problems)} devices cannot be used:{lines}", fix=fixes)
