"""Deep Compression of LeNet-300-100 and LeNet-5 on MNIST (Han, Mao and Dally 2016, tables 1 to 3), and the real file's size beside.

Runs the two shipped studies `profiles/studies/deep-compression-lenet-*.yaml` with `edgecompress run`, packs what they made into
`.ecz` files, reads these back, and writes results.json and table.md. A killed run goes on where it was with the same command.
`python studies/deep_compression_mnist.py --help`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from deep_compression_facts import ROOT, compressed, parser_of, ran, sizes, write

from edgecompress.rundir import RunDir
from edgecompress.stats import wilson

RECIPE = "deep-compression"


@dataclasses.dataclass(frozen=True)
class Paper:
    """A row of the paper's table 1: errors in %, ratios without and with Huffman coding."""

    title: str
    file: str
    error_before: float
    error_after: float
    ratio_fixed: float
    ratio: float


PAPER = (
    Paper("LeNet-300-100", "deep-compression-lenet-300-100", 1.64, 1.58, 32, 40),
    Paper("LeNet-5", "deep-compression-lenet-5", 0.80, 0.74, 33, 39),
)


def main() -> int:
    given = parser_of("deep_compression_mnist", __doc__).parse_args()
    import torch

    torch.set_num_threads(1)
    results = []
    for paper in PAPER:
        study, run_dir = ROOT / "profiles" / "studies" / f"{paper.file}.yaml", given.state / paper.file
        if not ran(study, run_dir, report_only=given.report_only):
            return 1
        found = compressed(study, RunDir(run_dir), RECIPE)
        results.append({"network": paper.title, "paper": dataclasses.asdict(paper), **found})
    write(given.out, {"networks": results}, table(results))
    return 0


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, the paper's figures beside them."""
    lines = [
        "| network | test error %, before → after [95 %] | paper | P+Q | paper | P+Q+H | paper | with code tables | `.ecz` file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in results:
        before, after = network["test"]
        low, high = wilson(after["correct"].count("1"), after["images"])
        paper, counted = network["paper"], network["paper_size"]
        as_paper, with_tables, file = sizes(counted, network["ecz"])
        lines.append(
            f"| {network['network']} | {100 * (1 - before['top1']):.2f} → {100 * (1 - after['top1']):.2f} "
            f"[{100 * (1 - high):.2f}, {100 * (1 - low):.2f}] | {paper['error_before']:.2f} → {paper['error_after']:.2f} "
            f"| {counted['ratio_fixed']:.1f}× | {paper['ratio_fixed']:.0f}× "
            f"| {as_paper} | {paper['ratio']:.0f}× | {with_tables} | {file} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
