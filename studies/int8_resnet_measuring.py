"""What `int8_resnet` measures on its files: accuracy in their engines, agreement with the simulated network, latency."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import measurement, stats
from edgecompress.errors import StepFailed

if TYPE_CHECKING:
    from int8_resnet import Place

STEP = 1.01
"""Output steps that count as one: the engines' outputs are floats."""


def _session(place: Place) -> Any:
    from edgecompress.board.session import connect
    from edgecompress.studyfile import read_device

    update = {"cpus": (place.given.cpu,), "workdir": str((place.given.state / "agent").resolve())}
    return connect(read_device("local").model_copy(update=update))


def _ask(session: Any, place: Place, file: Path, images: Path | None, **measure: Any) -> Any:
    from edgecompress.study import MeasureSpec

    normalisation = (place.data.mean, place.data.std) if images is not None else ((), ())
    spec = MeasureSpec(rounds=1, threads=1, power=None, score_on="none" if images is None else "test", **measure)
    job, files = measurement.make_job(
        uuid.uuid4().hex[:16], file, images, normalisation=normalisation, profile=session.profile, measure=spec
    )
    result = session.measure(job, files)
    if result.status != "ok":
        raise StepFailed(f"{file.name}: {result.reason}")
    return result


def score(place: Place, file: Path) -> dict[str, Any] | None:
    """Which test images the engine gets right, one at a time, with the settings that every measurement here has."""
    if not file.exists():
        return None
    images = place.given.state / "test.npy"
    if not images.exists():
        measurement.write_images(place.data.test, len(place.data.test), images)
    with _session(place) as session:
        result = _ask(session, place, file, images, warmup_s=0.1, min_s=0.2, blocks=2)
    scored = measurement.score(result.predictions, place.data.test.labels, "test", place.data.num_classes)
    return {"top1": scored.top1, "correct": scored.correct}


def _images(place: Place) -> np.ndarray:
    from edgecompress.data import normalise

    test = place.data.test
    return normalise(test.images(np.arange(len(test))), place.data.mean, place.data.std)


def exact(place: Place, file: Path) -> dict[str, Any] | None:
    from edgecompress.export.parity import file_logits

    if not file.exists():
        return None
    right = file_logits(file, _images(place)).argmax(1) == place.data.test.labels
    return {"top1": float(right.mean()), "correct": "".join("1" if r else "0" for r in right)}


def agreement(place: Place, file: Path, bits: int) -> dict[str, Any] | None:
    """Differences between a file's outputs, its sums exact, and those of the simulated network, in steps of the output's scale."""
    import torch

    from edgecompress import quantization
    from edgecompress.compress.quantize.simulation import simulated
    from edgecompress.export.parity import file_logits
    from edgecompress.models.checkpoint import load_model

    if not file.exists():
        return None
    images, model = _images(place), load_model(place.folder / f"qat-{bits}" / "model")
    network = simulated(model, bits=bits, engine="onnxruntime" if file.suffix == ".onnx" else "litert")
    with torch.no_grad():
        expected = np.concatenate([network(part).numpy() for part in torch.from_numpy(images).split(256)])
    low, high = quantization.get(model).ranges["linear"]
    steps = np.abs(file_logits(file, images) - expected) / ((high - low) / 255)
    return {
        "outputs": int(steps.size),
        "equal": float((steps < STEP - 1).mean()),
        "within_one_step": float((steps < STEP).mean()),
        "largest_difference_steps": float(steps.max()),
        "simulated_top1": float((expected.argmax(1) == place.data.test.labels).mean()),
    }


def latency(place: Place, number: int) -> dict[str, Any] | None:
    """ms of each file in one round, every second one backwards: the 10 % quantile (what it takes undisturbed) and the median."""
    files = place.files()
    if not all(file.exists() for file in files.values()):
        return None
    taken: dict[str, dict[str, float]] = {}
    seconds = place.given.seconds
    with _session(place) as session:
        for way in files if number % 2 else reversed(files):
            result = _ask(session, place, files[way], None, warmup_s=seconds / 3, min_s=seconds, blocks=3)
            ns = [n for block in result.blocks for n in block.latencies_ns]
            taken[way] = {"p10_ms": stats.quantile(ns, 0.1) / 1e6, "p50_ms": stats.quantile(ns, 0.5) / 1e6}
    return {"load": round(os.getloadavg()[0], 2), "ms": taken}
