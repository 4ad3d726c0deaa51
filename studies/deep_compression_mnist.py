"""Deep Compression of LeNet-300-100 and LeNet-5 on MNIST (Han, Mao and Dally 2016, tables 1 to 3), and the real file's size beside.

Runs the two shipped studies `profiles/studies/deep-compression-lenet-*.yaml` with `edgecompress run`, packs what they made into
`.ecz` files, reads these back, and writes results.json and table.md. A killed run goes on where it was with the same command.
`python studies/deep_compression_mnist.py --help`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgecompress.errors import StepFailed
from edgecompress.records import ModelRecord
from edgecompress.rundir import RunDir, write_atomically
from edgecompress.stats import wilson
from edgecompress.studyfile import read_study

ROOT = Path(__file__).resolve().parent.parent
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "deep_compression_mnist", help="run directories")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results" / "quantisation" / "deep_compression_mnist"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="take the run directories as they are, train nothing"
    )
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    results = []
    for paper in PAPER:
        study, run_dir = ROOT / "profiles" / "studies" / f"{paper.file}.yaml", given.state / paper.file
        command = [sys.executable, "-m", "edgecompress", "run", str(study), "--out", str(run_dir)]
        if not given.report_only and subprocess.run(command, check=False).returncode:
            print(f"{paper.title}: the run did not end well; the same command goes on from there", file=sys.stderr)
            return 1
        results.append(_network(paper, study, RunDir(run_dir)))
    write_atomically(given.out / "results.json", json.dumps({"networks": results}, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(results))
    print(table(results))
    return 0


def _network(paper: Paper, file: Path, run_dir: RunDir) -> dict[str, Any]:
    """All that is known of one network: the study, errors (with each image's), the counts, the trainings, the packed file."""
    study = read_study(file)
    plan = run_dir.read_json("plan.json")
    keys = [node["key"] for node in plan["recipes"][RECIPE]]
    records = [_record(run_dir, key) for key in (keys[0], keys[-1])]
    notes = records[1].steps[-1].notes
    folders = [run_dir.path("files", "model", key) for key in (keys[0], keys[-1])]
    return {
        "network": paper.title,
        "paper": dataclasses.asdict(paper),
        "study": study.model_dump(mode="json", exclude={"data": {"root"}}),
        "validation_error": [_validation_error(folder, study) for folder in folders],
        "test": [dataclasses.asdict(record.accuracy) for record in records],
        "kept_fraction": notes["kept_fraction"],
        "values": notes["values"],
        "paper_size": notes["paper_size"],
        "ecz": _packed(folders[1]),
        "trainings": [
            {"epochs": t.epochs, "seconds": round(t.seconds, 1), "final_loss": t.final_loss}
            for t in (*records[1].trainings, *(t for step in records[1].steps for t in step.trainings))
        ],
        "versions": run_dir.read_json("run.json")["versions"],
    }


def _record(run_dir: RunDir, key: str) -> ModelRecord:
    record = run_dir.record("model", key, ModelRecord)
    if record is None:
        raise StepFailed(f"{run_dir.root} has no record of the model {key}")
    return record


def _validation_error(folder: Path, study: Any) -> float:
    from edgecompress.data import load
    from edgecompress.evaluate import accuracy
    from edgecompress.models.checkpoint import load_model

    return 1 - accuracy(load_model(folder), load(study.data, seed=study.seed), "val").top1


def _packed(folder: Path) -> dict[str, Any]:
    """The `.ecz` file of a model directory: where its bytes go. StepFailed when it does not come back bit for bit."""
    import torch

    import edgecompress
    from edgecompress.coding.packing import pack

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.ecz"
        report = pack(folder, file)
        model, again = edgecompress.load(folder), edgecompress.load(file)
    before, after = model.state_dict(), again.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise StepFailed(f"{folder} does not come back from its packed file as it was")
    return {**dataclasses.asdict(report), "dense_bytes": report.dense_bytes}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, the paper's figures beside them."""
    lines = [
        "| network | test error %, before → after [95 %] | paper | P+Q | paper | P+Q+H | paper | with code tables | `.ecz` file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network in results:
        before, after = network["test"]
        low, high = wilson(after["correct"].count("1"), after["images"])
        paper, counted, ecz = network["paper"], network["paper_size"], network["ecz"]
        lines.append(
            f"| {network['network']} | {100 * (1 - before['top1']):.2f} → {100 * (1 - after['top1']):.2f} "
            f"[{100 * (1 - high):.2f}, {100 * (1 - low):.2f}] | {paper['error_before']:.2f} → {paper['error_after']:.2f} "
            f"| {counted['ratio_fixed']:.1f}× | {paper['ratio_fixed']:.0f}× "
            f"| **{counted['ratio']:.1f}×** ({counted['huffman_bytes'] / 1000:.1f} kB) | {paper['ratio']:.0f}× "
            f"| {counted['ratio_with_tables']:.1f}× "
            f"| {counted['dense_bytes'] / ecz['file_bytes']:.1f}× ({ecz['file_bytes']:,} B) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
