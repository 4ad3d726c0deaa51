"""What small networks cost on a device, one job each: measured once, kept under everything that the figure depends on.

A table of layers is made of them. Each figure is kept as soon as it is there, so that a device that fails in the middle, or a
kill, costs one figure.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.progress import Progress
from edgecompress.rundir import content_key, write_atomically

if TYPE_CHECKING:
    from edgecompress.compress.contract import Resource, Small
    from edgecompress.on_device import DeviceBench

FORMAT_VERSION = 1
ROUNDS = {"latency": 2, "energy": 1}
"""How often each is measured: all of them once, forwards, then all of them backwards. Of latencies the least counts."""
_LATENCY_S = 0.15


def measured(
    bench: DeviceBench, what: Resource, networks: Mapping[str, Small], folder: Path, progress: Progress
) -> dict[str, float]:
    """See `Bench.small`. folder: where the figures are kept."""
    identity = {"version": FORMAT_VERSION, "what": what, **bench.identity()}
    path = folder / f"{content_key(identity)}.json"
    known = _kept(path, identity)
    rounds, label = ROUNDS[what], f"{what} of {len(networks)} layers on {bench.profile.name}"
    missing = sum(max(0, rounds - len(known.get(name, ()))) for name in networks)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as scratch, progress.task(label, total=missing) as task:
        files: dict[str, Path] = {}
        for number in range(rounds) if missing else ():
            for name in sorted(networks, reverse=number % 2 == 1):
                if len(known.get(name, ())) > number:
                    continue
                if name not in files:
                    model, in_shape = networks[name]()
                    files[name] = bench.export(model, in_shape, Path(scratch), f"layer-{len(files)}")
                file = files[name]
                value = bench.latency_ms(file, _LATENCY_S) if what == "latency" else bench.file_energy_mj(file)
                known.setdefault(name, []).append(value)
                write_atomically(path, json.dumps({"identity": identity, "measured": known}, indent=1) + "\n")
                task.advance()
    return {name: min(known[name][:rounds]) for name in networks}


def _kept(path: Path, identity: dict[str, Any]) -> dict[str, list[float]]:
    """Figures of an earlier time; none where the file is not what it should be."""
    try:
        found = json.loads(path.read_text())
        if found["identity"] != json.loads(json.dumps(identity)):
            return {}
        return {str(name): [float(v) for v in values if v > 0] for name, values in found["measured"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
