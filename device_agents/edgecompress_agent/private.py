"""Whether the agent's directory is its user's alone, and can be written. Another user of the board who may write there could have
this one run an agent of his own, or plant a symbolic link through which a file elsewhere is overwritten.

This file imports nothing of the package, and Python 3.6 understands it: the host sends its text to the board's Python before
anything else is copied there, also where `device setup` is to find a newer one.
"""

import json
import os
import pwd
import stat
import sys
from pathlib import Path
from shlex import quote
from typing import Optional

OURS = ("agent", "blobs", "jobs", "wheels", "venv")
"""What the agent, or the host for it, makes in the directory."""


def complaint(root: str, *, mend: bool = True) -> Optional[str]:
    """Why ROOT must not be used, with the command that mends it; None when it may be. What is not there yet may be.

    ROOT itself may be a symbolic link (to a larger disk); what is inside may not. mend: a group that may write is shut out,
    without a word: many systems give a new directory to a group that holds nobody else.
    """
    real = Path(root).expanduser().resolve()
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111 - raises nothing
    if real == home or real in home.parents:
        return "%s holds the user's other files as well: set workdir to a directory of the agent's own below it" % real
    for above in real.parents:
        why = _open_to_all(above)
        if why is not None:
            return why
    for path in [real] + [real / name for name in OURS]:
        why = directory(path, mend=mend)
        if why is not None:
            return why
    return None


def directory(path: Path, *, mend: bool = True) -> Optional[str]:
    """The same for one directory of the agent's."""
    try:
        found = path.lstat()
    except OSError:
        return None  # there is none, or the user cannot even look: whoever writes there is told so
    if stat.S_ISLNK(found.st_mode):
        return "%s is a symbolic link, and nothing of the agent's is: rm %s" % (path, path)
    if not stat.S_ISDIR(found.st_mode):
        return "%s is not a directory: mv %s %s.old, or set another workdir" % (path, path, path)
    if found.st_uid != os.geteuid():
        return "%s belongs to another user (uid %d): set workdir to a directory of your own" % (path, found.st_uid)
    if found.st_mode & stat.S_IWOTH and found.st_mode & stat.S_ISVTX:  # as /tmp, which others need as it is
        return (
            "every user there may write to %s (mode %04o), so nothing in it can be trusted: set workdir to a directory of "
            "your own" % (path, stat.S_IMODE(found.st_mode))
        )
    if found.st_mode & stat.S_IWOTH:
        return (
            "every user there may write to %s (mode %04o), so nothing in it can be trusted: chmod -R go-w %s when you know "
            "every file in it, or set another workdir" % (path, stat.S_IMODE(found.st_mode), path)
        )
    if mend and found.st_mode & stat.S_IWGRP:
        path.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IWGRP)
    return None


def _open_to_all(path: Path) -> Optional[str]:
    """Of a directory above: whoever may write there may put another one in our directory's place, unless it is sticky."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None  # it will be made, or cannot be entered
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return "every user there may rename what is in %s (mode %04o): chmod o-w %s" % (path, stat.S_IMODE(mode), path)
    return None


def unwritable(root: str) -> Optional[str]:
    """Why ROOT cannot be made or written to, as far as that is seen without trying, with the command that mends it."""
    path = Path(root).expanduser().absolute()
    nearest = path
    while not os.path.lexists(str(nearest)) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(str(nearest)):  # noqa: PTH112 - raises nothing
        return "%s cannot be made: %s is not a directory: mv %s %s.old, or set another workdir" % (
            path, nearest, quote(str(nearest)), quote(str(nearest)),
        )  # fmt: skip
    what = "%s cannot be %s" % (path, "written to" if nearest == path else "made")
    user = _user()
    if _read_only(nearest):
        mount = "$(df --output=target %s | tail -1)" % quote(str(nearest))
        return "%s, as its file system is mounted read-only: sudo mount -o remount,rw %s, or set another workdir" % (
            what,
            mount,
        )
    if os.access(str(nearest), os.W_OK | os.X_OK):
        return None
    if nearest == path:
        return "%s by %s: chmod u+rwx %s, or set another workdir" % (what, user, quote(str(path)))
    make = "sudo install -d -m 700 -o %s %s" % (quote(user), quote(str(path)))
    return "%s, as %s may not write to %s: %s, or set another workdir" % (what, user, nearest, make)


def _read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(str(path)).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


if __name__ == "__main__":
    why = complaint(sys.argv[1], mend="look" not in sys.argv[2:]) or unwritable(sys.argv[1])
    sys.stdout.write(json.dumps({"complaint": why}) + "\n")
