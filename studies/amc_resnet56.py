"""ResNet-56 at half the MACs: AMC's agent against uniform, random, greedy and evolutionary searches of as many evaluations.

For each seed one search on validation images (part of the training images), then every strategy's best policy applied to the same
weights, scored on the test images, fine-tuned by the same training and scored again. A finished part is a file under --state, and
a search goes on in the middle: the same command goes on from there. `python studies/amc_resnet56.py --help`.

The published weights were trained on all 50,000 images, the validation part among them: rewards are therefore higher than on
images that no training saw. The test images decide.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from cifar_resnet56 import IN_SHAPE, ROOT, dataset, files_are_there, network, parser_of

from edgecompress import stats
from edgecompress.progress import SILENT
from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.data import Dataset

STRATEGIES = ("amc", "uniform", "random", "greedy", "evolutionary")


class Told:
    """What a search says, on standard output."""

    def __init__(self) -> None:
        self.task = SILENT.task

    def say(self, text: str) -> None:
        print(text, flush=True)


def main() -> int:
    parser = parser_of("amc_resnet56", __doc__)
    parser.set_defaults(epochs=3, seeds=3, out=ROOT / "docs" / "results" / "amc" / "resnet56")
    parser.add_argument("--model", default="resnet56", help="of the zoo, for CIFAR images")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the multiply-accumulates that is left")
    parser.add_argument("--multiple", type=int, default=1, help="of the widths, for all")
    parser.add_argument("--episodes", type=int, default=200, help="evaluations of each search")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--images", type=int, default=500, help="validation images that a policy is scored on")
    parser.add_argument("--fit", type=int, default=500, help="training images of the least squares")
    parser.add_argument("--lower", type=float, default=0.2)
    parser.add_argument("--tune", nargs="*", default=list(STRATEGIES), choices=STRATEGIES, help="fine-tuned")
    given = parser.parse_args()
    if not files_are_there(given):
        return 2
    import torch

    torch.set_num_threads(given.threads)
    study = _Study(given)
    began = time.monotonic()

    def late() -> bool:
        return time.monotonic() - began > 60 * given.minutes

    found: list[dict[str, Any]] = []
    dense = study.part("dense", late, study.dense)
    for seed in range(given.seeds):
        searched = study.part(f"search-{seed}", late, lambda seed=seed: study.search(seed))  # type: ignore[misc]
        if searched is None or dense is None:
            break
        for way, tried in searched["strategies"].items():
            if tried["best"] is None:
                continue
            policy = tried["best"]["policy"]
            result = study.part(
                f"{way}-{seed}", late, lambda way=way, seed=seed, policy=policy: study.tune(way, seed, policy)
            )  # type: ignore[misc]
            if result is not None:
                found.append({"way": way, "seed": seed, "search": tried, "dense": dense["top1"], **result})
                print(line(found[-1]), flush=True)
    content = {"settings": study.settings, "searches": study.searches(given.seeds), "results": found}
    write_atomically(given.out / "results.json", json.dumps(content, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(found))
    print(table(found))
    return 0


class _Study:
    """The parts of the study, each a file under --state."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        names = ("model", "macs", "multiple", "episodes", "warmup", "images", "fit", "lower", "epochs", "lr", "tune")
        self.settings = {k: getattr(given, k) for k in names}
        self.data: Dataset = dataset(given, 0.1)

    def part(self, name: str, late: Any, make: Any) -> dict[str, Any] | None:
        """The part's result; None where it is not there and time is up. SystemExit: it is of other settings."""
        file = self.given.state / f"{name}.json"
        if not file.exists():
            if late():
                return None
            write_atomically(file, json.dumps({"settings": self.settings, **make()}, indent=1) + "\n")
        result: dict[str, Any] = json.loads(file.read_text())
        if result["settings"] != self.settings:
            print(f"{file} is of other settings: {result['settings']}; give another --state", file=sys.stderr)
            raise SystemExit(2)
        return result

    def searches(self, seeds: int) -> list[dict[str, Any]]:
        files = [self.given.state / f"search-{seed}.json" for seed in range(seeds)]
        return [json.loads(file.read_text()) for file in files if file.exists()]

    def _model(self) -> nn.Module:
        return network(self.given, self.given.model)

    def _context(self, model: nn.Module, seed: int, name: str) -> Any:
        from edgecompress.compress.contract import Context

        scratch = self.given.state / "checkpoints" / name
        return Context(data=self.data, seed=seed, teacher=copy.deepcopy(model), scratch=scratch, progress=Told())

    def search(self, seed: int) -> dict[str, Any]:
        """The notes of a search with all its baselines."""
        from edgecompress.compress import amc
        from edgecompress.compress.contract import parse_params

        model, given = self._model(), self.given
        wanted = {k: getattr(given, k) for k in ("macs", "multiple", "episodes", "warmup", "images", "fit", "lower")}
        context = self._context(model, seed, f"search-{seed}")
        amc.apply(model, parse_params("amc", wanted), context)
        return {"seed": seed, **context.notes["search"], "widths": context.notes["widths"]}

    def dense(self) -> dict[str, Any]:
        """The whole network on the test images."""
        from edgecompress.evaluate import accuracy

        scored = accuracy(self._model(), self.data)
        return {"top1": scored.top1, "correct": scored.correct}

    def tune(self, way: str, seed: int, keep: dict[str, float]) -> dict[str, Any]:
        """A policy's network before and after the fine-tuning, on the test images."""
        from edgecompress import cost
        from edgecompress.compress import amc
        from edgecompress.compress.amc import policy
        from edgecompress.compress.contract import parse_params
        from edgecompress.evaluate import accuracy
        from edgecompress.study import TrainSpec

        model, given = self._model(), self.given
        whole = cost.count(model, IN_SHAPE)
        file = given.state / "policies" / f"{way}-{seed}.yaml"
        policy.write(file, "channels", keep)
        context = self._context(model, seed, f"{way}-{seed}")
        amc.apply(model, parse_params("amc", {"policy": str(file), "fit": given.fit}), context)
        left, pruned = cost.count(model, IN_SHAPE), accuracy(model, self.data)
        tuned = None
        if given.epochs and way in given.tune:
            context.train(model, TrainSpec(epochs=given.epochs, lr=given.lr, weight_decay=1e-4), method="amc")
            tuned = accuracy(model, self.data)
        return {
            "macs_left": left.macs / whole.macs,
            "params_left": left.params / whole.params,
            "top1": {"pruned": pruned.top1, "tuned": None if tuned is None else tuned.top1},
            "correct": {"pruned": pruned.correct, "tuned": None if tuned is None else tuned.correct},
            "widths": context.notes["widths"],
            "training_seconds": sum(t.seconds for t in context.trainings),
        }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    top1 = result["top1"]
    tuned = "not fine-tuned" if top1["tuned"] is None else f"{100 * top1['tuned']:.2f} %"
    return (
        f"{result['way']} seed {result['seed']}: MACs {result['macs_left']:.3f}, validation "
        f"{100 * result['search']['best']['top1']:.2f} %, test {100 * result['dense']:.2f} → {100 * top1['pruned']:.2f} → {tuned}"
    )


