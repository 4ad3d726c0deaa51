"""The run directory: everything a study leaves behind, written so that a kill at any moment loses at most the step at hand.

plan.json                     what was asked: the study, its devices, and the key of every step
records/STAGE/KEY.json        a finished step: its record. It exists only when the step is wholly done
failures/STAGE/KEY.json       why a step failed, until it succeeds
files/STAGE/KEY/…             what the step made (models, artifacts, images)
scratch/KEY/…                 checkpoints of a training under way
results.json, report.html, …  the report, made from the above alone
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edgecompress.errors import UserError
from edgecompress.records import Failure, from_json, to_json

RecordT = TypeVar("RecordT")


def content_key(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of the parts as canonical JSON: equal for equal inputs, on every machine."""
    text = json.dumps(to_json(list(parts)), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write under a temporary name, fsync, rename, fsync the folder: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDir:
    """Reads and writes one run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def record(self, stage: str, key: str, kind: type[RecordT]) -> RecordT | None:
        """The record of a finished step, or None. UserError when the file is not what this version writes."""
        path = self.path("records", stage, f"{key}.json")
        if not path.exists():
            return None
        try:
            record: RecordT = from_json(kind, json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"this record cannot be read: {error}",
                where=str(path),
                fix="Delete the file; running the study again remakes it.",
            ) from None
        return record

    def commit(self, stage: str, key: str, record: Any) -> None:
        """Mark a step as done. The files it made must lie in place already."""
        write_atomically(
            self.path("records", stage, f"{key}.json"), json.dumps(to_json(record), separators=(",", ":")) + "\n"
        )
        self.path("failures", stage, f"{key}.json").unlink(missing_ok=True)

    def discard(self, stage: str, key: str) -> None:
        """Forget a record whose content has become part of another one."""
        self.path("records", stage, f"{key}.json").unlink(missing_ok=True)

    def fail(self, stage: str, key: str, failure: Failure) -> None:
        write_atomically(self.path("failures", stage, f"{key}.json"), json.dumps(to_json(failure), indent=1) + "\n")

    def failure(self, stage: str, key: str) -> Failure | None:
        path = self.path("failures", stage, f"{key}.json")
        if not path.exists():
            return None
        failure: Failure = from_json(Failure, json.loads(path.read_text()))
        return failure

    def make_folder(self, stage: str, key: str, make: Callable[[Path], RecordT]) -> tuple[Path, RecordT]:
        """Let `make` fill a temporary folder and put it in place as files/STAGE/KEY only when it is whole."""
        final = self.path("files", stage, key)
        temporary = final.with_name(f".{key}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        made = make(temporary)
        # A folder without a record is what a kill between rename and commit leaves: made again.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(final.parent)
        return final, made

    def scratch(self, key: str) -> Path:
        """A folder for the checkpoints of a step; kept until `drop_scratch`, so that a killed step resumes."""
        folder = self.path("scratch", key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_scratch(self, key: str) -> None:
        shutil.rmtree(self.path("scratch", key), ignore_errors=True)

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.path(name), json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        path = self.path(name)
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(
                f"no {name} there: not a run directory",
                where=str(self.root),
                fix="Give the directory that `edgecompress run` made.",
            ) from None
        except ValueError as error:
            raise UserError(f"not valid JSON: {error}", where=str(path), fix="Run the study again.") from None

    @property
    def run_id(self) -> str:
        """A random name of this directory, made once: jobs on a device are told apart from those of another run by it."""
        path = self.path("run-id")
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex + "\n")
        return path.read_text().strip()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one process. UserError when another one holds it. The lock dies with its process."""
        try:
            if self.root.is_dir() and any(self.root.iterdir()) and not self.path("lock").exists():
                raise UserError(
                    "is not empty and no run directory",
                    where=str(self.root),
                    fix="Choose another directory with --out.",
                )
            self.root.mkdir(parents=True, exist_ok=True)
            file = self.path("lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot be written: {error.strerror}", where=str(self.root), fix="Choose another directory with --out."
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another process is at work in this directory",
                    where=str(self.root),
                    fix="Wait for it, or choose another directory with --out.",
                ) from None
            yield
