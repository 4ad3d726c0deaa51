"""Programs that stand where a board's own tools stand: real processes that print what they are told to."""

from __future__ import annotations

import sys
from pathlib import Path


def put(directory: Path, name: str, body: str) -> Path:
    """An executable `name` in the directory: Python, with `say(line)` that prints and flushes, and `asked`, its arguments."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(
        f"#!{sys.executable} -IS\nimport os, signal, sys, time\nasked = sys.argv[1:]\n"
        f"def say(line):\n    print(line, flush=True)\n{body}\n"
    )
    program.chmod(0o755)
    return program
