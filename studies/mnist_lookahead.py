"""Lookahead against magnitude pruning on MNIST: the first experiment of Park et al. (ICLR 2020), with fewer iterations.

Per seed the MLP 784-500×4-10 is trained once. Then, for each level t, that network is pruned anew by each method (per layer,
fraction removed 1 − (1 − p)^t with p = 0.5 four times and 0.25 for the last layer) and retrained with its mask: fresh Adam,
lr 1.2e-3, batches of 60, no weight decay, no schedule; the test error at the last iteration counts. Both methods of a
(seed, level) see the same batches. The paper's code takes 50,000 + 50,000 iterations.

A training is a file in the state folder, so a killed study goes on where it was. `python studies/mnist_lookahead.py --help`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import masked_mlp
import mnist_lookahead_report as report
import numpy as np

from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

    Part = tuple[Tensor, Tensor]
    """Images (n, 784) and labels (n,)."""

LAYERS = ("fc.0", "fc.2", "fc.4", "fc.6", "fc.8")
PRUNED_PER_STEP = (0.5, 0.5, 0.5, 0.5, 0.25)
LEVELS = tuple(range(4, 11))
METHODS = ("magnitude", "lookahead")


@dataclass(frozen=True)
class Settings:
    """What makes a result. lr: of Adam, with PyTorch's other defaults. batch: images of an iteration."""

    pretrain_iterations: int
    retrain_iterations: int
    lr: float = 1.2e-3
    batch: int = 60


def main() -> int:
    given = _arguments()
    import torch

    torch.set_num_threads(1)
    # The squares of vanishing gradients in Adam's state are denormal numbers, which can be slow.
    torch.set_flush_denormal(True)
    settings = Settings(given.pretrain, given.retrain)
    _same_settings(given.state, settings)
    ends = time.monotonic() + 60 * given.minutes
    train, test = _mnist(given.data)
    for seed in range(given.seeds):
        for level, method in [(None, None), *((level, m) for level in LEVELS for m in given.methods)]:
            path = given.state / _file(seed, level, method)
            if path.exists():
                continue
            if time.monotonic() > ends:
                print("time is up; the same command goes on from here", flush=True)
                return _report(given, settings)
            result = _result(given.state, settings, (seed, level, method), train, test)
            write_atomically(path, json.dumps(result))
            print(path.name, f"{result['seconds']:.0f} s, error {100 * result['test_error']:.2f} %", flush=True)
    return _report(given, settings)


