"""Deep Compression of ResNet-56 on CIFAR-10: how small it becomes at 0.5 points of accuracy, and the real file's size beside.

Runs `profiles/studies/deep-compression-resnet56.yaml` with `edgecompress run`, packs what it made into `.ecz` files, reads these
back, and writes results.json and table.md. A killed run goes on where it was with the same command.
`python studies/deep_compression_resnet56.py --help`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deep_compression_facts import compressed

from edgecompress.rundir import RunDir, write_atomically
from edgecompress.stats import mcnemar
from edgecompress.studyfile import read_study

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "profiles" / "studies" / "deep-compression-resnet56.yaml"
ALLOWED = 0.005
"""Loss of top-1 that is allowed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "deep_compression_resnet56", help="run directory")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results" / "quantisation" / "deep_compression_resnet56"
    )
    parser.add_argument("--report-only", action="store_true", help="take the run directory as it is, train nothing")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    command = [sys.executable, "-m", "edgecompress", "run", str(STUDY), "--out", str(given.state)]
    if not given.report_only and subprocess.run(command, check=False).returncode:
        print("the run did not end well; the same command goes on from there", file=sys.stderr)
        return 1
    recipes = [name for name, steps in read_study(STUDY).recipes.items() if steps]
    results = [{"recipe": name, **compressed(STUDY, RunDir(given.state), name)} for name in recipes]
    write_atomically(given.out / "results.json", json.dumps({"recipes": results}, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(results))
    print(table(results))
    return 0


def table(results: list[dict[str, Any]]) -> str:
    """The recipes as Markdown; the difference to the dense network is image by image."""
    lines = [
        "| recipe | kept % | top-1 %, before → after | points [95 %] | counted as in the paper | with code tables | `.ecz` file |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        before, after = one["test"]
        test, counted, ecz = mcnemar(before["correct"], after["correct"]), one["paper_size"], one["ecz"]
        layers = counted["layers"]
        kept = sum(layer["nonzeros"] for layer in layers) / sum(layer["weights"] for layer in layers)
        within = "" if test.difference >= -ALLOWED else " (beyond what is allowed)"
        lines.append(
            f"| {one['recipe']} | {100 * kept:.1f} | {100 * before['top1']:.2f} → {100 * after['top1']:.2f}{within} "
            f"| {100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}] "
            f"| **{counted['ratio']:.1f}×** ({counted['huffman_bytes'] / 1000:.1f} kB) | {counted['ratio_with_tables']:.1f}× "
            f"| {counted['dense_bytes'] / ecz['file_bytes']:.1f}× ({ecz['file_bytes']:,} B) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
