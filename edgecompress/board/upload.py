"""Uploads by SFTP: under a temporary name, renamed when whole, going on where an earlier one was cut, and not slower than scp.

The part of a file is named by what it shall become, so that it is found again, by this process or the next. Two workstations
that send the same file at once write the same bytes to the same places, which harms nobody. What a part holds is not trusted:
the agent hashes every blob before it uses it, and pip every wheel.

Speed: paramiko writes 32 KB at a time, which the SSH packets (32 KB as well) then tear in two, and every write costs a reply.
OpenSSH takes writes of up to 255 KB and tells so (`limits@openssh.com`, PROTOCOL section 4.8 of OpenSSH).
"""

from __future__ import annotations

import hashlib
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramiko import SFTPClient, SFTPFile

RESUMED_FROM_BYTES = 1 << 20
"""Smaller files are sent anew: looking for their part would take as long."""

_PAYLOAD_BYTES = 32704
"""Of one SSH packet, as paramiko fills those that OpenSSH takes."""
_HEADER_BYTES = 29
"""Of an SFTP write, with OpenSSH's handles of 4 bytes."""
SAFE_REQUEST_BYTES = _PAYLOAD_BYTES - _HEADER_BYTES
"""Every SFTP server takes it (draft-ietf-secsh-filexfer-02, section 3), and it fits into one SSH packet."""
_LARGEST_REQUEST_BYTES = 7 * _PAYLOAD_BYTES - _HEADER_BYTES


def request_bytes(sftp: SFTPClient) -> int:
    """The largest write to send to this server: what it says that it takes, in whole SSH packets, between 32 and 224 KB."""
    from paramiko.sftp import CMD_EXTENDED, CMD_EXTENDED_REPLY

    try:
        # there is no public way to ask
        kind, answer = sftp._request(CMD_EXTENDED, "limits@openssh.com")  # type: ignore[attr-defined]
    except OSError:  # OpenSSH before 8.5, and others
        return SAFE_REQUEST_BYTES
    if kind != CMD_EXTENDED_REPLY:
        return SAFE_REQUEST_BYTES
    packet, _, write = answer.get_int64(), answer.get_int64(), answer.get_int64()
    allowed: int = min(packet - _HEADER_BYTES, write)
    packets = (allowed + _HEADER_BYTES) // _PAYLOAD_BYTES
    return max(SAFE_REQUEST_BYTES, min(packets * _PAYLOAD_BYTES - _HEADER_BYTES, _LARGEST_REQUEST_BYTES))


def part_of(source: BytesIO | BufferedReader, size: int, remote: str) -> str:
    """The temporary name of a file on its way: by its contents when it may be resumed, else one that nobody else has."""
    directory, _, name = remote.rpartition("/")
    if size >= RESUMED_FROM_BYTES:
        identity = hashlib.file_digest(source, "sha256").hexdigest()[:16]
        source.seek(0)
    else:
        identity = uuid.uuid4().hex[:16]
    return f"{directory}/.{name}.{identity}.part"


def send(
    sftp: SFTPClient,
    source: BytesIO | BufferedReader,
    size: int,
    part: str,
    remote: str,
    *,
    request: int,
    at: Callable[[int], None],
) -> None:
    """Write what is missing of `part` and rename it to `remote`. at: is told how many bytes are there, first those found.

    OSError: the device's answer; the part is then removed by the caller, as it may be what fills the disk.
    """
    with _open(sftp, part) as out:
        out.MAX_REQUEST_SIZE = request
        out.set_pipelined(True)
        there = out.stat().st_size or 0
        if there > size:
            out.truncate(0)
            there = 0
        source.seek(there)
        out.seek(there)
        at(there)
        while chunk := source.read(request):
            out.write(chunk)
            there += len(chunk)
            at(there)
        written = out.stat().st_size  # answered after all writes
    if written != size:
        raise OSError(None, f"{written} of {size} bytes arrived (is the disk full?)")
    try:
        sftp.posix_rename(part, remote)
    except FileNotFoundError:
        if (
            sftp.stat(remote).st_size != size
        ):  # else another workstation, which sent the same, was the first to rename it
            raise


def _open(sftp: SFTPClient, part: str) -> SFTPFile:
    """The part, with what it has; made when there is none. Whatever else has its name is removed."""
    try:
        if stat.S_ISREG(sftp.lstat(part).st_mode or 0):
            return sftp.open(part, "r+")
        sftp.remove(part)
    except FileNotFoundError:
        pass
    try:
        out = sftp.open(part, "wx")
    except OSError as error:
        with suppress(OSError):
            return sftp.open(part, "r+")  # another workstation made it just now
        raise error
    out.chmod(0o600)
    return out
