"""Run the steps of a recipe on a model, in order. A recipe of several steps keeps what the earlier ones did.

The model that comes in is the teacher of every step (a frozen copy). After each step the network must still be one: same
outputs' shape, finite weights, and every weight that an earlier step's mask dropped still exactly zero, unless the step put
another network in its place. Weights that shared a value still do, or the step's record says of which parameters that ended.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress import codebooks, masks
from edgecompress.compress.contract import (
    Benches,
    Context,
    can_check,
    check_files,
    check_network,
    full_params,
    parse_params,
)
from edgecompress.errors import StepFailed, UserError
from edgecompress.plugins import find
from edgecompress.progress import SILENT, Progress
from edgecompress.records import StepRecord
from edgecompress.study import Step

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.data import Dataset


def run_steps(
    model: nn.Module,
    steps: tuple[Step, ...],
    *,
    data: Dataset | None,
    seed: int,
    scratch: Path | Sequence[Path],
    progress: Progress = SILENT,
    teacher: nn.Module | None = None,
    benches: Benches | None = None,
    in_shape: tuple[int, ...] | None = None,
    shared: Path | None = None,
) -> tuple[nn.Module, tuple[StepRecord, ...]]:
    """The model after all steps (it may be the one given, changed in place), in eval mode, and what each step did.

    scratch: a directory for the steps' checkpoints, or one for each step. The same call again after a kill goes on from them;
    they can be removed once the result is kept. UserError: wrong parameters, no data where a step trains. StepFailed: a training
    that diverged, or a step that broke what an earlier one did. teacher: the dense model, when the steps start from a model
    that earlier steps made; default: the model that comes in. benches: the devices that a step may measure on. in_shape:
    (C, H, W) of an image, where there are no data. shared: a directory for what steps of other recipes can use, too.
    """
    teacher = frozen_copy(model if teacher is None else teacher)
    folders = (
        [scratch / f"step-{n}-{s.method}" for n, s in enumerate(steps, 1)] if isinstance(scratch, Path) else scratch
    )
    records = []
    for number, step in enumerate(steps):
        try:
            params = parse_params(step.method, step.params)
            plain = full_params(step.method, step.params)
        except ValueError as error:
            raise UserError(str(error), where=f"step {number + 1}") from None
        context = Context(
            data=data, seed=(seed + number) % 2**32, teacher=teacher, scratch=folders[number], progress=progress,
            benches=benches, in_shape=in_shape, shared=shared,
        )  # fmt: skip
        earlier = {name: mask.clone() for name, mask in masks.get(model).items()}
        earlier_codes = {name: codes.clone() for name, codes in codebooks.get(model).items()}
        began = time.monotonic()
        method = find("edgecompress.compress", step.method, attribute="apply", kind="method")
        model = method.apply(model, params, context)
        if "replaced_model" not in context.notes:
            _keep_masks(model, earlier, step.method)
        _keep_codes(model, earlier_codes, context)
        _still_a_network(model, data, step.method)
        records.append(
            StepRecord(step.method, plain, time.monotonic() - began, tuple(context.trainings), dict(context.notes))
        )
    return model.eval(), tuple(records)


def check_before(
    steps: Sequence[Step],
    make: Callable[[], tuple[nn.Module, tuple[int, ...] | None]],
    say: Callable[[str], None],
    *,
    where: str = "",
) -> None:
    """UserError for what cannot be, as far as that is known before anything is trained: what no network like that of `make`,
    whatever its weights, can be given, up to the first step that makes another network of it; of the others the files that they
    name.

    make: a copy of the network in eval mode, which may be untrained, and the (C, H, W) of its images, where it is known; called
    only where a method can tell. say: is told of a step that could not be looked at, which may be these weights' own: it runs,
    and says so itself where it is not. where: what the message begins with.
    """
    like_it = True
    for number, step in enumerate(steps, 1):
        place = f"{where}step {number} ({step.method})"
        try:
            if like_it and can_check(step.method):
                model, in_shape = make()
                context = Context(
                    data=None, seed=0, teacher=model, scratch=Path(), in_shape=in_shape, reweighted=number > 1
                )
                check_network(step.method, step.params, model, context)
            else:
                check_files(step.method, step.params)
        except UserError as error:
            raise UserError(
                error.what, where=place + (f", {error.where}" if error.where else ""), fix=error.fix
            ) from error
        except Exception as error:  # noqa: BLE001 - shown, and shown again by the step if it is not these weights' own
            said = str(error) if isinstance(error, StepFailed) else f"{type(error).__name__}: {error}"
            say(f"warning: {place} could not be looked at beforehand: {said}")
        like_it = like_it and _keeps_layers(step)


def _keeps_layers(step: Step) -> bool:
    """Whether the network after a step has the layers and sizes of the one before, with other weights or masks. A method that may
    leave them has `keeps_layers(params)`."""
    method = find("edgecompress.compress", step.method, attribute="apply", kind="method")
    return hasattr(method, "keeps_layers") and bool(method.keeps_layers(parse_params(step.method, step.params)))


def restore_files(step: Step, record: StepRecord, say: Callable[[str], None]) -> None:
    """Write what a finished step wrote for its user (a policy) again, from its record, where it is gone since.

    A method that writes such files has `restore_files(params, notes, say)`; what cannot be written is said.
    """
    method = find("edgecompress.compress", step.method, attribute="apply", kind="method")
    if hasattr(method, "restore_files"):
        method.restore_files(parse_params(step.method, step.params), record.notes, say)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters want no gradient: a teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def _keep_masks(model: nn.Module, earlier: dict[str, Tensor], method: str) -> None:
    """StepFailed when a weight that was dropped before is not zero; a mask that the method left out is put back."""
    parameters = dict(model.named_parameters())
    present = masks.get(model)
    for name, mask in earlier.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            # Channels were cut out: the method has cut the mask with them, or the zeros are simply gone.
            continue
        drop = ~mask.to(parameters[name].device)
        if bool((parameters[name].detach()[drop] != 0).any()):
            raise StepFailed(f"method {method} gave weights of {name} a value that an earlier step had pruned")
        now = present.get(name)
        masks.put(model, {name: ~drop if now is None else now & ~drop})


def _keep_codes(model: nn.Module, earlier: dict[str, Tensor], context: Context) -> None:
    """Codes that the method left out are put back where its weights still keep to them. The others end, and the record says so.

    A method that gave a parameter codes of its own (a coarser codebook, one of fewer channels) has replaced the earlier ones.
    """
    import torch

    parameters = dict(model.named_parameters())
    replaced = "replaced_model" in context.notes
    ended = []
    for name, codes in codebooks.get(model).items():
        if not codebooks.holds(parameters[name], codes):
            codebooks.strip(model, [name])
    for name, codes in earlier.items():
        present = codebooks.get(model).get(name)
        if present is not None and present.shape != codes.shape:
            continue
        fits = not replaced and name in parameters and parameters[name].shape == codes.shape
        if fits and codebooks.holds(parameters[name], codes):
            if present is None or torch.equal(present, codes):
                # What has been pruned since is a zero like any other.
                codebooks.put(model, {name: codes.masked_fill(parameters[name].detach() == 0, 0)})
            continue
        if present is None:
            codebooks.strip(model, [name])
        ended.append(name)
    if ended:
        context.note("codebooks_ended", ended)
        context.progress.say(
            f"the weights of {', '.join(ended)} no longer share the values that an earlier step gave them"
        )


def _still_a_network(model: nn.Module, data: Dataset | None, method: str) -> None:
    import torch

    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StepFailed(f"method {method} left values in {name} that are not finite")
    if data is not None:
        from edgecompress.models.building import check_output

        check_output(model, num_classes=data.num_classes, in_shape=data.in_shape, where=f"after method {method}")
