"""Where this agent is: the one file that it runs from, by which it starts itself again in another process."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import zipfile
from pathlib import Path
from typing import List

from edgecompress_agent import store
from edgecompress_agent.errors import AgentError


@functools.lru_cache(maxsize=None)
def path() -> Path:
    """The zipapp. AgentError when the package was started in another way: its processes would not find it again."""
    file = Path(sys.argv[0])
    if not (file.is_file() and zipfile.is_zipfile(str(file))):
        raise AgentError("the agent runs from its zipapp only: python3 agent.pyz VERB …")
    return file.absolute()


def used() -> None:
    """Mark this agent as used now, so that `prune` keeps it."""
    with contextlib.suppress(OSError):  # another user's, or a disk that cannot be written
        os.utime(path())


@functools.lru_cache(maxsize=None)
def sha256() -> str:
    return store.sha256_of(path())


def command(*arguments: str) -> List[str]:
    """The command line of another process of this agent. Without -I, which the verbs run under: engines that were installed
    with `pip install --user` are then found. The zipapp comes first in its path in any case, the current directory never.
    """
    return [sys.executable, os.fspath(path()), *arguments]
