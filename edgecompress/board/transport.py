"""What a session needs of a device: run a short command, move a file up or down. Nothing here knows what the agent does.

Three ways to go wrong, three exceptions. `LinkLost`: the connection broke or stayed silent too long; the same operation may
be repeated on a new one. `DeviceError`: the device answered, and the answer is no (disk full, not permitted) or nonsense.
`UserError`: a person has to act (an unknown host key, no key that is accepted).

What a device answers is untrusted: every output is bounded, every wait has a limit, and text from a device passes through
`readable` before it reaches a terminal or a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from edgecompress.errors import StepFailed
from edgecompress.studyfile import shipped_profiles

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile

OUTPUT_LIMIT_BYTES = 16 * 2**20
"""Of each of stdout and stderr of one command: far above what the agent ever prints."""

FILE_LIMIT_BYTES = 128 * 2**20
"""Of one file read from a device: a result with every latency of four hours at 1 kHz fits, and as JSON it may take eight times
its size in memory."""

_TEXT_LIMIT = 4000

T = TypeVar("T")


class LinkLost(Exception):
    """The link to a device broke, or nothing came through it within the limit. Whether the operation was done is unknown."""


class DeviceError(StepFailed):
    """The device answered, and what it answered ends the step: it cannot do it, or it breaks the protocol."""


class OutOfReach(StepFailed):
    """The device was not reached, or its link was lost and did not come back within `reconnect_s`."""


@dataclass(frozen=True)
class Completed:
    """A command that ended. status: its exit status; negative (minus the signal where that is known) if a signal ended it."""

    status: int
    stdout: bytes
    stderr: bytes


def ignored(there: int) -> None:
    """For whoever does not want to know how far an upload is."""


class Transport(Protocol):
    """One connection to one device. Remote paths are absolute, with '/'. Not for use from several threads at once."""

    def home(self) -> str:
        """The absolute path that `~` stands for on the device."""
        ...

    def run(self, argv: list[str], stdin: bytes | None = None, timeout_s: float = 60.0) -> Completed:
        """Run a command to its end. LinkLost after `timeout_s`; DeviceError when it prints more than OUTPUT_LIMIT_BYTES."""
        ...

    def put(self, local: Path | bytes, remote: str, at: Callable[[int], None] = ignored) -> None:
        """Write a file (readable by its owner only) under a temporary name beside `remote`, then rename it to `remote`.

        at: is told, again and again, how many bytes are there. Where the link can be lost, the next `put` of the same contents
        to the same place goes on where this one was cut; whoever uses the file checks its SHA-256.
        """
        ...

    def get(self, remote: str, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
        """The contents of a file. FileNotFoundError when there is none; DeviceError when it is larger than `limit_bytes`, or
        no plain file (a link could lead anywhere, and to read a pipe may never end)."""
        ...

    def exists(self, remote: str) -> bool: ...

    def mkdirs(self, remote: str) -> None:
        """Make a directory and its parents, private to their owner. Nothing happens when it is there."""
        ...

    def close(self) -> None:
        """Idempotent; raises nothing."""
        ...


def open_transport(profile: DeviceProfile) -> Transport:
    """Connect to the device of a profile. LinkLost: it cannot be reached. UserError: a person has to act first."""
    if profile.transport == "local":
        from edgecompress.board.local import LocalTransport

        return LocalTransport(profile)
    if profile.transport == "serial":
        from edgecompress.board.serial_transport import SerialTransport

        return SerialTransport(profile)
    from edgecompress.board.ssh import SshTransport

    return SshTransport(profile)


def command(verb: str, device: str, options: str = "") -> str:
    """What a person types to do something with a device. A profile that is not a shipped one goes by its file, which is called
    like the device as a rule."""
    shipped = device in shipped_profiles("devices")
    typed = " ".join(filter(None, ("edgecompress device", verb, device if shipped else f"{device}.yaml", options)))
    return typed if shipped else f"{typed}   (the file of its profile)"


def on_device(path: str, home: str) -> str:
    """A path of a device profile as an absolute path on the device: `~` and relative paths start at `home`."""
    if path == "~" or path.startswith("~/"):
        path = home.rstrip("/") + path[1:]
    return path if path.startswith("/") else f"{home.rstrip('/')}/{path}"


def readable(text: bytes | str, limit: int = 2000) -> str:
    """Text from a device for a person: the last `limit` characters, control characters (terminal escapes) replaced by '?'."""
    cut = len(text) > 4 * limit
    text = text[-4 * limit :]
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text.replace("\r\n", "\n")).strip()
    return text if len(text) <= limit and not cut else "…" + text[-limit:]


def cleaned(record: T) -> T:
    """A record of a device with every text in it `readable`: it may reach a terminal, a report or a message."""
    return cast(T, _cleaned(record))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return value and (readable(value, _TEXT_LIMIT) or "?")  # what must not be empty stays so
    if isinstance(value, tuple):
        # latencies are a million plain integers
        return value if all(type(v) is int for v in value) else tuple(_cleaned(v) for v in value)
    if isinstance(value, dict):
        return {_cleaned(k): _cleaned(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _cleaned(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value
