"""The devices that the steps of a recipe measure on: all of them reached before anything is trained, then handed to the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from edgecompress import measurement
from edgecompress.compress.contract import Benches, asked_of_device
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError, without_name
from edgecompress.on_device import DeviceBench
from edgecompress.progress import SILENT, Progress
from edgecompress.study import Step
from edgecompress.studyfile import read_device

if TYPE_CHECKING:
    from edgecompress.board.session import Session


def check_before(device: str, format: str, session: Callable[[str], Session], *, energy: bool = False) -> Session:
    """The session with a device that a step will measure files of `format` on. UserError, before any work, when it will not
    be able to: out of reach, no engine for these files there, no exporter for them here; energy: no sensor that reads."""
    from edgecompress.export.contract import check_installed

    check_installed(format)
    try:
        found = session(device)
        found.check_engine(measurement.engine_for(found.profile, format))
        if energy:
            found.check_sensor()
    except StepFailed as error:
        fix = "Switch it on, or let the step measure on another device."
        raise UserError(without_name(device, error), where=f"device {device}", fix=fix) from error
    return found


@contextmanager
def open_benches(steps: Sequence[Step], usual: str | DeviceProfile, progress: Progress = SILENT) -> Iterator[Benches]:
    """The benches of all devices that these steps measure on, connected; closed at the end. usual: of steps that name none.

    UserError as in `check_before`, and for an unknown device. Nothing is connected for steps that measure nothing.
    """
    from edgecompress.board.session import connect

    sessions: dict[str, Session] = {}

    def profile_of(name: str | None) -> DeviceProfile:
        wanted = usual if name is None else name
        return read_device(wanted, where="device") if isinstance(wanted, str) else wanted

    with ExitStack() as stack:

        def session_of(name: str | None) -> Session:
            profile = profile_of(name)
            if profile.name not in sessions:
                sessions[profile.name] = stack.enter_context(connect(profile))
            return sessions[profile.name]

        for number, step in enumerate(steps, 1):
            try:
                asked = asked_of_device(step.method, step.params)
            except ValueError as error:
                raise UserError(str(error), where=f"step {number}") from None
            if asked is not None:
                device = asked.device
                name, session = profile_of(device).name, lambda _, device=device: session_of(device)
                check_before(name, asked.format, session, energy=asked.energy)
        yield lambda device, form: DeviceBench(session_of(device), form, progress=progress)
