"""What the studies of a pruned ResNet-56 on CIFAR-10 share: options, images, weights, one fine-tuning for all ways of pruning.

Each way is applied to the same weights, scored on the test images, fine-tuned by edgecompress's own training (same images,
epochs, learning rates, seeds) and scored again. A finished training is a file under --state.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import cost, stats
from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.contract import Context
    from edgecompress.data import Dataset

ROOT = Path(__file__).resolve().parent.parent
IN_SHAPE = (3, 32, 32)
RESULTS = ROOT / "docs" / "results" / "pruning"

Way = Callable[["nn.Module", "Context"], "tuple[nn.Module, dict[str, Any]]"]
"""Prunes the model, without training; gives back the model and what is to be known of it as plain JSON."""

Training = dict[str, Any]


def parser_of(study: str, description: str | None) -> argparse.ArgumentParser:
    """The options that these studies have in common."""
    root = Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=root / "weights" / "resnet56.safetensors")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("CIFAR10_50K", root / "cifar10.npz")),
        help="cifar10.npz, as full_train.py or unpack.py of the real data make it; default: $CIFAR10_50K",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no training after this time")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / study)
    parser.add_argument("--out", type=Path, default=RESULTS / study)
    return parser


def files_are_there(given: argparse.Namespace) -> bool:
    """Whether images and weights are; if not, it is said on the terminal."""
    missing = [file for file in (given.data, given.weights) if not file.is_file()]
    for file in missing:
        print(f"no such file: {file}; see studies/README.md, or give --data and --weights", file=sys.stderr)
    return not missing


def dataset(given: argparse.Namespace, val_fraction: float = 0.01) -> Dataset:
    """The images, one in a hundred of the training part for validation unless told otherwise."""
    from edgecompress.data import load
    from edgecompress.study import DataSpec

    spec = DataSpec(
        name="npz", path=given.data, val_fraction=val_fraction, augment="crop-flip",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    return load(spec, seed=0)


def network(given: argparse.Namespace, name: str = "resnet56") -> nn.Module:
    from edgecompress.models import build
    from edgecompress.study import ModelSpec

    return build(ModelSpec(name=name, weights=given.weights), num_classes=10, in_shape=IN_SHAPE).eval()


def trainings(
    ways: Mapping[str, Way], given: argparse.Namespace, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[Training]] | None:
    """Every way with every seed, those done before from their files; None, and why on the terminal, when that cannot be.

    settings: what, beside the epochs and the learning rate, all trainings of a state have in common.
    """
    if not files_are_there(given):
        return None
    import torch

    torch.set_num_threads(given.threads)
    settings = {**settings, "epochs": given.epochs, "lr": given.lr}
    began, found = time.monotonic(), []
    for seed in range(given.seeds):
        for name, way in ways.items():
            file = given.state / f"{name}-{seed}.json"
            if not file.exists():
                if time.monotonic() - began > 60 * given.minutes:
                    continue
                result = {"way": name, "seed": seed, "settings": settings, **_train(name, way, seed, given)}
                write_atomically(file, json.dumps(result, indent=1) + "\n")
            result = json.loads(file.read_text())
            if result["settings"] != settings:
                print(f"{file} is of other settings: {result['settings']}; give another --state", file=sys.stderr)
                return None
            found.append(result)
            print(line(result), flush=True)
    return settings, found


def _train(name: str, way: Way, seed: int, given: argparse.Namespace) -> Training:
    from edgecompress import masks
    from edgecompress.compress.contract import Context
    from edgecompress.evaluate import accuracy
    from edgecompress.study import TrainSpec

    data, model = dataset(given), network(given)
    dense, whole = accuracy(model, data), cost.count(model, IN_SHAPE)
    context = Context(
        data=data, seed=seed, teacher=copy.deepcopy(model), scratch=given.state / "checkpoints" / f"{name}-{seed}"
    )
    began = time.monotonic()
    model, facts = way(model, context)
    seconds = time.monotonic() - began
    pruned, zeros = accuracy(model, data), sum(int((~mask).sum()) for mask in masks.get(model).values())
    spec = TrainSpec(epochs=given.epochs, lr=given.lr, weight_decay=1e-4)
    context.train(model, spec, method=name)
    tuned, left = accuracy(model, data), cost.count(model, IN_SHAPE)
    return {
        "facts": facts,
        "macs_left": left.macs / whole.macs,
        "params_left": left.params / whole.params,
        "nonzero_left": left.nonzero_params / whole.params,
        "masked_weights": zeros,
        "masked_weights_that_are_zero_after_training": sum(
            int((model.get_parameter(n) == 0)[~mask].sum()) for n, mask in masks.get(model).items()
        ),
        "pruning_seconds": seconds,
        "top1": {"dense": dense.top1, "pruned": pruned.top1, "tuned": tuned.top1},
        "correct": {"dense": dense.correct, "tuned": tuned.correct},
        "training": [dataclasses.asdict(record) for record in context.trainings],
        "widths": [m.out_channels for m in model.modules() if hasattr(m, "out_channels") and hasattr(m, "kernel_size")],
    }


def line(result: Training) -> str:
    return (
        f"{result['way']} seed {result['seed']}: MACs {result['macs_left']:.3f}, parameters {result['params_left']:.3f}, "
        f"non-zero {result['nonzero_left']:.4f}, top-1 {top1(result)} %"
    )


def top1(result: Training) -> str:
    return " → ".join(f"{100 * result['top1'][k]:.2f}" for k in ("dense", "pruned", "tuned"))


def compared(pairs: Iterable[tuple[Training, Training]]) -> list[tuple[str, str]]:
    """Of each pair (a, b): accuracy of b − that of a in points with its interval, and McNemar's p after Holm over all pairs."""
    tests = [stats.mcnemar(a["correct"]["tuned"], b["correct"]["tuned"]) for a, b in pairs]
    return [
        (f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]", f"{p:.3g}")
        for test, p in zip(tests, stats.holm([test.p for test in tests]) if tests else [], strict=True)
    ]


def write(out: Path, settings: dict[str, Any], found: list[Training], table: str) -> None:
    write_atomically(out / "results.json", json.dumps({"settings": settings, "trainings": found}, indent=1) + "\n")
    write_atomically(out / "table.md", table)
    print(table)
