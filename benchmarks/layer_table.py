"""How well a device budget of `amc` foretells whole networks from layers measured alone, from nearly whole to a quarter.

    python benchmarks/layer_table.py [--model resnet20] [--format onnx-fp32] [--multiple 8] [--json FILE]

The table of layers and the whole networks before a search under a latency budget of 0.5, as `amc` measures them on this
machine (one thread, batch 1); then networks that keep the same fraction everywhere are measured, all unseen. Of each:
its latency over the whole network's, and what the table says: its plain sum, the sum times a factor (the median of measured over
predicted of three), and what `amc` takes, a line through the whole network. Weights are random: only how long it takes counts.
Layers are kept in a folder of their own for this run, so all is measured anew: five minutes.

Exit status 1 when what `amc` takes is off by more than LIMIT of the whole network's latency in the median, 3 when a ratio's 95 %
interval is wider than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from edgecompress import models
from edgecompress.board.session import connect
from edgecompress.compress.amc.applying import _environment
from edgecompress.compress.amc.measuring import DeviceBudget
from edgecompress.compress.amc.spaces import ChannelSpace
from edgecompress.compress.contract import Context, parse_params
from edgecompress.on_device import DeviceBench
from edgecompress.study import ModelSpec
from edgecompress.studyfile import read_device

IN_SHAPE = (3, 32, 32)
KEPT = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
LIMIT = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="of the zoo, for CIFAR images")
    parser.add_argument("--format", default="onnx-fp32")
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        result = measure(given, Path(folder))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    off = {how: [abs(row[how] - row["measured"]) for row in result["networks"]] for how in ("sum", "factor", "line")}
    for how, values in off.items():
        print(f"{how}: off by {statistics.median(values):.3f} in the median, {max(values):.3f} at most")
    if statistics.median(off["line"]) <= LIMIT:
        return 0
    return 3 if any(row["high"] - row["low"] > LIMIT for row in result["networks"]) else 1


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = models.build(ModelSpec(name=given.model), num_classes=10, in_shape=IN_SHAPE, seed=0).eval()
    params = parse_params(
        "amc",
        {"latency": 0.5, "multiple": given.multiple, "format": given.format, "which": "all", "unspent": "spread"},
    )
    rows = []
    with connect(read_device("local")) as session:
        bench = DeviceBench(session, given.format, threads=1, cache=folder / "cache")
        context = Context(data=None, seed=0, teacher=model, scratch=folder, benches=lambda device, form: bench)
        space = ChannelSpace(model, params, context, given.multiple)
        budget = DeviceBudget(space, params, context)
        env = _environment(space, params, budget)
        budget.probe(env, lambda: None)
        seen = [s for s in budget.cost.seen if s.units != budget.cost.least]
        factor = statistics.median(s.measured / s.predicted for s in seen)
        print(f"before a search: {[(round(s.predicted, 3), round(s.measured, 3)) for s in seen]}")
        print(f"factor {factor:.3f}, slope {budget.cost.slope:.3f}")
        print("kept, MACs, measured [95 %]: sum, times the factor, on the line")
        whole = space.costs["macs"]([1.0] * len(space.choices))
        for kept in KEPT:
            units = env.evenly(kept)
            keep = env.ratios(units)
            with bench.against(model, IN_SHAPE) as against:
                ratio = against(space.candidate(units))
            summed = budget.cost.predicted(keep)
            rows.append(
                {
                    "kept": kept, "macs": space.costs["macs"](keep) / whole, "measured": ratio.ratio, "low": ratio.low,
                    "high": ratio.high, "sum": summed, "factor": factor * summed, "line": budget.cost(keep),
                }
            )  # fmt: skip
            print(
                f"{kept:.2f} {rows[-1]['macs']:.3f} {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]: "
                f"{summed:.3f}, {factor * summed:.3f}, {rows[-1]['line']:.3f}",
                flush=True,
            )
    probes = [{"predicted": s.predicted, "measured": s.measured} for s in seen]
    return {
        "model": given.model, "format": given.format, "multiple": given.multiple, "before": probes, "factor": factor,
        "slope": budget.cost.slope, "networks": rows,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
