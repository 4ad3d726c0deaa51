"""Magnitude pruning: the weights of smallest absolute value become exactly zero, one by one (unstructured).

What it does: in every convolution and fully connected layer (or over all of them together) the weights of largest |w| are
kept, the others are set to zero and held there by a mask through fine-tuning, later steps and export. Biases and batch norm
are never pruned. With `steps` above 1 pruning and fine-tuning alternate, on the cubic schedule of AGP.
Costs: linear time in the weights for pruning (under a second for ResNet-50); the fine-tuning costs its epochs.
Needs: no data, unless it fine-tunes. Gains: the compressed size of a file. Neither its plain size nor its latency changes: no
engine here skips single zeros.
Papers: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks" (arXiv:1506.02626);
schedule: Zhu and Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from edgecompress import masks
from edgecompress.compress.contract import Context, FineTune
from edgecompress.errors import UserError, near_misses
from edgecompress.study import Fraction, TrainSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Params:
    """Parameters of magnitude pruning.

    sparsity: fraction removed of the weights that are still alive (of all, in a model that was not pruned before), in
        [0, 1). Each layer keeps round((1 − sparsity) · alive) weights, halves to even.
    scope: "layer" removes this fraction in every layer; "global" over all layers together, so that layers differ.
    steps: prunings, each followed by its share of the fine-tuning's epochs; after step t of n the fraction removed is
        sparsity · (1 − (1 − t/n)³).
    exclude: layers left as they are, by name; `*` and `?` match as in file names ("conv1", "layer3.*", "*.downsample.*").
    finetune: training after the pruning, mask held; None: none. Its lr is 0.01 unless given.
    """

    sparsity: Fraction = 0.8
    scope: Literal["layer", "global"] = "layer"
    steps: int = 1
    exclude: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    finetune: FineTune = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, not {self.steps}")
        if self.steps > 1:
            if self.finetune is None:
                raise ValueError("steps above 1 prune between fine-tunings: give finetune, or steps: 1")
            if self.finetune.epochs < self.steps:
                raise ValueError(
                    f"steps ({self.steps}) must not exceed the epochs of finetune ({self.finetune.epochs})"
                )
            if self.finetune.warmup_epochs >= self.finetune.epochs // self.steps:
                raise ValueError("the warmup_epochs of finetune must be below the epochs of one step")


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned in place and fine-tuned. UserError: nothing to prune, an unknown layer, weights that are NaN."""
    weights = prunable(model, params.exclude)
    before = masks.get(model)
    alive = {name: int(before[name].sum()) if name in before else weight.numel() for name, weight in weights.items()}
    for step in range(1, params.steps + 1):
        # The exact end is not left to floating point: with t = n the cube is 0.
        removed = params.sparsity * (1 - (1 - step / params.steps) ** 3)
        weights = prunable(model, params.exclude)  # anew: a training may have moved them to other memory
        masks.put(model, select(weights, masks.get(model), alive, removed, params.scope))
        if params.finetune is not None:
            context.train(model, _share(params.finetune, step, params.steps), method="magnitude")
    kept = {name: int(mask.sum()) for name, mask in masks.get(model).items() if name in weights}
    context.note("kept_fraction", {name: kept[name] / weight.numel() for name, weight in weights.items()})
    context.note("kept_fraction_overall", sum(kept.values()) / sum(w.numel() for w in weights.values()))
    emptied = [name for name, count in kept.items() if count == 0]
    if emptied:
        context.note("emptied_layers", emptied)
        context.progress.say(
            f"magnitude: no weight is left in {', '.join(emptied)}; exclude them, or ask for less sparsity"
        )
    return model


def prunable(model: nn.Module, exclude: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Parameter name → weight of every convolution and fully connected layer that is not excluded; shared weights stand once.

    UserError: a pattern that matches no such layer, no layer left, a weight that is not finite.
    """
    import torch
    from torch import nn

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    for pattern in exclude:
        if not fnmatch.filter(layers, pattern):
            raise UserError(
                f"exclude: {pattern!r} matches no convolution or linear layer", fix=near_misses(pattern, layers)
            )
    left = [name for name in layers if not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)]
    found: list[Any] = [model.get_submodule(name).weight for name in left]
    weights: dict[str, Tensor] = {names[id(w)]: w.detach() for w in found if id(w) in names}
    if not weights:
        raise UserError(
            "the model has no convolution or linear layer to prune", fix="Exclude fewer layers, or use another model."
        )
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{name} holds values that are not finite", fix="Use weights from a training that went well."
            )
    return weights


def select(
    weights: dict[str, Tensor], present: dict[str, Tensor], alive: dict[str, int], removed: float, scope: str
) -> dict[str, Tensor]:
    """The masks that keep round((1 − removed) · alive) largest |w|, out of what the present masks keep.

    alive: weights to reckon from, by name; with several steps, those before the first.
    """
    import torch

    kept = {name: present.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}
    if scope == "layer":
        return {
            name: masks.keep_highest(weight.abs(), round((1 - removed) * alive[name]), kept[name])
            for name, weight in weights.items()
        }
    scores = torch.cat([weight.abs().reshape(-1) for weight in weights.values()])
    living = torch.cat([kept[name].reshape(-1) for name in weights])
    overall = masks.keep_highest(scores, round((1 - removed) * sum(alive.values())), living)
    parts = torch.split(overall, [weight.numel() for weight in weights.values()])
    return {
        name: part.reshape(weight.shape).clone() for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def _share(spec: TrainSpec, step: int, steps: int) -> TrainSpec:
    """The training of one of several steps: equal epochs, what remains goes to the last."""
    epochs = spec.epochs // steps + (spec.epochs % steps if step == steps else 0)
    return spec.model_copy(update={"epochs": epochs})
