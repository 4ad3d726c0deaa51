"""Run every benchmark of this folder, one after the other: `make bench`. Exit status 1 when one missed its limit.

A benchmark is a file here that ends in `if __name__ == "__main__"`; the others are parts. Its exit status: 0 within its limit, 1
above it, 3 when the machine was too noisy to tell.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERDICTS = {0: "within its limit", 1: "MISSED its limit", 3: "could not be told: the machine was too noisy"}


def main() -> int:
    verdicts = {}
    for file in sorted(HERE.glob("*.py")):
        if file.name == Path(__file__).name or 'if __name__ == "__main__"' not in file.read_text():
            continue
        print(f"== {file.stem}", flush=True)
        verdicts[file.stem] = subprocess.run([sys.executable, str(file)], check=False).returncode
    for name, status in verdicts.items():
        print(f"{name}: {VERDICTS.get(status, f'failed with exit status {status}')}")
    return int(any(status not in (0, 3) for status in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
