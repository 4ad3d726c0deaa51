"""The loop of every training: one epoch after the other, on one process of however many `edgecompress.train.fit` started."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import codebooks, masks, resume
from edgecompress.errors import StepFailed
from edgecompress.optim import Ema, lr_factor, make_optimizer
from edgecompress.progress import Progress
from edgecompress.records import TrainRecord
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from edgecompress.compress.contract import Loss
    from edgecompress.data import Dataset

    _Held = tuple[list[tuple[nn.Parameter, Tensor]], list[codebooks.Shared]]

_GPU_CHECK_EVERY = 16
"""Steps between looks at the loss on a GPU: each look waits for the device. On a CPU every step is looked at."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the loop must know beside model, data and loss. key: of its checkpoints; precision: Fabric's word for it."""

    spec: TrainSpec
    seed: int
    checkpoints: Path | None
    key: str
    label: str
    precision: Any


def run(fabric: Fabric, model: nn.Module, data: Dataset, loss: Loss, job: Job, progress: Progress) -> TrainRecord:
    """Train `model` in place on the fabric's device, from the job's checkpoint where there is one. StepFailed: it diverged."""
    import torch

    spec, world = job.spec, fabric.world_size
    model.train()
    model.to(memory_format=torch.channels_last)
    optimizer: Any = make_optimizer(model, spec)
    wrapped, optimizer = fabric.setup(model, optimizer)
    ema = Ema(model, spec.ema) if spec.ema else None
    dropped = masks.dropped(model)
    masks.apply(model)
    shared = codebooks.hold(model)

    steps_per_epoch = _steps(len(data.train), spec.batch_size, world)
    history: list[dict[str, float]] = []
    start, seconds_before, images_seen = 0, 0.0, 0
    saved = resume.read(job.checkpoints, job.key, progress.say)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if ema is not None:
            ema.shadow = {n: t.to(fabric.device) for n, t in saved["ema"].items()}
            ema.updates = saved["ema_updates"]
        _load_scaler(fabric, saved["scaler"])
        start, seconds_before, images_seen = saved["epoch"], saved["seconds"], saved["images"]
        history = [dict(h) for h in saved["history"]]
    by_row = getattr(loss, "by_row", None) or (lambda model, images, labels, rows: loss(model, images, labels))
    look_every = 1 if fabric.device.type == "cpu" else _GPU_CHECK_EVERY

    began = time.monotonic()
    with progress.task(job.label, spec.epochs * steps_per_epoch) as task:
        task.advance(start * steps_per_epoch)
        for epoch in range(start, spec.epochs):
            # Everything random in an epoch follows from (seed, epoch, process), so no generator's state needs keeping.
            torch.manual_seed(_mix(job.seed, epoch, fabric.global_rank))
            loss_sum, images_in_epoch = torch.zeros((), device=fabric.device), 0
            stream = _numbered_batches(data, spec.batch_size, job.seed, epoch)
            for step, (rows, images, labels) in enumerate(stream):
                if step >= steps_per_epoch:
                    break
                own = _own_share(len(images), fabric.global_rank, world)
                images, labels = images[own], labels[own]  # noqa: PLW2901
                images = images.to(fabric.device, memory_format=torch.channels_last)  # noqa: PLW2901
                labels = labels.to(fabric.device)  # noqa: PLW2901
                lr = spec.lr * lr_factor(spec, epoch * steps_per_epoch + step, steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                with fabric.autocast():
                    value = by_row(wrapped, images, labels, rows[own])
                loss_sum += value.detach() * len(images)
                images_in_epoch += len(images)
                if step % look_every == 0 or step == steps_per_epoch - 1:
                    _check(_sum(fabric, loss_sum), job, epoch, step, lr)
                _descend(fabric, wrapped, optimizer, value, (dropped, shared), spec.clip_norm)
                if ema is not None:
                    ema.update(model)
                task.advance()
                if step % 10 == 0 and fabric.device.type == "cpu":
                    task.describe(f"epoch {epoch + 1}/{spec.epochs} loss {float(value.detach()):.3f}")
            images_seen += images_in_epoch * world
            mean_loss = float(_sum(fabric, loss_sum)) / (images_in_epoch * world)
            task.describe(f"epoch {epoch + 1}/{spec.epochs} loss {mean_loss:.3f}")
            for name, tensor in model.state_dict().items():
                _check(tensor, job, epoch, step, lr, name)
            seconds = seconds_before + time.monotonic() - began
            history.append({"epoch": float(epoch + 1), "loss": mean_loss, "lr": lr, "seconds": seconds})
            if job.checkpoints is not None and fabric.is_global_zero:
                content = {
                    "key": job.key, "epoch": epoch + 1, "seconds": seconds, "images": images_seen, "history": history,
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": _scaler_state(fabric),
                    "ema": ema.shadow if ema else {}, "ema_updates": ema.updates if ema else 0,
                }  # fmt: skip
                resume.write(job.checkpoints, content)
    seconds = history[-1]["seconds"]
    if ema is not None:
        ema.store(model)
        masks.apply(model)
        codebooks.apply(model)
    model.to(memory_format=torch.contiguous_format)
    return TrainRecord(
        epochs=spec.epochs, seconds=seconds, images=images_seen, final_loss=history[-1]["loss"], history=tuple(history),
        device=_device_name(fabric.device, world), precision=str(job.precision), seed=job.seed,
        resumed_at_epoch=start if saved is not None else None,
    )  # fmt: skip


def _descend(fabric: Fabric, model: Any, optimizer: Any, value: Tensor, held: _Held, clip_norm: float | None) -> None:
    """One optimiser step that leaves dropped weights at exactly zero, and weights that share a value equal.

    Gradients of dropped weights stay out of the norm that is clipped; a shared value counts once there, with its own gradient.
    """
    import torch

    dropped, shared = held
    fabric.backward(value)
    for parameter, drop in dropped:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(drop, 0.0)
    for weights in shared:
        weights.gather()
    if clip_norm is not None:
        fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    with torch.no_grad():
        for parameter, drop in dropped:
            parameter.masked_fill_(drop, 0.0)
    for weights in shared:
        weights.spread()


def _numbered_batches(
    data: Dataset, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """An epoch's batches, each with the places of its images in the training part."""
    from edgecompress.data import batch_rows, batches

    rows = batch_rows(len(data.train), batch_size=batch_size, shuffle=True, seed=seed, epoch=epoch)
    stream = batches(data, data.train, batch_size=batch_size, shuffle=True, augment=True, seed=seed, epoch=epoch)
    for places, (images, labels) in zip(rows, stream, strict=True):
        yield places, images, labels


def _own_share(count: int, rank: int, world: int) -> slice:
    """This process's part of a batch: equal parts, so that the mean of the gradients is the gradient of the mean."""
    return slice(rank, count - count % world, world)


def _steps(images: int, batch_size: int, world: int) -> int:
    """Batches of an epoch. A last one that leaves a process a single image is left out: batch norm cannot use it."""
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest >= 2 * world))


