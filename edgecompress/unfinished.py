"""What `compress` keeps until it is done, in OUT.unfinished beside its OUT: checkpoints, of each request under its own key.

A key is that of the same model in a study (`edgecompress.plan`): another model, data, step, seed, device or code has another
one, so that what one request left is never another one's beginning. Only the training before the steps is common to all
requests that train alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecompress.errors import UserError
from edgecompress.progress import Progress
from edgecompress.rundir import RunDir


class Unfinished:
    """The checkpoints of one request. training, steps: folders for those of the training before the steps, and of the steps."""

    def __init__(self, home: RunDir, training_key: str, steps_key: str) -> None:
        self._home, self._training_key, self._steps_key = home, training_key, steps_key
        self.training, self.steps = home.path("scratch", training_key), home.path("scratch", steps_key)

    @property
    def saving(self) -> bool:
        """Whether OUT may hold a part of this request's own result: the saving was begun, and not ended."""
        return self._saving.exists()

    def begin_saving(self) -> None:
        """OUT is this request's from now on: what others had begun to save there is not in it any more."""
        for other in self._home.path("scratch").glob("*/saving"):
            other.unlink()
        self.steps.mkdir(parents=True, exist_ok=True)
        self._saving.touch()

    @property
    def _saving(self) -> Path:
        return self.steps / "saving"

    def found(self) -> bool:
        """Whether there is anything to go on from."""
        return any(_files(self.training)) or any(_files(self.steps))

    def others(self) -> bool:
        """Whether another request has left something."""
        scratch = self._home.path("scratch")
        folders = scratch.iterdir() if scratch.is_dir() else ()
        return any(any(_files(folder)) for folder in folders if folder not in (self.training, self.steps))

    def drop(self) -> None:
        """Remove what is this request's; with it the folder, where nothing else is in it."""
        self._home.drop_scratch(self._steps_key)
        if self.others():
            return  # the training may be theirs, too
        shutil.rmtree(self._home.path("scratch"), ignore_errors=True)
        self._home.path("lock").unlink(missing_ok=True)
        with suppress(OSError):  # files of somebody's own are in it
            self._home.root.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    """Files that are whole."""
    return (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial")


def folder_beside(out: Path) -> Path:
    whole = out if out.name not in ("", "..") else out.resolve()
    if not whole.name:
        raise UserError("nothing can be made beside it", where=f"--out {out}", fix="Name a new directory.")
    return whole.with_name(f"{whole.name}.unfinished")


@contextmanager
def unfinished(out: Path, training_key: str, steps_key: str, progress: Progress) -> Iterator[Unfinished]:
    """The checkpoints of a request that makes `out`, held for this process. They go when the block ends well; where it does not,
    what is there stays, and it is said where. UserError: another process holds the folder, or it is something else."""
    home = RunDir(folder_beside(out))
    with home.locked():
        kept = Unfinished(home, training_key, steps_key)
        if kept.found():
            progress.say(f"goes on from what is kept in {home.root}")
        elif kept.others():
            progress.say(f"{home.root} holds what another command left: that stays as it is, and this one begins anew")
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
