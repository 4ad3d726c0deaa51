"""Training: of the baseline, of every fine-tuning and of distillation. One loop, so that all are held to the same.

What it keeps: a mask's zeros are exactly zero after every optimiser step (gradients of dropped weights are zeroed too, so
momentum and weight decay have nothing to work on); weights that share a value are trained as that one value (the sum of
their gradients) and stay equal; the same seed, machine and number of threads give the same weights; an
interrupted run that is started again with the same inputs ends, on a CPU, in the very bits of an uninterrupted one.
Loss or weights that are no longer finite stop it with a StepFailed that says where and what to try.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import loop, resume
from edgecompress.errors import StepFailed, UserError
from edgecompress.evaluate import device_of
from edgecompress.losses import CrossEntropy
from edgecompress.optim import fabric_precision
from edgecompress.progress import SILENT, Progress
from edgecompress.records import TrainRecord, from_json, to_json
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from edgecompress.compress.contract import Loss
    from edgecompress.data import Dataset


def fit(
    model: nn.Module,
    data: Dataset,
    spec: TrainSpec,
    *,
    loss: Loss | None = None,
    seed: int = 0,
    checkpoints: Path | None = None,
    progress: Progress = SILENT,
    label: str = "training",
    devices: int | None = None,
) -> TrainRecord:
    """Train `model` in place on `data.train` and say what it took; it comes back on the device it was on, in eval mode.

    loss: default cross-entropy with the spec's label smoothing; a given loss sees to its own smoothing, and must be
    picklable where several processes train. checkpoints: a directory where each finished epoch is kept; a checkpoint there of
    the same training (spec, seed, data, first weights, masks, codes) is gone on from, any other is replaced. None: no checkpoints.
    devices: GPUs or, without any, CPU processes (each a share of every batch, averaged gradients); None: every GPU, or one CPU
    process. With more than one, Python's usual rule for spawned processes holds: a script needs `if __name__ == "__main__"`.
    spec.epochs 0 changes nothing and gives a record that says so.

    Raises StepFailed when the loss or the weights stop being finite, UserError for a request that this machine or model
    cannot fulfil.
    """
    import torch
    from lightning_fabric import Fabric

    from edgecompress.models.building import check_output

    gpus = torch.cuda.device_count()
    count = devices or max(1, gpus)
    if gpus and count > gpus:
        raise UserError(f"{count} GPUs asked for and {gpus} are here", fix="Ask for fewer devices.")
    if len(data.train) < 2 * count:
        raise UserError(f"{len(data.train)} training images are too few to train on", fix="Use a larger training part.")
    kind = "cuda" if gpus else "cpu"
    precision = fabric_precision(spec.precision, kind)
    loss = loss or CrossEntropy(spec.label_smoothing)
    if spec.epochs == 0:
        return TrainRecord(0, 0.0, 0, math.nan, (), kind, precision, seed)

    check_output(model, num_classes=data.num_classes, in_shape=data.in_shape, where=f"data {data.name}")
    home = device_of(model)
    key = resume.training_key(model, data, spec, seed, count, loss) if checkpoints else ""
    job = loop.Job(spec, seed, checkpoints, key, label, precision)
    # The caller's random numbers are not ours to use up.
    with torch.random.fork_rng(devices=range(gpus) if gpus else []):
        fabric = Fabric(
            accelerator=kind, devices=count, precision=precision, strategy="ddp_spawn" if count > 1 else "auto"
        )
        if count == 1:
            record = loop.run(fabric, model, data, loss, job, progress)
        else:
            progress.say(f"{label}: {count} processes, {spec.epochs} epochs (no bar: the processes train on their own)")
            record = _spread(fabric, model, data, loss, job)
    model.to(home)
    model.eval()
    return record


_ANSWER = "answer"


class _Work:
    """What a process is given beside the model. Not a dataclass: Fabric's launcher walks into those, and fails on frozen ones.

    (The model is an argument of its own so that the launcher takes its weights out of the memory the processes share.)
    """

    def __init__(self, data: Dataset, loss: Loss, job: loop.Job, answer: Path) -> None:
        self.data, self.loss, self.job, self.answer = data, loss, job, answer


def _spread(fabric: Fabric, model: nn.Module, data: Dataset, loss: Loss, job: loop.Job) -> TrainRecord:
    """Train in the fabric's processes, and give the model what they have made of it."""
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        fabric.launch(_process, model, _Work(data, loss, job, Path(folder)))
        answer = resume.read(Path(folder), _ANSWER)
    if answer is None:
        raise StepFailed(f"{job.label}: the processes ended without a result")
    if answer["failure"] is not None:
        raise StepFailed(answer["failure"])
    model.load_state_dict(answer["model"])
    record: TrainRecord = from_json(TrainRecord, answer["record"])
    return record


def _process(fabric: Fabric, *given: Any) -> None:
    """One of the processes. The first leaves the answer in a file: the launcher's pipe holds up what is larger than 64 KiB."""
    model, work = given
    answer: dict[str, Any] = {"key": _ANSWER, "failure": None, "record": None, "model": {}}
    try:
        answer["record"] = to_json(loop.run(fabric, model, work.data, work.loss, work.job, SILENT))
        answer["model"] = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    except StepFailed as failure:
        answer["failure"] = str(failure)
    if fabric.is_global_zero:
        resume.write(work.answer, answer)