def _mix(*numbers: int) -> int:
    """One seed of 63 bits from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum over all processes of a scalar; the value itself where there is one process."""
    total: Any = fabric.all_reduce(value.clone(), reduce_op="sum") if fabric.world_size > 1 else value
    return total


def _check(tensor: Tensor, job: Job, epoch: int, step: int, lr: float, name: str = "the loss") -> None:
    """StepFailed when a loss or a tensor of the model has a value that is not finite."""
    import torch

    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    advice = f"a smaller lr (it was {lr:.3g} here, {job.spec.lr:g} at most)"
    if not job.spec.warmup_epochs:
        advice += ", warmup_epochs"
    if job.spec.clip_norm is None:
        advice += ", clip_norm: 1"
    raise StepFailed(
        f"{job.label} diverged: {name} is no longer finite in epoch {epoch + 1}, step {step + 1}. "
        f"Try {advice}, or look for bad values in the data."
    )


def _device_name(device: torch.device, world: int) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{world} × {name}" if world > 1 else name


def _scaler_state(fabric: Fabric) -> dict[str, Any]:
    """State of the loss scaling of float16 training; empty for the other precisions."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return dict(scaler.state_dict()) if scaler is not None else {}


def _load_scaler(fabric: Fabric, state: dict[str, Any]) -> None:
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None and state:
        scaler.load_state_dict(state)
