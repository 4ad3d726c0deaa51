"""Why a file may not be opened, and which group would let the user in: nothing here asks for root."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path


def refused(path: str, usual_group: str) -> str:
    """The sentence for a PermissionError on a device file: whose it is, and what to do."""
    user = _user()
    try:
        found = Path(path).stat()
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        found, group = None, usual_group
    if found is not None and (group == "root" or not found.st_mode & stat.S_IRGRP):
        return (
            f"no permission on {path}: it belongs to root alone, and no group may read it. Give it to the group {usual_group} by a "
            f"udev rule, and add {user} to that group: sudo usermod -aG {usual_group} {user}"
        )
    return (
        f"no permission on {path}: it belongs to the group {group}, and {user} is not in it. "
        f"sudo usermod -aG {group} {user}, then log in again"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
