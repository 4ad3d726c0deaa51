"""Distillation on MNIST: the experiment of Hinton, Vinyals and Dean (2015, section 3), with fewer epochs.

A teacher of two hidden layers of 1200 units is trained with dropout on images moved by up to two pixels. Per seed a student of
two hidden layers of 800 is trained on the unmoved images twice from the same first weights and in the same order: on the labels
alone without any regularisation, and under the teacher's softened outputs (T = 20). Smaller students follow over several T.
One teacher is for all seeds, as in the paper, or (--teachers N) seed s has teacher s mod N.

The students' learning rate is the plain ones' best on 6,000 images held back (--choose), then all 60,000 are trained on and
the 10,000 test images are looked at when everything is trained. A training is a file in the state folder, so that a killed
study goes on where it was. `python studies/mnist_distillation.py --help`.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mnist_distillation_report as report
import numpy as np

from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.data import Dataset

TEACHER = {"dropout": 0.5, "input_dropout": 0.2}
SMALL_TEMPERATURES = (1.0, 2.5, 4.0, 8.0, 20.0)


@dataclass(frozen=True)
class Settings:
    """What makes a result. Adam, cosine schedule, no weight decay; lr at the start. alpha: weight of the soft targets."""

    epochs: int
    lr: float
    batch_size: int
    alpha: float
    teachers: int


@dataclass(frozen=True)
class Job:
    """One training. hidden: units of each of two hidden layers. temperature: None trains on the labels alone."""

    seed: int
    hidden: int
    temperature: float | None = None
    teacher: bool = False

    @property
    def name(self) -> str:
        kind = "teacher" if self.teacher else "plain" if self.temperature is None else f"T{self.temperature:g}"
        return f"seed-{self.seed}-{self.hidden}-{kind}"


def jobs(seeds: int, teachers: int, small: list[int]) -> list[Job]:
    """The teachers, then the paper's pair for every seed, then the small students."""
    found = [Job(number, 1200, teacher=True) for number in range(teachers)]
    for seed in range(seeds):
        found += [Job(seed, 800), Job(seed, 800, 20.0)]
    for seed in range(seeds):
        for hidden in small:
            found += [Job(seed, hidden), *(Job(seed, hidden, t) for t in SMALL_TEMPERATURES)]
    return found


def main() -> int:
    given = _arguments()
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # Adam's squares of vanishing gradients are denormal, and can be slow
    shared = {"batch_size": given.batch, "alpha": given.alpha, "teachers": given.teachers}
    settings = {
        "teacher": Settings(given.teacher_epochs, given.teacher_lr, **shared),
        "student": Settings(given.student_epochs, given.student_lr, **shared),
    }
    plain, moved = _mnist(given.data, whole=not given.choose)
    ends = time.monotonic() + 60 * given.minutes
    todo = jobs(given.seeds, given.teachers, given.small)
    if given.choose:
        todo = [Job(seed, 800) for seed in range(given.seeds)]
    for job in todo:
        kind = "teacher" if job.teacher else "student"
        _same_settings(given.state / f"settings-{kind}.json", settings[kind], given.choose)
        if (given.state / f"{job.name}.json").exists():
            continue
        if time.monotonic() > ends:
            print("time is up; the same command goes on from here", flush=True)
            break
        _train(given.state, settings[kind], job, moved if job.teacher else plain)
    done = [job for job in todo if (given.state / f"{job.name}.json").exists()]
    if len(done) < len(todo) and not given.choose and not given.early:
        return 1  # the test images are for the end
    rows = [_scored(given.state, job, plain, "val" if given.choose else "test") for job in done]
    if given.choose:
        for row in rows:
            print(row["name"], row["errors"], "errors on validation", flush=True)
        return 0
    return report.write(given.out, _about(given, settings), rows)


