"""Run a command to its end: input fed, both outputs drained, everything bounded. Standard library only: see `console.py`."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from typing import Callable, List, NamedTuple, Optional

_AFTER_EXIT_S = 1.0
"""How long output is still collected after the command ended, when a process that it left behind holds its pipes open."""


class Ended(NamedTuple):
    """status: the exit status; minus the signal that ended it; 127 when it could not be started."""

    status: int
    stdout: bytes
    stderr: bytes


class TooLong(Exception):
    """It did not end in time, and was killed."""


class TooMuch(Exception):
    """It printed more than it may, and was killed."""


def run(
    argv: List[str],
    stdin: bytes,
    *,
    timeout_s: float,
    limit_bytes: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> Ended:
    """Run it in a session of its own (a Ctrl-C meant for this process does not hit it, and a timeout ends its children too).

    meanwhile: is called many times a second; what it raises ends the command. TooLong, TooMuch (limit_bytes: of each output).
    """
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        # What a shell answers for the same mistake, so that all transports look alike from above.
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Ended(127, b"", f"{argv[0]}: {said}".encode())
    try:
        return _exchange(process, stdin, time.monotonic() + timeout_s, limit_bytes, meanwhile)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):  # closing flushes what a dead process no longer reads
                    stream.close()


def _exchange(
    process: "subprocess.Popen[bytes]", data: bytes, deadline: float, limit: int, meanwhile: Callable[[], None]
) -> Ended:
    """Feed stdin and drain both outputs together: draining one at a time deadlocks once the other pipe is full."""
    assert process.stdin and process.stdout and process.stderr
    outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    reading, stdin, rest = set(outputs), process.stdin.fileno(), memoryview(data)
    ended_at: Optional[float] = None
    os.set_blocking(stdin, False)
    with selectors.DefaultSelector() as selector:
        for output in outputs:
            selector.register(output, selectors.EVENT_READ)
        selector.register(stdin, selectors.EVENT_WRITE)
        while reading or process.poll() is None:
            now = time.monotonic()
            if now > deadline:
                raise TooLong()
            if process.poll() is not None:
                ended_at = ended_at or now
                if now - ended_at > _AFTER_EXIT_S:
                    break
            meanwhile()
            for key, _ in selector.select(timeout=0.05):
                if key.fd == stdin:
                    try:
                        rest = rest[os.write(stdin, rest[:65536]) :] if rest else rest
                    except BrokenPipeError:  # it does not read its input: what it says and its status tell the rest
                        rest = rest[:0]
                    if not rest:
                        selector.unregister(stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                    reading.discard(key.fd)
                    continue
                outputs[key.fd] += chunk
                if len(outputs[key.fd]) > limit:
                    raise TooMuch()
    stdout, stderr = outputs.values()
    return Ended(process.wait(), bytes(stdout), bytes(stderr))
