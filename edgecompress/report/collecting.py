"""Read back from a run directory what a report is made of."""

from __future__ import annotations

from edgecompress.records import Artifact, Failure, Measurement, ModelRecord
from edgecompress.report.rows import ArtifactKey, ReportInput, VariantKey
from edgecompress.rundir import RunDir

NOT_DONE = "not done yet: the run was stopped before it; run the study again to go on"


def read(run_dir: RunDir) -> ReportInput:
    """The records of a run, finished or not. UserError when it is no run directory or a record cannot be read."""
    plan, run = run_dir.read_json("plan.json"), run_dir.read_json("run.json")
    models = {recipe: _model(run_dir, [node["key"] for node in chain]) for recipe, chain in plan["recipes"].items()}
    artifacts: dict[ArtifactKey, Artifact | Failure] = {}
    measurements: dict[VariantKey, Measurement | Failure | None] = {}
    for variant in plan["variants"]:
        node, key = variant["artifact"], variant["measurement"]
        artifact = run_dir.record("artifact", node["key"], Artifact) or run_dir.failure("artifact", node["key"])
        if artifact is not None:
            artifacts[variant["recipe"], variant["format"], node["activation_type"]] = artifact
        measurements[variant["recipe"], variant["format"], variant["device"]] = run_dir.record(
            "measurement", key, Measurement
        ) or run_dir.failure("measurement", key)
    return ReportInput(
        study=plan["study"],
        data=run_dir.read_json("data.json") if run_dir.path("data.json").exists() else {},
        models=models,
        artifacts=artifacts,
        measurements=measurements,
        devices=plan["devices"],
        created_unix_s=run["created_unix_s"],
        edgecompress_version=run["edgecompress"],
        command=run["command"],
        host={key: run[key] for key in ("host", "python", "versions") if key in run},
    )


def _model(run_dir: RunDir, chain: list[str]) -> ModelRecord | Failure:
    """The last model of a recipe's chain, or the first failure on the way to it."""
    record = run_dir.record("model", chain[-1], ModelRecord)
    if record is not None:
        return record
    failures = (run_dir.failure("model", key) for key in chain)
    return next((f for f in failures if f is not None), Failure(stage="model", reason=NOT_DONE))
