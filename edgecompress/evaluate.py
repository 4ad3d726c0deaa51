"""Accuracy of a torch model on a part of a dataset, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT, Progress
from edgecompress.records import Accuracy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgecompress.data import Dataset


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are (the CPU for a model without any)."""
    import torch

    return next((p.device for p in model.parameters()), torch.device("cpu"))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output for images (N, C, H, W) as float32 logits (N, classes). UserError when it is anything else."""
    import torch

    output = model(images)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[0] != images.shape[0]:
        found = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise UserError(
            f"the model gives {found} for a batch of {images.shape[0]} images, not logits of shape (batch, classes)",
            fix="Wrap it in a module that returns one tensor of logits (torchvision models: args: {aux_logits: false}).",
        )
    return output.float()


def accuracy(
    model: nn.Module,
    data: Dataset,
    part_name: Literal["val", "test"] = "test",
    batch_size: int = 256,
    progress: Progress = SILENT,
) -> Accuracy:
    """Top-1 and top-5 on every image of a part, in float32, in order; on a GPU where there is one.

    The model's mode and device are put back. Equal logits count in favour of the lower class, as the agent's argmax does.
    StepFailed when the outputs are not finite, UserError when the model does not fit the data or the part is empty.
    """
    import torch

    from edgecompress.data import batches
    from edgecompress.models.building import check_output

    part = {"val": data.val, "test": data.test}[part_name]
    if len(part) == 0:
        raise UserError(f"the part {part_name!r} has no images", where=f"data {data.name}", fix="Use another part.")
    check_output(model, num_classes=data.num_classes, in_shape=data.in_shape, where=f"data {data.name}")
    home, training = device_of(model), model.training
    device = torch.device("cuda") if torch.cuda.is_available() else home
    model.to(device).eval()
    hits: list[str] = []
    top5_hits = 0
    try:
        with torch.no_grad(), progress.task(f"accuracy on {part_name}", len(part)) as task:
            stream = batches(data, part, batch_size=batch_size, shuffle=False, augment=False, seed=0, epoch=0)
            for images, labels in stream:
                scores = logits(model, images.to(device)).cpu()
                if not torch.isfinite(scores).all():
                    raise StepFailed(f"the model's outputs on {part_name} are not finite: its accuracy is not measured")
                # A stable sort, because topk leaves the order of equal scores open.
                best = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
                right = best == labels[:, None]
                hits.extend("1" if hit else "0" for hit in right[:, 0].tolist())
                top5_hits += int(right.any(dim=1).sum())
                task.advance(len(labels))
    finally:
        model.to(home).train(training)
    correct = "".join(hits)
    top5 = top5_hits / len(correct) if data.num_classes > 5 else None
    return Accuracy(part_name, len(correct), correct.count("1") / len(correct), top5, correct)
