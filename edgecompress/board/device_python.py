"""Whether the Python of a device can run the agent, and what to do when it cannot."""

from __future__ import annotations

import re

from edgecompress.board.transport import Completed, command, readable
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError

OLDEST = (3, 8)
ASK_VERSION = "import sys; print('%d.%d' % tuple(sys.version_info[:2]))"
"""A program for `-c`, which every Python understands. Without -I, which Python 2 does not know."""


class OldPython(UserError):
    """The interpreter there is none, or too old for the agent."""


def version_of(asked: Completed) -> tuple[int, int] | None:
    """The answer to ASK_VERSION; None: it is not one of a Python."""
    found = re.fullmatch(r"(\d+)\.(\d+)", asked.stdout.decode("ascii", "replace").strip().rpartition("\n")[2])
    return (int(found[1]), int(found[2])) if found and asked.status == 0 else None


def absent(profile: DeviceProfile, python: str, said: str) -> OldPython:
    return OldPython(f"no Python at {python!r} ({said})", where=profile.name, fix=_hint(profile))


def too_old(profile: DeviceProfile, python: str, version: str) -> OldPython:
    oldest = ".".join(map(str, OLDEST))
    what = f"{python} there is Python {readable(version, 20)}; the agent needs {oldest} or newer"
    return OldPython(what, where=profile.name, fix=_hint(profile))


def _hint(profile: DeviceProfile) -> str:
    if profile.transport == "local":
        return "Change python in the device profile, or leave it out."
    return (
        "Install a Python ≥ 3.8 there (sudo apt install python3 python3-venv) or set python in the profile, then: "
        f"{command('setup', profile.name)}"
    )
