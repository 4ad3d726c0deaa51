"""ResNet-56 with single weights pruned: lookahead against magnitude at equal sparsity in every layer, the same fine-tuning.

A stopped study goes on with the same command. `python studies/unstructured_resnet56.py --help`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from cifar_resnet56 import Training, compared, parser_of, top1, trainings, write

METHODS = ("magnitude", "lookahead")


def main() -> int:
    parser = parser_of("unstructured_resnet56", __doc__)
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98], metavar="FRACTION",
        help="removed of the weights of each layer",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    ways = {
        f"{method}-{100 * sparsity:g}": functools.partial(_prune, method=method, sparsity=sparsity)
        for sparsity in given.sparsities
        for method in given.methods
    }
    done = trainings(ways, given, {})
    if done is None:
        return 2
    write(given.out, *done, table(done[1]))
    return 0


def _prune(model: Any, context: Any, *, method: str, sparsity: float) -> tuple[Any, dict[str, Any]]:
    from edgecompress import plugins
    from edgecompress.compress.contract import parse_params

    module = plugins.find("edgecompress.compress", method, attribute="apply", kind="method")
    return module.apply(model, parse_params(method, {"sparsity": sparsity}), context), dict(context.notes)


def table(found: list[Training]) -> str:
    """The trainings as Markdown, lookahead beside magnitude of the same sparsity and seed."""
    by_name = {(r["way"], r["seed"]): r for r in found}
    pairs = []
    for r in found:
        method, sparsity = r["way"].split("-")
        other = by_name.get((f"lookahead-{sparsity}", r["seed"]))
        if method == "magnitude" and other is not None:
            pairs.append((float(sparsity), r, other))
    lines = [
        "| zeros, % | seed | magnitude: top-1 % dense → pruned → tuned | lookahead | lookahead − magnitude [95 %] | p (Holm) |",
        "|---:|---|---|---|---|---|",
    ]
    for (sparsity, a, b), texts in zip(pairs, compared((a, b) for _, a, b in pairs), strict=True):
        lines.append("| " + " | ".join([f"{sparsity:g}", str(a["seed"]), top1(a), top1(b), *texts]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
