"""A search under an energy budget whose truth is known: the sensor is a replayed trace of constant power.

Everything is real but the power: the layers and whole networks are measured through the agent on this machine, with its power pass
and its sensor `replay`. As the power is constant, the energy of an inference is that power times its duration, so the applied
network's energy over the whole one's must be its latency over the whole one's, measured on its own. What the budget allowed, what
the table of layers foretold, what the sensor said and that truth are written side by side. `python studies/amc_energy.py --help`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgecompress.rundir import write_atomically

ROOT = Path(__file__).resolve().parent.parent
WATTS = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energy", type=float, default=0.6, help="fraction of the whole network's that is left")
    parser.add_argument(
        "--width", type=float, default=1.0, help="of a resnet20 with one block in each stage, on the digits"
    )
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4, help="of the training of the whole network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", type=Path, default=None, help="where measured layers are kept; default: the usual place"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "amc" / "energy")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        result = run(given, Path(folder))
    result["seconds"] = round(time.monotonic() - began, 1)
    write_atomically(given.out / "results.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))
    return 0


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from edgecompress.board.session import connect
    from edgecompress.compress import amc
    from edgecompress.compress.contract import Context, parse_params
    from edgecompress.data import load
    from edgecompress.models import build
    from edgecompress.on_device import DeviceBench
    from edgecompress.study import DataSpec, ModelSpec, TrainSpec
    from edgecompress.studyfile import read_device
    from edgecompress.train import fit

    trace = folder / "constant.csv"
    trace.write_text("seconds,watts\n" + "".join(f"{k / 100:.2f},{WATTS}\n" for k in range(1000)))
    update = {"sensor": "replay", "sensor_options": {"path": str(trace), "loop": True}}
    profile = read_device("local").model_copy(update=update)
    data = load(DataSpec(name="digits"), seed=0)
    spec = ModelSpec(name="resnet20", width=given.width, depth=0.34)
    model = build(spec, num_classes=10, in_shape=data.in_shape, seed=given.seed)
    fit(model, data, TrainSpec(epochs=given.epochs), seed=given.seed)
    whole = copy.deepcopy(model)
    wanted = {
        "energy": given.energy, "multiple": given.multiple, "episodes": given.episodes, "warmup": given.warmup,
        "baselines": ["uniform", "random"],
    }  # fmt: skip
    with connect(profile) as session:
        session.check_sensor()
        bench = DeviceBench(session, "onnx-fp32", cache=given.cache)
        context = Context(
            data=data, seed=given.seed, teacher=whole, scratch=folder / "scratch", benches=lambda device, form: bench
        )
        cut = amc.apply(model, parse_params("amc", wanted), context).eval()
        with bench.against(whole, data.in_shape) as against:
            truth = against(cut)
    found = context.notes["on_device"]
    summary = {
        "power": f"replayed trace of constant {WATTS} W: not a measured power",
        "asked": given.energy,
        "sensor_says": found["measured"],
        "latency_ratio": truth.ratio,
        "latency_low": truth.low,
        "latency_high": truth.high,
        "sensor_over_truth": None if found["measured"] is None else found["measured"] / truth.ratio,
        "table_errors_before_search": [s["error"] for s in found["whole_networks"] if s["evaluation"] == 0],
        "slope": found["slope"],
    }
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "cache")}
    return {"settings": settings, "summary": summary, "notes": context.notes}


if __name__ == "__main__":
    sys.exit(main())
