"""ResNet-56 at half the MACs: our channels against Torch-Pruning's plain group magnitude, the same fine-tuning for both.

Each way of pruning is applied to the same weights, scored on the test images, fine-tuned by edgecompress's own training (same
images, epochs, learning rates, seeds) and scored again. A finished training is a file under --state: the same command goes
on from there. `python studies/channels_resnet56.py --help`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from edgecompress import stats
from edgecompress.errors import StepFailed
from edgecompress.rundir import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PEER = "torch-pruning"
IN_SHAPE = (3, 32, 32)
OURS: dict[str, dict[str, Any]] = {
    "l1": {"importance": "l1"},
    "l2": {"importance": "l2"},
    "l1-fold": {"importance": "l1", "fold": True},
    "l2-fold": {"importance": "l2", "fold": True},
    "lap": {"importance": "lap"},
    "taylor": {"importance": "taylor"},
    "bn_scale": {"importance": "bn_scale"},
    "l2-all": {"importance": "l2", "which": "all"},
    "lap-all": {"importance": "lap", "which": "all"},
}
"""Name → parameters of the method, beside the budget and the multiple that all share."""


def main() -> int:
    root = Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=root / "weights" / "resnet56.safetensors")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("CIFAR10_50K", root / "cifar10.npz")),
        help="cifar10.npz, as full_train.py or unpack.py of the real data make it; default: $CIFAR10_50K",
    )  # fmt: skip
    parser.add_argument(
        "--ways", nargs="+", default=[PEER, "l1", "lap", "taylor"], choices=[PEER, *OURS], metavar="WAY"
    )
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the multiply-accumulates that is left")
    parser.add_argument("--multiple", type=int, default=8, help="of the widths, for all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after this time")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "channels_resnet56")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "pruning" / "channels_resnet56")
    given = parser.parse_args()
    for file in (given.data, given.weights):
        if not file.is_file():
            print(f"no such file: {file}; see studies/README.md, or give --data and --weights", file=sys.stderr)
            return 2
    import torch

    torch.set_num_threads(given.threads)
    settings = {k: getattr(given, k) for k in ("macs", "multiple", "epochs", "lr")}
    began, found = time.monotonic(), []
    for seed in range(given.seeds):
        for way in given.ways:
            file = given.state / f"{way}-{seed}.json"
            if not file.exists():
                if time.monotonic() - began > 60 * given.minutes:
                    continue
                result = {"way": way, "seed": seed, "settings": settings, **_run(way, seed, given)}
                write_atomically(file, json.dumps(result, indent=1) + "\n")
            result = json.loads(file.read_text())
            if result["settings"] != settings:
                print(f"{file} is of other settings: {result['settings']}; give another --state", file=sys.stderr)
                return 2
            found.append(result)
            print(line(result), flush=True)
    write_atomically(
        given.out / "results.json", json.dumps({"settings": settings, "trainings": found}, indent=1) + "\n"
    )
    write_atomically(given.out / "table.md", table(found))
    print(table(found))
    return 0


def _run(way: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    from edgecompress import cost
    from edgecompress.compress import channels
    from edgecompress.compress.contract import Context, parse_params
    from edgecompress.data import load
    from edgecompress.evaluate import accuracy
    from edgecompress.models import build
    from edgecompress.study import DataSpec, ModelSpec, TrainSpec

    data = load(
        DataSpec(
            name="npz", path=given.data, val_fraction=0.01, augment="crop-flip",
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        seed=0,
    )  # fmt: skip
    model = build(ModelSpec(name="resnet56", weights=given.weights), num_classes=10, in_shape=IN_SHAPE).eval()
    dense, whole = accuracy(model, data), cost.count(model, IN_SHAPE)
    context = Context(
        data=data, seed=seed, teacher=copy.deepcopy(model), scratch=given.state / "checkpoints" / f"{way}-{seed}"
    )
    began = time.monotonic()
    if way == PEER:
        model, facts = plain_group_magnitude(model, given.macs, given.multiple)
    else:
        wanted = {"macs": given.macs, "multiple": given.multiple, **OURS[way]}
        model = channels.apply(model, parse_params("channels", wanted), context)
        facts = dict(context.notes)
    seconds = time.monotonic() - began
    pruned = accuracy(model, data)
    spec = TrainSpec(epochs=given.epochs, lr=given.lr, weight_decay=1e-4)
    context.train(model, spec, method="channels")
    tuned, left = accuracy(model, data), cost.count(model, IN_SHAPE)
    return {
        "facts": facts,
        "macs_left": left.macs / whole.macs,
        "params_left": left.params / whole.params,
        "pruning_seconds": seconds,
        "top1": {"dense": dense.top1, "pruned": pruned.top1, "tuned": tuned.top1},
        "correct": {"dense": dense.correct, "tuned": tuned.correct},
        "training": [dataclasses.asdict(record) for record in context.trainings],
        "widths": [m.out_channels for m in model.modules() if hasattr(m, "out_channels") and hasattr(m, "kernel_size")],
    }


def plain_group_magnitude(model: Any, macs: float, multiple: int) -> tuple[Any, dict[str, Any]]:
    """The model cut by Torch-Pruning's GroupMagnitudeImportance, global, at the ratio that comes nearest to the MACs.

    By itself Torch-Pruning takes the padding of the option A shortcut for an element-wise operation and leaves a network that
    does not run; the shortcut is told to it as a layer with two sides, which is the one thing that is added to the peer.
    """
    import torch
    import torch_pruning

    from edgecompress import cost
    from edgecompress.models.resnet import Shortcut

    class BothSides(torch_pruning.pruner.function.BasePruningFunc):  # type: ignore[misc,name-defined]
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            kept = [k for k in range(layer.out_channels) if k not in set(idxs)]
            layer.narrow(None, torch.tensor(kept), torch.device("cpu"))
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            kept = [k for k in range(layer.in_channels) if k not in set(idxs)]
            layer.narrow(torch.tensor(kept), None, torch.device("cpu"))
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.out_channels)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.in_channels)

    whole = cost.count(model, IN_SHAPE).macs

    def at(ratio: float) -> tuple[Any, float]:
        cut = copy.deepcopy(model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            cut, torch.zeros(1, *IN_SHAPE), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True, pruning_ratio=ratio, round_to=multiple, ignored_layers=[cut.linear],
            customized_pruners={Shortcut: BothSides()},
        )  # fmt: skip
        pruner.step()
        return cut, cost.count(cut, IN_SHAPE).macs / whole

    low, high, tried = 0.0, 1.0, []
    for _ in range(12):
        ratio = (low + high) / 2
        cut, left = at(ratio)
        tried.append((abs(left / macs - 1), ratio, left, cut))
        if left > macs:
            low = ratio
        else:
            high = ratio
    miss, ratio, left, cut = min(tried, key=lambda t: t[0])
    if miss > 0.05:
        raise StepFailed(f"Torch-Pruning comes no nearer to {macs:g} of the MACs than {left:.3f}")
    return cut.eval(), {"pruning_ratio": ratio, "torch_pruning": metadata.version("torch-pruning")}


def line(result: dict[str, Any]) -> str:
    top1 = result["top1"]
    return (
        f"{result['way']} seed {result['seed']}: MACs {result['macs_left']:.3f}, parameters {result['params_left']:.3f}, "
        f"top-1 {100 * top1['dense']:.2f} → {100 * top1['pruned']:.2f} → {100 * top1['tuned']:.2f} %"
    )


def table(found: list[dict[str, Any]]) -> str:
    """The trainings as Markdown, each beside the peer's of the same seed: difference, its interval, and McNemar's p (Holm)."""
    peers = {r["seed"]: r for r in found if r["way"] == PEER}
    others = [r for r in found if r["way"] != PEER and r["seed"] in peers]
    tests = [stats.mcnemar(peers[r["seed"]]["correct"]["tuned"], r["correct"]["tuned"]) for r in others]
    adjusted = stats.holm([test.p for test in tests]) if tests else []
    compared = {id(r): (test, p) for r, test, p in zip(others, tests, adjusted, strict=True)}
    lines = [
        "| way | seed | MACs left | parameters left | top-1 % dense → pruned → tuned | against the peer [95 %] | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        top1 = r["top1"]
        cells = [
            r["way"], str(r["seed"]), f"{r['macs_left']:.3f}", f"{r['params_left']:.3f}",
            " → ".join(f"{100 * top1[k]:.2f}" for k in ("dense", "pruned", "tuned")),
        ]  # fmt: skip
        if id(r) in compared:
            test, p = compared[id(r)]
            cells += [
                f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]",
                f"{p:.3g}",
            ]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
