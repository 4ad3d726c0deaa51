"""A hostile board: a program that stands where its Python should be, answers what the host expects to hear, and then attacks.

Started by a real sshd, as `python` of a device profile. `attack` is Python source that runs when a job is started; it knows `job`
(the job's directory), `result` (the file in it) and `outside` (a directory that is none of its business).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgecompress_agent import wire

_BOARD = """#!{python}
import json, os, sys
arguments, outside = sys.argv[1:], {outside!r}

def say(answer):
    print(json.dumps(answer), flush=True)
    sys.exit(0)

if arguments[1] == "-c":
    say({{"complaint": None}})
path, verb, root, *rest = arguments[1:]
job = root + "/jobs/" + (rest[0] if rest else "")
result = job + "/result.json"
if verb == "hello":
    say({{**json.loads({hello!r}), "agent_sha256": os.path.basename(path)[:-4]}})
if verb == "have":
    say(json.load(sys.stdin))
if verb == "prune":
    say({{"removed": 0, "bytes": 0}})
if verb == "start":
    exec({attack!r})
    say({{"state": "done"}})
if verb == "clean":
    say({{"removed": True}})
say({{"state": "absent"}})
"""


def hello() -> dict[str, Any]:
    """What a healthy board answers."""
    conditions = wire.Conditions(
        "hello", 1, None, None, 4, "aarch64", "6.1", None, "3.11.2", None, None, None, None, None, None, None, None, None
    )  # fmt: skip
    engines = {name: wire.EngineFound("1.0", name, None, ("CPUExecutionProvider",)) for name in wire.ENGINES}
    value: dict[str, Any] = wire.to_json(
        wire.Hello("0" * 64, "3.11.2", "aarch64", "2.0", engines, conditions, True, 10**10)
    )
    return value


def board(file: Path, attack: str, outside: Path) -> Path:
    """The program."""
    text = _BOARD.format(python=sys.executable, outside=str(outside), hello=json.dumps(hello()), attack=attack)
    file.write_text(text)
    file.chmod(0o755)
    return file
