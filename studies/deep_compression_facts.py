"""What the studies of Deep Compression take out of a run directory, and the packed file of what was made there."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from edgecompress.errors import StepFailed
from edgecompress.records import ModelRecord
from edgecompress.rundir import RunDir
from edgecompress.studyfile import read_study


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
