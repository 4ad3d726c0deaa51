"""How far a job is. Written between its phases only, never inside a timed one: `status` counts on by the clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Optional

from edgecompress_agent import outcome, store
from edgecompress_agent.wire import Status

FILE = "progress.json"


def write(
    directory: Path,
    phase: str,
    *,
    done_s: float = 0.0,
    phase_s: float = 0.0,
    total_s: Optional[float] = None,
    quiet: bool = False,
) -> None:
    """A phase begins now. done_s: what all earlier ones took or stood for, phase_s: expected of this one, total_s: of all.
    quiet: whoever asks how it stands would disturb it, and is told for how long to leave it alone."""
    value = {
        "phase": phase, "at_s": time.monotonic(), "done_s": done_s, "phase_s": phase_s, "total_s": total_s, "quiet": quiet
    }  # fmt: skip
    with outcome.unless_full():  # progress is no result
        store.write(directory / FILE, json.dumps(value).encode(), durable=False)


def read(directory: Path) -> Status:
    """The state of a job whose supervisor lives."""
    try:
        value = json.loads((directory / FILE).read_bytes())
    except FileNotFoundError:
        return Status("running", phase="starting")
    state = "waiting" if value["phase"] == "waiting" else "running"
    if value["total_s"] is None:
        return Status(state, phase=value["phase"])
    # CLOCK_MONOTONIC is one clock for all processes of a boot
    elapsed = min(max(0.0, time.monotonic() - value["at_s"]), value["phase_s"])
    done, total = value["done_s"] + elapsed, max(value["total_s"], 1e-9)
    return Status(
        state,
        phase=value["phase"],
        fraction=min(done / total, 1.0),
        seconds_left=max(total - done, 0.0),
        quiet_s=value["phase_s"] - elapsed if value["quiet"] else None,
    )
