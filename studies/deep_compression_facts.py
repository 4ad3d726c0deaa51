"""What the studies of Deep Compression share: a shipped study is run, and what it made is counted, packed and told."""

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
from edgecompress.studyfile import read_study

ROOT = Path(__file__).resolve().parent.parent


def parser_of(study: str, description: str | None) -> argparse.ArgumentParser:
    """The options of these studies."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / study, help="for the run directory")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "quantisation" / study)
    parser.add_argument("--report-only", action="store_true", help="take what was run as it is, train nothing")
    return parser


def ran(study: Path, run_dir: Path, *, report_only: bool) -> bool:
    """Run a study file, or go on with it; whether it ended well."""
    command = [sys.executable, "-m", "edgecompress", "run", str(study), "--out", str(run_dir)]
    if report_only or subprocess.run(command, check=False).returncode == 0:
        return True
    print(f"{study.stem}: the run did not end well; the same command goes on from there", file=sys.stderr)
    return False


def write(out: Path, results: dict[str, Any], table: str) -> None:
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "table.md", table)
    print(table)


def sizes(counted: dict[str, Any], ecz: dict[str, Any]) -> tuple[str, str, str]:
    """Cells of a table: counted as in the paper, with the codes' tables, the real file."""
    return (
        f"**{counted['ratio']:.1f}×** ({counted['huffman_bytes'] / 1000:.1f} kB)",
        f"{counted['ratio_with_tables']:.1f}×",
        f"{counted['dense_bytes'] / ecz['file_bytes']:.1f}× ({ecz['file_bytes']:,} B)",
    )


def compressed(file: Path, run_dir: RunDir, recipe: str) -> dict[str, Any]:
    """All that is known of one recipe: the study, errors (with each image's), the counts, the trainings, the packed file."""
    study = read_study(file)
    plan = run_dir.read_json("plan.json")
    keys = [node["key"] for node in plan["recipes"][recipe]]
    records = [_record(run_dir, key) for key in (keys[0], keys[-1])]
    notes = records[1].steps[-1].notes
    folders = [run_dir.path("files", "model", key) for key in (keys[0], keys[-1])]
    return {
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
