"""The order of the stages: baseline, recipes, exports, measurements, report. The only module that knows it.

A step is done when its record exists under its key; done steps are not repeated and nothing heavy is imported for them. A
step that fails is recorded with its reason, what depends on it fails with it, and everything else goes on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import data as datasets
from edgecompress.benches import check_before
from edgecompress.errors import UserError
from edgecompress.measuring import Measuring
from edgecompress.on_device import DeviceBench
from edgecompress.plan import ArtifactNode, ModelNode, Plan, Variant, make_plan, search_key, versions
from edgecompress.pools import Device
from edgecompress.progress import SILENT, Progress
from edgecompress.records import Artifact, Measurement, ModelRecord, TrainRecord
from edgecompress.rundir import RunDir, file_sha256
from edgecompress.sessions import Sessions
from edgecompress.steps import Steps
from edgecompress.study import Step, StudySpec

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.contract import Asked, Bench
    from edgecompress.data import Dataset


@dataclass(frozen=True)
class Outcome:
    """What a run came to: where it lies, how many steps were done now and how many before, and the variants that failed."""

    run_dir: Path
    done_now: int
    done_before: int
    failed: tuple[Variant, ...]


def run(
    study: StudySpec,
    devices: Mapping[str, Device],
    run_dir: RunDir,
    *,
    command: str,
    progress: Progress = SILENT,
    skip_absent: bool = False,
) -> Outcome:
    """Do what of the study is not done yet in `run_dir`, and leave plan, records and failures there (the report is separate).

    Raises UserError before anything is done when the request cannot be met (no such device, host key not pinned, weights of
    another model, an extra that is not installed). skip_absent: devices that are away do not count; they are tried once more
    when it is their turn, and then their rows say so.
    """
    from edgecompress.board.bundle import build

    agent_sha256 = build()[1]
    plan = make_plan(study, devices, agent_sha256=agent_sha256)
    with run_dir.locked():
        return _Run(study, devices, run_dir, plan, progress=progress, skip_absent=skip_absent).all(command)


class _Run:
    """One pass over a plan. Datasets, models and connections are opened when a step first needs them."""

    def __init__(
        self, study: StudySpec, devices: Mapping[str, Device], run_dir: RunDir, plan: Plan, *,
        progress: Progress, skip_absent: bool,
    ) -> None:  # fmt: skip
        self.study, self.devices, self.dir, self.plan, self.progress = study, devices, run_dir, plan, progress
        self._skip_absent = skip_absent
        self._dataset: Dataset | None = None
        self._loading = threading.Lock()
        self._sessions = Sessions(devices, progress)
        self.steps = Steps(run_dir, progress)

    def all(self, command: str) -> Outcome:
        try:
            self._check_before()
            self.dir.write_json("plan.json", self.plan)
            if not self.dir.path("run.json").exists():
                self.dir.write_json("run.json", _run_facts(command))
            for recipe, chain in self.plan.recipes.items():
                for node in chain:
                    self._model(recipe, node)
            self._restore_files()
            for artifact in self.plan.artifacts.values():
                self._artifact(artifact)
            for artifact in self.plan.artifacts.values():
                self.dir.drop_scratch(f"export-{artifact.model}")
            Measuring(
                self.study, self.devices, self.dir, self.plan,
                steps=self.steps, sessions=self._sessions, dataset=self._data, progress=self.progress,
            ).all()  # fmt: skip
        finally:
            self._sessions.close()
        if self.steps.done_now:
            self.dir.write_json("run.json", _run_facts(command))
        failed = tuple(v for v in self.plan.variants if any(step in self.steps.failed for step in _steps_of(v)))
        return Outcome(self.dir.root, self.steps.done_now, self.steps.done_before, failed)

    def _check_before(self) -> None:
        """Find out what cannot work before hours are spent on what can: extras, and every device that is needed."""
        from edgecompress.export.contract import check_installed

        for artifact in self.plan.artifacts.values():
            if self.dir.record("artifact", artifact.key, Artifact) is None:
                check_installed(artifact.format)
        measuring = []
        for name in self.devices:
            keys = [v.measurement for v in self.plan.variants if v.device == name]
            if any(self.dir.record("measurement", key, Measurement) is None for key in keys):
                measuring.append(name)
        needed: dict[str, list[str]] = {}
        asked_for: list[Asked] = []
        for recipe, chain in self.plan.recipes.items():
            for number, node in enumerate(chain):
                asked = node.measures
                if asked is not None and self.dir.record("model", node.key, ModelRecord) is None:
                    needed.setdefault(str(asked.device), []).append(f"recipes.{recipe}, step {number} ({node.method})")
                    asked_for.append(asked)
        self._sessions.check([*dict.fromkeys([*measuring, *needed])], skip_absent=self._skip_absent, needed=needed)
        for asked in dict.fromkeys(asked_for):
            check_before(str(asked.device), asked.format, self._sessions.of, energy=asked.energy)
        self._check_steps()

    def _check_steps(self) -> None:
        """What a step cannot be given, while the baseline's training is still to be saved by it; later it is a step that fails."""
        baseline = next(iter(self.plan.recipes.values()))[0]
        if self.dir.record("model", baseline.key, ModelRecord) is not None:
            return
        from edgecompress.models import build
        from edgecompress.recipe import check_before as check_steps

        def untrained() -> tuple[nn.Module, tuple[int, ...]]:
            dataset, spec = self._data(), self.study.model.model_copy(update={"weights": None})
            shape = dataset.in_shape
            return build(spec, num_classes=dataset.num_classes, in_shape=shape, seed=self.study.seed).eval(), shape

        for recipe, steps in self.study.recipes.items():
            check_steps(steps, untrained, self.progress.say, where=f"recipes.{recipe}, ")

    # --- the steps -------------------------------------------------------------------------------------------------

    def _model(self, recipe: str, node: ModelNode) -> None:
        step = ("model", node.key)
        if step in self.steps.failed:
            return
        record = self.dir.record("model", node.key, ModelRecord)
        if record is not None and not _intact_model(self.dir.path(record.directory)):
            self._make_again("model", node.key, record.directory)
        if node.parent is None:
            # Where the baseline itself cannot be, the request is wrong and nothing else can be done.
            self.steps.do(step, "baseline", ModelRecord, partial(self._baseline, node), raises=(UserError,))
            return
        make = partial(self._recipe_step, recipe, node)
        self.steps.do(step, f"{recipe}: {node.method}", ModelRecord, make, needs=[("model", node.parent)])

    def _baseline(self, node: ModelNode) -> ModelRecord:
        from edgecompress.models import build
        from edgecompress.train import fit

        dataset = self._data()
        model = build(
            self.study.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape, seed=self.study.seed
        )
        trainings: tuple[TrainRecord, ...] = ()
        spec = self.study.trains_baseline
        if spec is not None:
            checkpoints, label = self.dir.scratch(node.key) / "training-0", "baseline training"
            record = fit(
                model, dataset, spec, seed=self.study.seed, checkpoints=checkpoints, progress=self.progress, label=label
            )
            trainings = (record,)
        weights = self.study.model.weights
        return self._save_model(node, model, trainings=trainings, weights=weights.name if weights else None, steps=())

    def _recipe_step(self, recipe: str, node: ModelNode) -> ModelRecord:
        from edgecompress.models.checkpoint import load_model
        from edgecompress.recipe import run_steps

        chain = self.plan.recipes[recipe]
        parent = self.dir.record("model", str(node.parent), ModelRecord)
        assert parent is not None and node.method is not None and node.params is not None
        model = load_model(self.dir.path(parent.directory))
        teacher = load_model(self.dir.path("files", "model", chain[0].key))
        model, steps = run_steps(
            model, (Step(method=node.method, params=node.params),), data=self._data(), seed=self.study.seed + chain.index(node),
            scratch=self.dir.scratch(node.key), progress=self.progress, teacher=teacher, benches=self._bench,
            shared=self.dir.path("searches", search_key(self.study, node.method)),
        )  # fmt: skip
        return self._save_model(
            node, model, trainings=parent.trainings, weights=parent.weights, steps=(*parent.steps, *steps)
        )

    def _restore_files(self) -> None:
        """What steps wrote outside of the run directory, where it is gone. The last to write a file has it, as in the first run."""
        from edgecompress.recipe import restore_files

        for node in (node for chain in reversed(self.plan.recipes.values()) for node in reversed(chain)):
            record = self.dir.record("model", node.key, ModelRecord)
            if record is not None and record.steps and node.method is not None and node.params is not None:
                restore_files(Step(method=node.method, params=node.params), record.steps[-1], self.progress.say)

    def _save_model(self, node: ModelNode, model: nn.Module, **facts: Any) -> ModelRecord:
        from edgecompress.cost import count
        from edgecompress.evaluate import accuracy
        from edgecompress.models.checkpoint import save_model

        dataset = self._data()
        scored = accuracy(model, dataset, "test", progress=self.progress)
        cost = count(model, dataset.in_shape)
        folder, _ = self.dir.make_folder("model", node.key, lambda folder: save_model(folder, model))
        return ModelRecord(directory=str(folder.relative_to(self.dir.root)), cost=cost, accuracy=scored, **facts)

    def _artifact(self, node: ArtifactNode) -> None:
        label = f"export {node.format} of {self._recipes_of(node.model)}"
        record = self.dir.record("artifact", node.key, Artifact)
        if record is not None and not _intact(self.dir.path(record.file), record.sha256):
            self._make_again("artifact", node.key, record.file)
        needs = [("model", node.model)]
        self.steps.do(("artifact", node.key), label, Artifact, partial(self._export, node), needs=needs)

    def _export(self, node: ArtifactNode) -> Artifact:
        from dataclasses import replace

        from edgecompress.export.contract import export_artifact
        from edgecompress.models.checkpoint import load_model

        model = load_model(self.dir.path("files", "model", node.model))
        profile_choice = node.activation_type or "int8"
        folder, artifact = self.dir.make_folder(
            "artifact", node.key,
            lambda folder: export_artifact(
                model, node.format, folder, dataset=self._data(), activation_type=profile_choice,
                cache=self.dir.scratch(f"export-{node.model}"), progress=self.progress,
            ),
        )  # fmt: skip
        return replace(artifact, file=str((folder / artifact.file).relative_to(self.dir.root)))

    # --- what steps share ------------------------------------------------------------------------------------------

    def _data(self) -> Dataset:
        with self._loading:
            if self._dataset is None:
                self._dataset = datasets.load(self.study.data, seed=self.study.seed)
                self.dir.write_json("data.json", self._dataset.record())
            return self._dataset

    def _bench(self, device: str | None, format: str) -> Bench:
        """What a step measures with while it works, on a device of this run: the first one unless it names another."""
        session = self._sessions.of(next(iter(self.devices)) if device is None else device)
        return DeviceBench(session, format, threads=self.study.measure.threads, progress=self.progress)

    def _make_again(self, stage: str, key: str, file: str) -> None:
        self.progress.say(f"{self.dir.path(file)} is damaged or gone: it is made again")
        self.dir.discard(stage, key)

    def _recipes_of(self, model_key: str) -> str:
        return ", ".join(name for name, chain in self.plan.recipes.items() if chain[-1].key == model_key)


def _steps_of(variant: Variant) -> tuple[tuple[str, str], ...]:
    artifact = variant.artifact
    return ("model", artifact.model), ("artifact", artifact.key), ("measurement", variant.measurement)


def _intact(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _intact_model(directory: Path) -> bool:
    """Whether a model directory is what was written, by the hashes in its model.json (read here without torch)."""
    try:
        files = json.loads((directory / "model.json").read_text())["files"]
        return all(_intact(directory / name, sha256) for name, sha256 in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _run_facts(command: str) -> dict[str, Any]:
    """About this run, for the report: when, by which command, with which versions."""
    import platform

    from edgecompress.version import __version__

    tools = versions(
        "torch", "torchvision", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert", "numpy"
    )
    return {
        "command": command,
        "created_unix_s": round(time.time(), 3),
        "edgecompress": __version__,
        "python": platform.python_version(),
        "host": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": tools,
    }
