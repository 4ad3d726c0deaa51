"""Pinned host keys in OpenSSH's known_hosts files: look one up, add one.

Read here and not by paramiko's HostKeys, which stops at a line it cannot parse, takes `@revoked` for a host's name, and
knows no patterns. Format: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Certificate authorities (`@cert-authority`) are not used.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import UserError


@dataclass(frozen=True)
class HostKey:
    """A public host key. kind: `ssh-ed25519`, …; blob: the key as SSH sends it."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As OpenSSH shows it: SHA256:… (base64, no padding)."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class Pinned:
    """A line of a file that is about one host: where it stands, the key, and whether it was revoked."""

    file: Path
    line: int
    key: HostKey
    revoked: bool


def entry_name(host: str, port: int) -> str:
    """The name that a host has in these files: `host`, or `[host]:port` for a port other than 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def lookup(files: Iterable[Path], name: str) -> list[Pinned]:
    """Every key that the files hold for a name (see `entry_name`). A file that is absent holds none."""
    return [pinned for file in files for pinned in _read(file, name)]


def _read(file: Path, name: str) -> Iterator[Pinned]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file), fix="Make the file readable.") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else None
        if (
            len(fields) < 3
            or fields[0].startswith("#")
            or marker not in (None, "@revoked")
            or not _matches(fields[0], name)
        ):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue  # OpenSSH ignores such lines as well
        yield Pinned(file, number, HostKey(fields[1], blob), marker is not None)


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            _, _, salt, digest = patterns.split("|")
            mac = hmac.new(base64.b64decode(salt, validate=True), name.encode(), "sha1").digest()
            return hmac.compare_digest(mac, base64.b64decode(digest, validate=True))
        except ValueError:
            return False
    found = False
    for pattern in patterns.lower().split(","):
        # '[' is part of a name here ([host]:port), not fnmatch's character class
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def pin(file: Path, name: str, key: HostKey) -> None:
    """Add a key for a name. The file and its directory are made, private, when they are absent."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "ab+") as out:
            out.seek(0, os.SEEK_END)
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")
            out.write(f"{name} {key.kind} {base64.b64encode(key.blob).decode()}\n".encode())
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(file), fix="Make the file writable."
        ) from None
