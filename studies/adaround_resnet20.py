"""AdaRound against nearest rounding of the weights of ResNet-20 on CIFAR-10, at 4 bits (simulated) and 8, on the same levels.

Only weights are rounded: per output channel, batch norms folded in. The error is that of the logits against the float network's,
on validation images; accuracy is on test images. Each learning and each network's outputs are a file under --state: the same
command goes on from there. `python studies/adaround_resnet20.py --help`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import stats
from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.data import Dataset

ROOT = Path(__file__).resolve().parent.parent
IN_SHAPE = (3, 32, 32)
SETTINGS = ("iterations", "lr", "batch_size", "images", "test_images", "seed")


def main() -> int:
    root = Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=root / "weights" / "resnet20.safetensors")
    parser.add_argument(
        "--data", type=Path, default=root / "cifar10.npz", help="cifar10.npz, as unpack.py of the real data makes it"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8], choices=range(2, 9), metavar="BITS")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--test-images", type=int, default=3000, help="the first so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after this time")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "adaround_resnet20")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "quantisation" / "adaround_resnet20")
    given = parser.parse_args()
    for file in (given.data, given.weights):
        if not file.is_file():
            print(f"no such file: {file}; see studies/README.md, or give --data and --weights", file=sys.stderr)
            return 2
    settings = {key: getattr(given, key) for key in SETTINGS}
    known = given.state / "settings.json"
    if known.exists() and json.loads(known.read_text()) != settings:
        print(f"{known} has other settings: {known.read_text()}; give another --state", file=sys.stderr)
        return 2
    write_atomically(known, json.dumps(settings) + "\n")
    import torch

    torch.set_num_threads(given.threads)
    began = time.monotonic()
    for done in _work(given):
        print(done, flush=True)
        if time.monotonic() - began > 60 * given.minutes:
            print("more is to be done: the same command goes on")
            return 0
    found = [_result(bits, given.state) for bits in given.bits]
    write_atomically(given.out / "results.json", json.dumps({"settings": settings, "bits": found}, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(found))
    print(table(found))
    return 0


def _work(given: argparse.Namespace) -> Iterator[str]:
    """What is not done yet, piece by piece; the name of each piece when it is."""
    from edgecompress import data
    from edgecompress.models import build
    from edgecompress.study import DataSpec, ModelSpec

    cifar = data.load(
        DataSpec(
            name="npz", path=given.data, calibration_images=given.images,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        seed=given.seed,
    )  # fmt: skip
    cifar = dataclasses.replace(cifar, test=cifar.test.subset(np.arange(min(given.test_images, len(cifar.test)))))
    model = build(ModelSpec(name="resnet20", weights=given.weights), num_classes=10, in_shape=IN_SHAPE).eval()
    yield from _outputs(model, "float", cifar, given.state)
    for bits in given.bits:
        yield from _outputs(_nearest(model, bits), f"{bits}-nearest", cifar, given.state)
        file = given.state / f"{bits}-learned.safetensors"
        if not file.exists():
            _learn(model, bits, cifar, given, file)
            yield file.stem
        yield from _outputs(_with(model, file), f"{bits}-learned", cifar, given.state)


def _nearest(model: nn.Module, bits: int) -> nn.Module:
    from edgecompress.compress.quantize import layer_names
    from edgecompress.compress.quantize.grids import grid, learnable, put

    rounded = copy.deepcopy(model)
    for layer in learnable(rounded, layer_names(model), "channel"):
        levels = grid(layer, _most(bits), "channel")
        put(layer.module, layer.norm, levels, levels.nearest())
    return rounded


def _learn(model: nn.Module, bits: int, cifar: Dataset, given: argparse.Namespace, file: Path) -> None:
    import torch
    from safetensors.torch import save

    from edgecompress import data
    from edgecompress.compress.quantize import layer_names
    from edgecompress.compress.quantize.adaround import learn
    from edgecompress.compress.quantize.adaround_spec import AdaRoundSpec

    learned = copy.deepcopy(model)
    began = time.process_time()
    report = learn(
        learned, torch.from_numpy(data.calibration_images(cifar)), layer_names(model), most=_most(bits),
        granularity="channel", seed=given.seed,
        spec=AdaRoundSpec(iterations=given.iterations, lr=given.lr, batch_size=given.batch_size),
    )  # fmt: skip
    facts = {
        "processor_seconds": time.process_time() - began,
        "kept": report.kept,
        "calibration_error": dict(zip(("nearest", "learned"), report.output_errors, strict=True)),
        "layer_errors_nearest_and_learned": report.errors,
        "not_nearest": report.moved,
        "left": report.left,
    }
    write_atomically(file.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    write_atomically(file, save(learned.state_dict()))


def _with(model: nn.Module, file: Path) -> nn.Module:
    from safetensors.torch import load

    loaded = copy.deepcopy(model)
    loaded.load_state_dict(load(file.read_bytes()))
    return loaded


def _most(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _outputs(model: nn.Module, name: str, cifar: Dataset, state: Path) -> Iterator[str]:
    """Logits of the validation and test images, as state/name.npz."""
    import torch

    from edgecompress import data

    if (state / f"{name}.npz").exists():
        return
    found: dict[str, Any] = {}
    with torch.no_grad():
        for kind, part in (("val", cifar.val), ("test", cifar.test)):
            stream = data.batches(cifar, part, batch_size=100, shuffle=False, augment=False, seed=0, epoch=0)
            found[kind] = np.concatenate([model(images).numpy() for images, _ in stream])
            found[f"{kind}_labels"] = np.asarray(part.labels)
    partial = state / f"partial-{name}.npz"
    np.savez(partial, **found)
    partial.replace(state / f"{name}.npz")
    yield f"outputs of {name}"


def _result(bits: int, state: Path) -> dict[str, Any]:
    outputs = {k: np.load(state / f"{n}.npz") for k, n in
               (("float", "float"), ("nearest", f"{bits}-nearest"), ("learned", f"{bits}-learned"))}  # fmt: skip
    exact = outputs["float"]
    right = {k: o["test"].argmax(1) == o["test_labels"] for k, o in outputs.items()}
    return {
        "bits": bits,
        **json.loads((state / f"{bits}-learned.json").read_text()),
        "images": {"validation": len(exact["val"]), "test": len(exact["test"])},
        "mean_square_of_the_float_logits": float(np.square(exact["val"], dtype=np.float64).mean()),
        "validation_error": {
            k: float(np.square(outputs[k]["val"] - exact["val"], dtype=np.float64).mean())
            for k in ("nearest", "learned")
        },
        "test_error": {
            k: float(np.square(outputs[k]["test"] - exact["test"], dtype=np.float64).mean())
            for k in ("nearest", "learned")
        },
        "correct": {k: "".join("01"[int(r)] for r in values) for k, values in right.items()},
    }


def table(found: list[dict[str, Any]]) -> str:
    """The bits as Markdown, learned beside nearest rounding."""
    lines = [
        "| bits | error of the logits: nearest | learned | top-1 %: float | nearest | learned | learned − nearest [95 %] | p "
        "| not nearest | processor time |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for result in found:
        error, correct = result["validation_error"], result["correct"]
        test = stats.mcnemar(correct["nearest"], correct["learned"])
        top1 = [f"{100 * correct[k].count('1') / len(correct[k]):.2f}" for k in ("float", "nearest", "learned")]
        moved = result["not_nearest"].values()
        lines.append(
            f"| {result['bits']} | {error['nearest']:.3g} | {error['learned']:.3g} | {' | '.join(top1)} | "
            f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}] | {test.p:.2g} | "
            f"{100 * sum(moved) / len(moved):.1f} % | {result['processor_seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