def _arguments() -> argparse.Namespace:
    data = os.environ.get("EDGECOMPRESS_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="folder with MNIST/raw")
    parser.add_argument("--state", type=Path, default=Path("runs/mnist_lookahead"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results/pruning/mnist"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pretrain", type=int, default=10_000, help="iterations (the paper's code: 50000)")
    parser.add_argument("--retrain", type=int, default=10_000, help="iterations (the paper's code: 50000)")
    parser.add_argument("--minutes", type=float, default=240, help="start no further training after this time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args()


def _same_settings(state: Path, settings: Settings) -> None:
    path = state / "settings.json"
    if path.exists() and json.loads(path.read_text()) != asdict(settings):
        raise SystemExit(f"{path} has other settings: give another --state, or {json.loads(path.read_text())}")
    write_atomically(path, json.dumps(asdict(settings)))


def _file(seed: int, level: int | None, method: str | None) -> str:
    return f"seed-{seed}-dense.json" if level is None else f"seed-{seed}-t{level:02}-{method}.json"


def _report(given: argparse.Namespace, settings: Settings) -> int:
    """Write results.json, the figure and the table from the seeds that are complete. 1 when there are fewer than two."""
    rows: list[dict[str, Any]] = []
    complete = []
    for seed in range(given.seeds):
        jobs = [(None, None), *((level, method) for level in LEVELS for method in METHODS)]
        paths = [given.state / _file(seed, level, method) for level, method in jobs]
        if all(path.exists() for path in paths):
            complete.append(seed)
            rows += [json.loads(path.read_text()) for path in paths]
    if len(complete) < 2:
        print(f"{len(complete)} complete seeds: nothing to report yet", flush=True)
        return 1
    import torch

    about = {
        "command": f"python studies/mnist_lookahead.py --seeds {given.seeds} "
        f"--pretrain {settings.pretrain_iterations} --retrain {settings.retrain_iterations}",
        "settings": asdict(settings), "seeds": complete,
        "torch": torch.__version__, "machine": f"{platform.machine()}, 1 thread",
    }  # fmt: skip
    report.write(given.out, about, rows)
    return 0


def _mnist(root: Path) -> tuple[Part, Part]:
    """(images (n, 784) normalised, labels (n,)) of all 60,000 training and all 10,000 test images."""
    import torch

    from edgecompress import data
    from edgecompress.data import mnist
    from edgecompress.study import DataSpec

    spec = DataSpec(name="mnist", root=root, augment="none")
    loaded = data.load(spec, seed=0)  # for the mean and standard deviation of the training images
    raw = mnist.load(spec)

    def tensors(part: data.Part) -> Part:
        images = data.normalise(part.images(np.arange(len(part))), loaded.mean, loaded.std)
        return torch.from_numpy(images.reshape(len(part), -1)), torch.from_numpy(part.labels.astype(np.int64))

    return tensors(raw.train), tensors(raw.test)


def _result(
    state: Path, settings: Settings, job: tuple[int, int | None, str | None], train: Part, test: Part
) -> dict[str, Any]:
    """Train the dense network of a seed (level None), or prune and retrain it."""
    import torch
    from safetensors.torch import load_file, save

    from edgecompress import masks
    from edgecompress.models.lap import lap_mlp

    seed, level, method = job
    torch.manual_seed(seed)
    model = lap_mlp(10, (1, 28, 28))
    dense = state / f"seed-{seed}-dense.safetensors"
    before = None
    if level is not None:
        model.load_state_dict(load_file(dense))
        masks.put(model, pruned(model, level, str(method)))
        before = 1 - _correct(model, test).float().mean().item()
    began = time.monotonic()
    loss = masked_mlp.train(
        model, train, lr=settings.lr, batch=settings.batch, order=(seed, level or 0),
        iterations=settings.pretrain_iterations if level is None else settings.retrain_iterations,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if level is None:
        write_atomically(dense, save({k: v.contiguous() for k, v in model.state_dict().items()}))
    weights = {name: model.get_parameter(f"{name}.weight") for name in LAYERS}
    kept = {name: int(torch.count_nonzero(weight)) for name, weight in weights.items()}
    correct = _correct(model, test)
    return {
        "seed": seed, "level": level, "method": method, "kept": kept,
        "kept_fraction": sum(kept.values()) / sum(w.numel() for w in weights.values()),
        "test_error": 1 - correct.float().mean().item(), "test_error_before_retraining": before,
        "training_loss_of_last_1000": loss, "seconds": round(seconds, 1),
        "test_images": len(correct),
        "correct": base64.b64encode(np.packbits(correct.numpy()).tobytes()).decode(),
    }  # fmt: skip


def pruned(model: nn.Module, level: int, method: str) -> dict[str, Tensor]:
    """The masks of a level, from a dense network: parameter name → bool."""
    import torch

    from edgecompress import masks

    ratios = {f"{name}.weight": 1 - (1 - p) ** level for name, p in zip(LAYERS, PRUNED_PER_STEP, strict=True)}
    if method == "lookahead":
        from edgecompress.compress import lookahead

        return lookahead.masks(model, torch.zeros(1, 1, 28, 28), ratios)
    weights = {name: model.get_parameter(name).detach() for name in ratios}
    return {name: masks.keep_highest(w.abs(), round((1 - ratios[name]) * w.numel())) for name, w in weights.items()}


def _correct(model: nn.Module, test: Part) -> Tensor:
    """Per test image whether the network is right: bool (n,)."""
    import torch

    images, labels = test
    with torch.no_grad():
        return torch.cat([model(x.reshape(-1, 1, 28, 28)).argmax(1) for x in images.split(1000)]) == labels


if __name__ == "__main__":
    sys.exit(main())