def table(found: list[dict[str, Any]]) -> str:
    """Each strategy over the seeds, and what the agent's network has right more than it on the same test images (McNemar, Holm)."""
    lines = [
        "| search | seeds | MACs left | validation top-1 % | test, before fine-tuning % | after % "
        "| amc − it, before [95 %] | p (Holm) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    agents = {r["seed"]: r for r in found if r["way"] == "amc"}
    others = [r for r in found if r["way"] != "amc" and r["seed"] in agents]
    tests = [stats.mcnemar(r["correct"]["pruned"], agents[r["seed"]]["correct"]["pruned"]) for r in others]
    adjusted = stats.holm([t.p for t in tests]) if tests else []
    compared = {id(r): (t, p) for r, t, p in zip(others, tests, adjusted, strict=True)}
    for way in STRATEGIES:
        mine = [r for r in found if r["way"] == way]
        if not mine:
            continue
        tuned = [r["top1"]["tuned"] for r in mine if r["top1"]["tuned"] is not None]
        against = [compared[id(r)] for r in mine if id(r) in compared]
        cells = [
            way, str(len(mine)), _values([r["macs_left"] for r in mine], 3),
            _values([100 * r["search"]["best"]["top1"] for r in mine]),
            _values([100 * r["top1"]["pruned"] for r in mine]), _values([100 * t for t in tuned]),
            "; ".join(f"{100 * t.difference:+.2f} [{100 * t.low:+.2f}, {100 * t.high:+.2f}]" for t, _ in against),
            "; ".join(f"{p:.2g}" for _, p in against),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _values(values: list[float], digits: int = 2) -> str:
    """Mean and all values; empty: none."""
    if not values:
        return ""
    each = ", ".join(f"{v:.{digits}f}" for v in values)
    return each if len(values) == 1 else f"{statistics.fmean(values):.{digits}f} ({each})"


if __name__ == "__main__":
    sys.exit(main())
