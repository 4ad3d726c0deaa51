"""Deep Compression of ResNet-56 on CIFAR-10: how small it becomes at 0.5 points of accuracy, and the real file's size beside.

Runs `profiles/studies/deep-compression-resnet56.yaml` with `edgecompress run`, packs what it made into `.ecz` files, reads these
back, and writes results.json and table.md. A killed run goes on where it was with the same command.
`python studies/deep_compression_resnet56.py --help`.
"""

from __future__ import annotations

import sys
from typing import Any

from deep_compression_facts import ROOT, compressed, parser_of, ran, sizes, write

from edgecompress.rundir import RunDir
from edgecompress.stats import mcnemar
from edgecompress.studyfile import read_study

STUDY = ROOT / "profiles" / "studies" / "deep-compression-resnet56.yaml"
ALLOWED = 0.005
"""Loss of top-1 that is allowed."""


def main() -> int:
    given = parser_of("deep_compression_resnet56", __doc__).parse_args()
    import torch

    torch.set_num_threads(1)
    if not ran(STUDY, given.state, report_only=given.report_only):
        return 1
    recipes = [name for name, steps in read_study(STUDY).recipes.items() if steps]
    results = [{"recipe": name, **compressed(STUDY, RunDir(given.state), name)} for name in recipes]
    write(given.out, {"recipes": results}, table(results))
    return 0


def table(results: list[dict[str, Any]]) -> str:
    """The recipes as Markdown; the difference to the dense network is image by image."""
    lines = [
        "| recipe | kept % | top-1 %, before → after | points [95 %] | counted as in the paper | with code tables | `.ecz` file |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        before, after = one["test"]
        test, counted = mcnemar(before["correct"], after["correct"]), one["paper_size"]
        layers = counted["layers"]
        kept = sum(layer["nonzeros"] for layer in layers) / sum(layer["weights"] for layer in layers)
        within = "" if test.difference >= -ALLOWED else " (beyond what is allowed)"
        lines.append(
            f"| {one['recipe']} | {100 * kept:.1f} | {100 * before['top1']:.2f} → {100 * after['top1']:.2f}{within} "
            f"| {100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}] "
            f"| {' | '.join(sizes(counted, one['ecz']))} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
