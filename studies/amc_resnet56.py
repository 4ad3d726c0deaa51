"""ResNet-56 at half the MACs: AMC's agent against uniform, random, greedy and evolutionary searches of as many evaluations.

For each seed one search on validation images (part of the training images), then every strategy's best policy applied to the same
weights, scored on the test images, fine-tuned by the same training and scored again. A finished part is a file under --state, and
a search goes on in the middle: the same command goes on from there. `python studies/amc_resnet56.py --help`.

The published weights were trained on all 50,000 images, the validation part among them: rewards are therefore higher than on
images that no training saw. The test images decide.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from typing import Any

from amc_parts import Parts
from cifar_resnet56 import ROOT, files_are_there, parser_of

from edgecompress import stats
from edgecompress.rundir import write_atomically

_ASKED = ("macs", "multiple", "episodes", "warmup", "images", "fit", "lower", "which", "unspent")
"""Of the command line, what the search is told."""

_SEARCH = ("model", *_ASKED)
_TRAINING = (*_SEARCH, "epochs", "lr")
_LONG = (*_SEARCH, "long_epochs", "long_lr", "long_images")
"""What of the command line the parts of the study depend on."""

STRATEGIES = ("amc", "uniform", "random", "greedy", "evolutionary")


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
    parser.add_argument("--which", default="inner", choices=("inner", "stream", "all"), help="channels that are cut")
    parser.add_argument(
        "--unspent", default="left", choices=("left", "spread"), help="what a walk leaves of the budget"
    )
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--long-epochs", type=int, nargs="*", default=[],
        help="trains a search's network that is the best of all seeds on the whole validation part by so many; several numbers: "
        "one training after the other, each from half the learning rate of the one before",
    )  # fmt: skip
    parser.add_argument("--long-lr", type=float, default=0.05)
    parser.add_argument(
        "--long-images", default="all", choices=("train", "all"), help="all: the validation images are trained on, too"
    )
    parser.add_argument("--long", nargs="*", default=["amc"], choices=STRATEGIES, help="searches that are trained so")
    parser.add_argument("--tune", nargs="*", default=list(STRATEGIES), choices=STRATEGIES, help="fine-tuned")
    given = parser.parse_args()
    if not files_are_there(given):
        return 2
    import torch

    torch.set_num_threads(given.threads)
    study = Parts(given)
    found: list[dict[str, Any]] = []
    dense = study.part("dense", study.dense, ("model",))
    searches: list[dict[str, Any]] = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        name = f"search-{seed}"
        searched = study.part(name, partial(study.search, seed, name, study.settings(_ASKED)), _SEARCH)
        if searched is None or dense is None:
            break
        searches.append(searched)
        for way, tried in searched["strategies"].items():
            if tried["best"] is None:
                continue
            keep, tuned = tried["best"]["policy"], None
            name = f"{way}-{seed}-pruned"
            pruned = study.part(name, partial(study.prune, name, seed, keep), _SEARCH)
            if pruned is None:
                continue
            if given.epochs and way in given.tune:
                name = f"{way}-{seed}-tuned"
                tuned = study.part(name, partial(study.tune, name, seed, keep, [given.epochs], given.lr), _TRAINING)
            found.append(
                {"way": way, "seed": seed, "search": tried, "dense": dense["top1"], "pruned": pruned, "tuned": tuned}
            )
            print(line(found[-1]), flush=True)
    longest = {way: _longest(study, found, way) for way in given.long} if given.long_epochs else {}
    settings = study.settings((*_TRAINING, *(n for n in _LONG if n not in _TRAINING)))
    content = {"settings": settings, "dense": dense, "searches": searches, "results": found, "long": longest}
    write_atomically(given.out / "results.json", json.dumps(content, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(found))
    print(table(found))
    return 0


def _longest(study: Parts, found: list[dict[str, Any]], way: str) -> dict[str, Any] | None:
    """Trains that network of a search which is the best on all validation images (each search looked at a few of them)."""
    given, validated = study.given, {}
    for one in found:
        if one["way"] == way:
            seed, keep = one["seed"], one["search"]["best"]["policy"]
            name = f"{way}-{seed}-validated"
            made = study.part(name, partial(study.validate, name, seed, keep), _SEARCH)
            if made is None:
                return None
            validated[seed] = made["top1"], keep
    if not validated:
        return None
    seed = max(validated, key=lambda s: validated[s][0])
    name, keep = f"{way}-{seed}-long", validated[seed][1]
    tune = partial(study.tune, name, seed, keep, given.long_epochs, given.long_lr, given.long_images)
    tuned = study.part(name, tune, _LONG)
    if tuned is not None:
        print(f"{way} seed {seed}, trained long: {100 * tuned['top1']:.2f} %", flush=True)
    return tuned and {"seed": seed, "validation": {s: top1 for s, (top1, _) in validated.items()}, **tuned}


def line(result: dict[str, Any]) -> str:
    tuned = "not fine-tuned" if result["tuned"] is None else f"{100 * result['tuned']['top1']:.2f} %"
    return (
        f"{result['way']} seed {result['seed']}: MACs {result['pruned']['macs_left']:.3f}, validation "
        f"{100 * result['search']['best']['top1']:.2f} %, test {100 * result['dense']:.2f} → {100 * result['pruned']['top1']:.2f} "
        f"→ {tuned}"
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
    tests = [stats.mcnemar(r["pruned"]["correct"], agents[r["seed"]]["pruned"]["correct"]) for r in others]
    adjusted = stats.holm([t.p for t in tests]) if tests else []
    compared = {id(r): (t, p) for r, t, p in zip(others, tests, adjusted, strict=True)}
    for way in STRATEGIES:
        mine = [r for r in found if r["way"] == way]
        if not mine:
            continue
        tuned = [r["tuned"]["top1"] for r in mine if r["tuned"] is not None]
        against = [compared[id(r)] for r in mine if id(r) in compared]
        cells = [
            way, str(len(mine)), _values([r["pruned"]["macs_left"] for r in mine], 3),
            _values([100 * r["search"]["best"]["top1"] for r in mine]),
            _values([100 * r["pruned"]["top1"] for r in mine]), _values([100 * t for t in tuned]),
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
