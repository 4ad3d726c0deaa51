"""Between the study and the agent: the job that measures a variant, and the accuracy that its predictions amount to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from edgecompress_agent import wire

from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed
from edgecompress.records import Accuracy
from edgecompress.rundir import file_sha256
from edgecompress.study import MeasureSpec

if TYPE_CHECKING:
    from edgecompress.data import Dataset, Part

CHUNK = 512


def part_of(dataset: Dataset, name: str) -> Part:
    """The part of a dataset by its name in a study: test or val."""
    part: Part = {"test": dataset.test, "val": dataset.val}[name]
    return part


def write_images(part: Part, count: int, path: Path) -> None:
    """Write the first `count` images as a .npy of uint8 (N, H, W, C), in chunks: a large set never lies in memory whole."""
    first = part.images(np.arange(1))
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *first.shape[1:]))
    for start in range(0, count, CHUNK):
        indices = np.arange(start, min(start + CHUNK, count))
        out[indices] = part.images(indices)
    out.flush()


def blob(path: Path) -> wire.Blob:
    """A file as a job names it. Many jobs have the same images: the hash is found once for each state of a file."""
    found = path.stat()
    return wire.Blob(
        name=path.name, sha256=_sha256(path, found.st_size, found.st_mtime_ns, found.st_ino), bytes=found.st_size
    )


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    return file_sha256(path)


def engine_for(profile: DeviceProfile, format: str) -> str:
    """The engine that a device has for files of an export format (or file type). StepFailed: its profile names none."""
    file_type = format.partition("-")[0]
    engine = profile.engines.get(file_type)  # type: ignore[call-overload]
    if engine is None:
        raise StepFailed(f"device {profile.name} names no engine for {file_type} files (engines in its profile)")
    return str(engine)


def make_job(
    job_id: str,
    artifact: Path,
    images: Path | None,
    *,
    normalisation: tuple[Sequence[float], Sequence[float]],
    profile: DeviceProfile,
    measure: MeasureSpec,
) -> tuple[wire.Job, dict[str, Path]]:
    """The job for one variant on one device, and the files it needs by their SHA-256. normalisation: mean and std per channel."""
    engine = engine_for(profile, "tflite" if artifact.suffix == ".tflite" else "onnx")
    artifact_blob = blob(artifact)
    files = {artifact_blob.sha256: artifact}
    images_blob = None
    if images is not None:
        images_blob = blob(images)
        files[images_blob.sha256] = images
    job = wire.Job(
        protocol=wire.PROTOCOL,
        job_id=job_id,
        artifact=artifact_blob,
        engine=engine,
        providers=profile.providers,
        threads=measure.threads,
        cpus=profile.cpus,
        images=images_blob,
        mean=tuple(normalisation[0]),
        std=tuple(normalisation[1]),
        warmup_s=measure.warmup_s,
        min_s=measure.min_s,
        blocks=measure.blocks,
        score=images is not None and measure.score_on != "none",
        score_images=measure.score_images,
        sensor=profile.sensor,
        sensor_options=profile.sensor_options,
        power=power_plan(profile, measure),
        profile_ops=measure.profile_ops,
        deadline_s=measure.timeout_s,
    )
    return job, files


def power_plan(profile: DeviceProfile, measure: MeasureSpec) -> wire.PowerPlan | None:
    """How the agent measures power; None where nothing reads it, or nobody asks. What a meter at the workstation changes in
    it is known once the meter is open: the session does that."""
    if profile.sensor == "none" or measure.power is None:
        return None
    return wire.PowerPlan(**measure.power.model_dump())


def score(predictions: Sequence[Sequence[int]], labels: np.ndarray, split: str, num_classes: int) -> Accuracy:
    """Top-1 and top-5 of the predictions (best first) that a device made for the first len(predictions) images of a part.

    StepFailed when they cannot be predictions for these images: the answer of a device is not trusted.
    """
    if not 0 < len(predictions) <= len(labels):
        raise StepFailed(f"the device answered {len(predictions)} predictions for {len(labels)} images")
    if any(not 0 <= p < num_classes for ranked in predictions for p in ranked) or not all(predictions):
        raise StepFailed(f"the device answered predictions outside the {num_classes} classes")
    pairs = list(zip(predictions, labels.tolist(), strict=False))
    correct = [ranked[0] == label for ranked, label in pairs]
    within = [label in ranked[:5] for ranked, label in pairs]
    return Accuracy(
        split=split,
        images=len(pairs),
        top1=sum(correct) / len(pairs),
        top5=sum(within) / len(pairs) if num_classes > 5 else None,
        correct="".join("1" if c else "0" for c in correct),
    )
