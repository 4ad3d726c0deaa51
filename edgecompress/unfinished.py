"""What `compress` keeps until it is done, in OUT.unfinished beside its OUT: checkpoints of its training and of each of its steps.

Each of them has a folder under the key that the model after it has in a study (`edgecompress.plan`): another model, data, step
before it, seed, device or code has another one, so that what one request left is never another one's beginning. What comes later
is not in a key: requests that begin alike have the folders of that beginning in common.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecompress.errors import UserError
from edgecompress.progress import Progress
from edgecompress.rundir import RunDir, write_atomically

_REQUEST = "request.json"
"""In the folder of a request's last step: the keys of all its folders."""


class Unfinished:
    """The checkpoints of one request. training, steps: folders for those of the training before the steps, and of each step."""

    def __init__(self, home: RunDir, keys: Sequence[str]) -> None:
        self._home, self._keys = home, tuple(keys)
        self.training, *steps = (home.path("scratch", key) for key in keys)
        self.steps = tuple(steps)
        self._own = (self.training, *steps)
        self._request, self._saving = self._own[-1] / _REQUEST, self._own[-1] / "saving"

    @property
    def saving(self) -> bool:
        """Whether OUT may hold a part of this request's own result: the saving was begun, and not ended."""
        return self._saving.exists()

    def begin(self) -> None:
        """From now on other requests know which folders are this one's, too."""
        write_atomically(self._request, json.dumps(self._keys) + "\n")

    def begin_saving(self) -> None:
        """OUT is this request's from now on: what others had begun to save there is not in it any more."""
        for other in self._home.path("scratch").glob("*/saving"):
            other.unlink()
        self._saving.touch()

    def found(self) -> bool:
        """Whether there is anything to go on from."""
        return any(any(_files(folder)) for folder in self._own)

    def others(self) -> bool:
        """Whether another request has something kept: by its own word, or in a folder that is none of this one's."""
        scratch = self._home.path("scratch")
        folders = scratch.iterdir() if scratch.is_dir() else ()
        return bool(self._theirs()) or any(any(_files(folder)) for folder in folders if folder not in self._own)

    def drop(self) -> None:
        """Remove what is this request's alone; with it the folder, where nothing else is in it."""
        self._request.unlink(missing_ok=True)
        self._saving.unlink(missing_ok=True)
        if self.others():
            theirs = self._theirs()
            for key in self._keys:
                if key not in theirs:
                    self._home.drop_scratch(key)
            return
        shutil.rmtree(self._home.path("scratch"), ignore_errors=True)
        self._home.path("lock").unlink(missing_ok=True)
        with suppress(OSError):  # files of somebody's own are in it
            self._home.root.rmdir()

    def _theirs(self) -> set[str]:
        """The folders of all other requests that have anything in one of theirs, also where that is one of this request's, too."""
        scratch = self._home.path("scratch")
        named = [_keys_in(file) for file in scratch.glob(f"*/{_REQUEST}") if file != self._request]
        return {key for keys in named if any(any(_files(scratch / key)) for key in keys) for key in keys}


def _keys_in(request: Path) -> list[str]:
    """The folders of another request; of one that cannot be read none is known."""
    try:
        found = json.loads(request.read_text())
    except (OSError, ValueError):
        return []
    return [str(key) for key in found] if isinstance(found, list) else []


def _files(folder: Path) -> Iterator[Path]:
    """Files that hold something, and are whole."""
    return (p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".partial", ".tmp") and p.name != _REQUEST)


def folder_beside(out: Path) -> Path:
    whole = out if out.name not in ("", "..") else out.resolve()
    if not whole.name:
        raise UserError("nothing can be made beside it", where=f"--out {out}", fix="Name a new directory.")
    return whole.with_name(f"{whole.name}.unfinished")


@contextmanager
def unfinished(out: Path, keys: Sequence[str], progress: Progress) -> Iterator[Unfinished]:
    """The checkpoints of a request that makes `out`, held for this process. They go when the block ends well; where it does not,
    what is there stays, and it is said where. UserError: another process holds the folder, or it is something else.

    keys: of the network before the steps, and after each of them.
    """
    home = RunDir(folder_beside(out))
    with home.locked():
        kept = Unfinished(home, keys)
        if kept.found():
            progress.say(f"goes on from what is kept in {home.root}")
        elif kept.others():
            progress.say(f"{home.root} holds what another command left: that stays as it is, and this one begins anew")
        kept.begin()
        try:
            yield kept
        except BaseException as error:  # Ctrl-C too
            if kept.found() and isinstance(error, UserError):
                progress.say(f"What is done is kept in {home.root}.")
            elif kept.found():
                progress.say(f"What is done is kept in {home.root}; the same command goes on from there.")
            else:
                kept.drop()
            raise
        kept.drop()
        if kept.others():
            progress.say(f"{home.root} still holds what another command left; remove it if nobody will go on from it")
