"""Keep exporters off the user's terminal: their banners, progress lines, deprecation warnings and C++ logs.

What they write is worth reading only when they fail, and then its end travels with the exception as a note (the MLIR
converter names an unsupported operator on stderr, not in its exception).

Descriptors 1 and 2 themselves are turned away, because C++ writes there directly. A progress display that must go on while
an exporter runs writes to its own duplicate of the terminal (`os.fdopen(os.dup(2), "w")`).
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO

_NOTE_CHARACTERS = 2000


@contextmanager
def quiet() -> Iterator[None]:
    """Send everything written to stdout and stderr, by Python or C++, to a temporary file; add its end to an exception.

    Warnings are ignored and the root logger's handlers restored afterwards, whoever added some (`logging.warning` and absl
    do). Not for use from two threads at once.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+b"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_root_logger_kept())
        for descriptor in (1, 2):
            stack.enter_context(_turned_away(descriptor, log))
        # sys.stdout is not always descriptor 1 (notebooks, a progress display, pytest)
        stack.enter_context(redirect_stdout(_Descriptor(1)))
        stack.enter_context(redirect_stderr(_Descriptor(2)))
        try:
            yield
        except Exception as error:
            _flush()
            log.seek(0)
            text = log.read().decode(errors="replace").strip()
            if text:
                error.add_note(text[-_NOTE_CHARACTERS:])
            raise


class _Descriptor(io.TextIOBase):
    """A text stream onto whatever the descriptor is at the time of a write. It has no buffer and is never closed, so that a
    display's thread that picked it up in between does no harm afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        os.write(self._descriptor, text.encode(errors="replace"))
        return len(text)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


@contextmanager
def _turned_away(descriptor: int, log: IO[bytes]) -> Iterator[None]:
    try:
        saved = os.dup(descriptor)
    except OSError:  # closed, as under some service managers: nothing to keep clean
        yield
        return
    _flush()
    os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        _flush()
        os.dup2(saved, descriptor)
        os.close(saved)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # a handler, so that logging.warning() of the libraries does not install its own on stderr
    root.handlers[:] = [logging.NullHandler()]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
