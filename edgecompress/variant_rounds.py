"""What is measured of a variant, whoever does it and when: each of its rounds on a board, and all of them put together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress_agent import wire

from edgecompress import measurement, operators, rounds
from edgecompress.board_line import BoardLine
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed
from edgecompress.plan import Plan, Variant
from edgecompress.records import Artifact, Measurement, Round
from edgecompress.rundir import RunDir, content_key
from edgecompress.sessions import Sessions
from edgecompress.steps import StepId
from edgecompress.study import StudySpec

if TYPE_CHECKING:
    from edgecompress.data import Dataset


class JobFailed(StepFailed):
    """The board did its part and answered that the job failed: no fault of the board, and no reason to ask another one."""


class VariantRounds:
    """The rounds of a run's variants. dataset: loads the study's data, once, whatever thread asks."""

    def __init__(
        self, study: StudySpec, run_dir: RunDir, plan: Plan, *, sessions: Sessions, dataset: Callable[[], Dataset]
    ) -> None:
        self._study, self._dir, self._plan, self._sessions, self._data = study, run_dir, plan, sessions, dataset
        self._writing_images = threading.Lock()

    def steps(self, variant: Variant) -> list[StepId]:
        """Stage and key of each round of a variant."""
        return [("round", content_key(variant.measurement, number)) for number in range(self._study.measure.rounds)]

    def begun(self, variant: Variant) -> tuple[str, int] | None:
        """The board that an earlier run began the variant on, and how many rounds it got done in a row there."""
        made = self._made(variant)
        if made[0] is None or made[0].member is None:
            return None
        board = made[0].member
        return board, next((i for i, r in enumerate(made) if r is None or r.member != board), len(made))

    def discard_of_others(self, variant: Variant, board: str) -> None:
        """Let go of the rounds that other boards began: they are no part of this one's measurement."""
        for step, made in zip(self.steps(variant), self._made(variant), strict=True):
            if made is not None and made.member != board:
                self._dir.discard(*step)

    def measure(self, variant: Variant, number: int, member: DeviceProfile, line: BoardLine, label: str) -> Round:
        """One round on one board. JobFailed: it answered so; StepFailed, UserError: as its session raises them."""
        artifact = self._dir.record("artifact", variant.artifact.key, Artifact)
        assert artifact is not None
        dataset = self._data()
        job, files = measurement.make_job(
            # The run's own random name is part of it: an old answer that a device still holds is never taken for this one.
            content_key(variant.measurement, number, artifact.sha256, self._dir.run_id),
            self._dir.path(artifact.file),
            self._images(),
            normalisation=(dataset.mean, dataset.std),
            profile=member,
            measure=rounds.share(self._study.measure, number),
        )
        line.restart(f"{label}: connecting", 1.0)
        session = self._sessions.get(variant.device, member)
        if self._study.measure.cooldown_s:
            line.restart(f"cooling before {label}", 1.0)
            line.rest(self._study.measure.cooldown_s)
        started = time.monotonic()
        result = operators.measure(session, job, files, self._dir.path(artifact.file), progress=line, label=label)
        made = Round(wire.to_json(job), wire.to_json(result), time.monotonic() - started, member.name)
        if result.status != "ok":
            if result.blocks:  # it ended late: what it had measured by then is no result, and is not lost either
                self._dir.commit("unfinished", content_key(variant.measurement, number), made)
            reason = result.reason or "the agent gave no reason"
            raise JobFailed(reason if member.name == variant.device else f"{member.name}: {reason}")
        return made

    def put_together(self, variant: Variant) -> Measurement:
        """The measurement of a variant whose rounds are all there."""
        found = [r for r in self._made(variant) if r is not None]
        result = rounds.merge([wire.from_json(wire.Result, r.result) for r in found])
        accuracy, score_on = None, self._study.measure.score_on
        if score_on != "none":
            dataset = self._data()
            part = measurement.part_of(dataset, score_on)
            accuracy = measurement.score(result.predictions or (), part.labels, score_on, dataset.num_classes)
        return Measurement(
            device=variant.device,
            job=found[0].job,
            result=wire.to_json(result),
            accuracy=accuracy,
            seconds=sum(r.seconds for r in found),
            member=found[0].member,
        )

    def _made(self, variant: Variant) -> list[Round | None]:
        return [self._dir.record(*step, Round) for step in self.steps(variant)]

    def _images(self) -> Path:
        """The images that devices are given: those to score on, or, unscored, some of the validation part for the timing."""
        measure = self._study.measure
        name = "val" if measure.score_on == "none" else measure.score_on
        part = measurement.part_of(self._data(), name)
        limit = 256 if measure.score_on == "none" else measure.score_images
        count = min(len(part), limit or len(part))
        key = content_key("images", self._plan.data_key, name, count)
        path = self._dir.path("files", "images", key, f"{name}.npy")
        with self._writing_images:
            if not path.exists():
                self._dir.make_folder(
                    "images", key, lambda folder: measurement.write_images(part, count, folder / path.name)
                )
            measurement.blob(path)  # its hash is kept: not every thread shall find it anew
        return path
