"""Run one study of this folder with its options, or all of them with their defaults: `make study`. Exit status 1: one failed.

A study is a file here that says what it is in its docstring and ends in `if __name__ == "__main__"`; the others are parts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """The studies of this folder, in order."""
    files = sorted(file for file in HERE.glob("*.py") if file.name != Path(__file__).name)
    return [file.stem for file in files if 'if __name__ == "__main__"' in file.read_text()]


def main(arguments: list[str]) -> int:
    known = names()
    if arguments and arguments[0] not in known:
        print(f"no study {arguments[0]!r} here. There are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen, options = ([arguments[0]], arguments[1:]) if arguments else (known, [])
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False).returncode:
            failed.append(name)
    for name in failed:
        print(f"{name}: not finished; the same command goes on from where it is", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
