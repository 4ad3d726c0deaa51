"""ResNet-20 under a latency budget of 50 % on this machine, beside the policy of a MACs budget that comes to the same latency.

One search under the latency budget (ONNX Runtime, one thread), whose network is then measured once more by a bench of its own.
Then searches under MACs budgets, each corrected by the latency that the one before came to, until two networks are equally fast;
both are fine-tuned by the same training and compared on the test images. A finished part is a file under --state: the same command
goes on. `python studies/amc_latency.py --help`. The machine should do nothing else while latencies are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from typing import Any

from amc_parts import Parts
from cifar_resnet56 import IN_SHAPE, ROOT, files_are_there, parser_of

from edgecompress import stats
from edgecompress.board.session import connect
from edgecompress.on_device import DeviceBench
from edgecompress.rundir import write_atomically
from edgecompress.studyfile import read_device

FORMAT = "onnx-fp32"
EQUAL = 0.02
"""Two networks whose latencies differ by less, as a fraction of the whole one's latency, are called equally fast."""
CORRECTIONS = 4
_SEARCH = ("model", "latency", "multiple", "episodes", "warmup", "images", "fit", "lower", "which", "unspent")
_TRAINING = (*_SEARCH, "epochs", "lr")


def main() -> int:
    parser = parser_of("amc_latency", __doc__)
    weights = parser.get_default("weights")
    parser.set_defaults(weights=None, out=ROOT / "docs" / "results" / "amc" / "latency")
    parser.add_argument("--model", default="resnet20", help="of the zoo, for CIFAR images")
    parser.add_argument("--latency", type=float, default=0.5, help="fraction of the whole network's that is left")
    parser.add_argument("--multiple", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--fit", type=int, default=500)
    parser.add_argument("--lower", type=float, default=0.2)
    parser.add_argument("--which", default="all", choices=("inner", "stream", "all"))
    parser.add_argument("--unspent", default="left", choices=("left", "spread"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.weights = given.weights or weights.with_name(f"{given.model}.safetensors")
    if not files_are_there(given):
        return 2
    import torch

    torch.set_num_threads(given.threads)
    result = _run(Parts(given), given)
    if result is None:
        return 1
    write_atomically(given.out / "results.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))
    return 0


def _run(study: Parts, given: argparse.Namespace) -> dict[str, Any] | None:
    asked = study.settings(("multiple", "episodes", "warmup", "images", "fit", "lower", "which", "unspent"))
    with connect(read_device("local")) as session:
        bench = DeviceBench(session, FORMAT, threads=1)

        def search(name: str, budget: dict[str, float]) -> dict[str, Any]:
            wanted = {**asked, **budget, "baselines": []}
            if "latency" in budget:
                wanted["format"] = FORMAT
            found = study.search(given.seed, name, wanted, lambda device, form: bench)
            cut, _ = study.cut(name, given.seed, found["strategies"]["amc"]["best"]["policy"])
            with bench.against(study.model(), IN_SHAPE) as against:
                return {**found, "asked": budget, "latency": dataclasses.asdict(against(cut.eval()))}

        by_latency = study.part("latency", partial(search, "latency", {"latency": given.latency}), _SEARCH)
        if by_latency is None:
            return None
        wanted, by_macs = by_latency["latency"]["ratio"], []
        share = wanted
        for number in range(CORRECTIONS):
            name = f"macs-{number}"
            made = study.part(name, partial(search, name, {"macs": round(share, 4)}), _SEARCH)
            if made is None:
                return None
            by_macs.append(made)
            if abs(made["latency"]["ratio"] - wanted) < EQUAL:
                break
            share = min(max(share * wanted / made["latency"]["ratio"], 0.05), 0.95)
    nearest = min(by_macs, key=lambda one: abs(one["latency"]["ratio"] - wanted))
    scored = {}
    for name, found in (("latency", by_latency), ("macs", nearest)):
        keep = found["strategies"]["amc"]["best"]["policy"]
        pruned = study.part(f"{name}-pruned", partial(study.prune, f"{name}-pruned", given.seed, keep), _SEARCH)
        tuned = study.part(
            f"{name}-tuned", partial(study.tune, f"{name}-tuned", given.seed, keep, [given.epochs], given.lr), _TRAINING
        )
        if pruned is None or tuned is None:
            return None
        scored[name] = {"pruned": pruned, "tuned": tuned}
    dense = study.part("dense", study.dense, ("model",))
    assert dense is not None
    summary = _summary(given, by_latency, nearest, scored, dense)
    return {
        "settings": study.settings(_TRAINING),
        "summary": summary,
        "latency": by_latency,
        "macs": by_macs,
        "scored": scored,
    }


def _summary(
    given: argparse.Namespace, by_latency: dict[str, Any], by_macs: dict[str, Any], scored: Any, dense: Any
) -> dict[str, Any]:
    test = stats.mcnemar(scored["macs"]["tuned"]["correct"], scored["latency"]["tuned"]["correct"])
    ratio = by_latency["latency"]["ratio"]
    return {
        "asked": given.latency,
        "measured_after": {k: by_latency["latency"][k] for k in ("ratio", "low", "high", "dense_ms", "candidate_ms")},
        "off_by": ratio / given.latency - 1,
        "table_errors": [s["error"] for s in by_latency["on_device"]["whole_networks"] if s["evaluation"] == 0],
        "macs_budget": by_macs["asked"]["macs"],
        "macs_policy_latency": {k: by_macs["latency"][k] for k in ("ratio", "low", "high")},
        "macs_left": {name: scored[name]["pruned"]["macs_left"] for name in scored},
        "top1": {
            "dense": dense["top1"],
            **{name: [scored[name]["pruned"]["top1"], scored[name]["tuned"]["top1"]] for name in scored},
        },
        "latency_minus_macs_points": [100 * test.difference, 100 * test.low, 100 * test.high],
        "p": test.p,
    }


if __name__ == "__main__":
    sys.exit(main())