def _arguments() -> argparse.Namespace:
    data = os.environ.get("EDGECOMPRESS_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="folder with MNIST/raw")
    parser.add_argument("--state", type=Path, default=Path("runs/mnist_distillation"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results/quantisation/distillation_mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teachers", type=int, default=1)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--student-epochs", type=int, default=8)
    parser.add_argument("--teacher-lr", type=float, default=1e-3)
    parser.add_argument("--student-lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--small", type=int, nargs="*", default=[30], help="hidden units of the smaller students")
    parser.add_argument("--minutes", type=float, default=240, help="start no further training after this time")
    parser.add_argument("--early", action="store_true", help="report what there is when the time is up")
    parser.add_argument(
        "--choose", action="store_true", help="plain students alone, trained on 54,000 and scored on 6,000"
    )
    return parser.parse_args()


def _same_settings(path: Path, settings: Settings, choose: bool) -> None:
    wanted = {**asdict(settings), "choose": choose}
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise SystemExit(f"{path} has other settings: give another --state, or {json.loads(path.read_text())}")
    write_atomically(path, json.dumps(wanted))


def _mnist(root: Path, *, whole: bool) -> tuple[Dataset, Dataset]:
    """The data as they are and moved by up to two pixels. whole: all 60,000 training images are trained on."""
    from edgecompress import data
    from edgecompress.data import mnist
    from edgecompress.study import DataSpec

    spec = DataSpec(name="mnist", root=root, augment="none")
    plain = data.load(spec, seed=0)
    if whole:
        plain = dataclasses.replace(plain, train=mnist.load(spec).train, val_indices_sha256=None)
    return plain, dataclasses.replace(plain, augment="shift")


def _train(state: Path, settings: Settings, job: Job, data: Dataset) -> None:
    """Train one network by the package's own means and keep its weights and how it went."""
    from safetensors.torch import save

    from edgecompress.compress.contract import Context
    from edgecompress.distillation import DistillSpec, FineTuneSpec

    spec = FineTuneSpec(
        epochs=settings.epochs, lr=settings.lr, batch_size=settings.batch_size,
        optimizer="adam", weight_decay=0.0, precision="32",
    )  # fmt: skip
    # The students of a seed start from the same weights and see the same batches, whatever they are trained on.
    model = _network(job, job.seed)
    teacher = model
    if job.temperature is not None:
        teacher = _trained(state, Job(job.seed % settings.teachers, 1200, teacher=True))
        spec = spec.model_copy(update={"distill": DistillSpec(temperature=job.temperature, alpha=settings.alpha)})
    scratch = state / "checkpoints" / (f"{job.name}" if job.temperature is None else f"seed-{job.seed}")
    context = Context(data=data, seed=1000 + job.seed, teacher=teacher, scratch=scratch)
    context.train(model, spec, method=job.name)
    (record,) = context.trainings
    write_atomically(
        state / f"{job.name}.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()})
    )
    losses = [round(epoch["loss"], 5) for epoch in record.history]
    facts = {**asdict(job), "name": job.name, "seconds": round(record.seconds, 1), "losses": losses}
    write_atomically(state / f"{job.name}.json", json.dumps(facts))
    print(job.name, f"{record.seconds:.0f} s, loss {record.final_loss:.4f}", flush=True)


def _network(job: Job, seed: int) -> nn.Module:
    from edgecompress.models import build
    from edgecompress.study import ModelSpec

    args = {"hidden": job.hidden, **(TEACHER if job.teacher else {})}
    return build(ModelSpec(name="mlp", args=args), num_classes=10, in_shape=(1, 28, 28), seed=seed)


def _trained(state: Path, job: Job) -> nn.Module:
    from safetensors.torch import load_file

    from edgecompress.recipe import frozen_copy

    model = _network(job, job.seed)
    model.load_state_dict(load_file(state / f"{job.name}.safetensors"))
    return frozen_copy(model)


def _scored(state: Path, job: Job, data: Dataset, part: Any) -> dict[str, Any]:
    """A training's facts with its errors on the part, and per image whether it was right (packed bits, base64)."""
    from edgecompress.evaluate import accuracy

    scored = accuracy(_trained(state, job), data, part)
    right = np.array([hit == "1" for hit in scored.correct])
    facts: dict[str, Any] = json.loads((state / f"{job.name}.json").read_text())
    return {**facts, "errors": int((~right).sum()), "correct": base64.b64encode(np.packbits(right).tobytes()).decode()}


def _about(given: argparse.Namespace, settings: dict[str, Settings]) -> dict[str, Any]:
    import torch

    options = {
        "seeds": given.seeds, "teachers": given.teachers, "teacher-epochs": given.teacher_epochs,
        "student-epochs": given.student_epochs, "teacher-lr": given.teacher_lr, "student-lr": given.student_lr,
        "batch": given.batch, "alpha": given.alpha, "small": " ".join(map(str, given.small)),
    }  # fmt: skip
    return {
        "command": " ".join(["python studies/mnist_distillation.py", *(f"--{k} {v}" for k, v in options.items())]),
        "settings": {kind: asdict(one) for kind, one in settings.items()},
        "torch": torch.__version__, "machine": f"{platform.machine()}, 1 thread",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
