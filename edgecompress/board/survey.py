"""A look at a device before anything is copied to it: the agent's own code, run there from memory.

The zipapp goes through standard input into a file that has no name (memfd, or a temporary file that is removed while it is
open), and Python runs it from /proc/PID/fd/N: what doctor reports is what a measurement will find, and nothing stays there.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass

from edgecompress_agent import wire
from edgecompress_agent.survey_record import Survey

from edgecompress.board import bundle, device_python
from edgecompress.board.agent import last_json
from edgecompress.board.transport import Completed, DeviceError, Transport, cleaned, readable
from edgecompress.device_profile import DeviceProfile

_SURVEY_S = 200.0
"""Every engine is imported once, all at once: tensorflow takes a minute on a slow card."""
_QUESTIONS = 3
_CLOCK = "import time; print(repr(time.time()))"

_FROM_MEMORY = """
import sys
if sys.version_info < (3, 8):
    sys.stdout.write('{"python": "%d.%d"}' % tuple(sys.version_info[:2]))
    sys.exit(0)
import os, tempfile, zlib
data = zlib.decompress(sys.stdin.buffer.read())
try:
    number = os.memfd_create("agent")
except (AttributeError, OSError):
    nameless = tempfile.TemporaryFile()
    number = nameless.fileno()
with os.fdopen(os.dup(number), "wb") as file:
    file.write(data)
os.set_inheritable(number, True)
path = "/proc/%d/fd/%d" % (os.getpid(), number)
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.execv(sys.executable, [sys.executable, "-I", "-B", path] + sys.argv[1:])
"""
"""Understood by every Python since 2.7, so that one which is too old can say so."""


@dataclass(frozen=True)
class Offset:
    """The device's calendar less this machine's, known to within half a round trip."""

    seconds: float
    uncertain_s: float


def look(profile: DeviceProfile, transport: Transport, python: str, root: str, *, engines: bool = True) -> Survey:
    """One survey. root: the agent's directory there, whether it exists or not. engines: whether they are imported.

    device_python.OldPython: there is no Python, or one older than 3.8. DeviceError: it answers nothing of use. LinkLost.
    """
    request: dict[str, object] = {"engines": engines}
    if profile.meter_at == "device":
        request |= {"sensor": profile.sensor, "options": profile.sensor_options}
    argv = [python, "-I", "-c", _FROM_MEMORY, "survey", root, json.dumps(request)]
    done = transport.run(argv, zlib.compress(bundle.build()[0], 9), _SURVEY_S)
    answer = last_json(done.stdout)
    if isinstance(answer, dict) and list(answer) == ["python"]:
        raise device_python.too_old(profile, python, str(answer["python"]))
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        raise DeviceError(f"{profile.name}: {readable(answer['error'], 1000)}")
    if done.status != 0 or answer is None:
        raise _no_answer(profile, transport, python, done)
    try:
        return cleaned(wire.from_json(Survey, answer))
    except wire.WireError as error:
        raise DeviceError(f"{profile.name}: its answer is not one: {readable(str(error), 500)}") from None


def _no_answer(profile: DeviceProfile, transport: Transport, python: str, done: Completed) -> Exception:
    asked = transport.run([python, "-c", device_python.ASK_VERSION])
    version = device_python.version_of(asked)
    if version is not None:
        if version < device_python.OLDEST:
            return device_python.too_old(profile, python, "{}.{}".format(*version))
        said = readable(done.stderr, 1000) or readable(done.stdout, 300) or "nothing"
        return DeviceError(f"{profile.name}: the look at it ended with status {done.status} and said: {said}")
    said = readable(done.stderr, 300) or readable(asked.stdout, 100) or f"status {asked.status}"
    return device_python.absent(profile, python, said)


def clock_offset(transport: Transport, python: str) -> Offset | None:
    """From the question that was answered fastest of several; None when the device answers nothing that is a time."""
    found: list[Offset] = []
    for _ in range(_QUESTIONS):
        before, began = time.time(), time.monotonic()
        done = transport.run([python, "-I", "-S", "-c", _CLOCK])
        half = (time.monotonic() - began) / 2
        try:
            there = float(done.stdout.decode("ascii", "replace").strip().rpartition("\n")[2])
        except ValueError:
            return None
        if not 0 <= there < 1e11:
            return None
        found.append(Offset(there - (before + half), half))
    return min(found, key=lambda offset: offset.uncertain_s)


def kernel(transport: Transport) -> str | None:
    """What the device is where there is no Python to ask: `uname -srm`, such as `Linux 6.1.21 aarch64`."""
    done = transport.run(["uname", "-srm"])
    said = readable(done.stdout, 120)
    return said if done.status == 0 and said else None
