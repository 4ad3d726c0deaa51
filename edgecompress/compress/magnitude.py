"""Magnitude pruning: the weights of smallest absolute value become exactly zero, one by one (unstructured).

What it does: in every convolution and fully connected layer the weights of largest |w| are kept, the others are set to zero
and held there by a mask through fine-tuning, later steps and export. Biases and batch norm are never pruned. How many each
layer keeps is given, or follows from one sparsity by an allocation (uniform, ERK, LAMP, global). With `steps` above 1 pruning
and fine-tuning alternate, on the cubic schedule of AGP.
Costs: linear time in the weights for pruning (LAMP: a sort of each layer); the fine-tuning costs its epochs.
Needs: no data, unless it fine-tunes. Gains: the compressed size of a file. Neither its plain size nor its latency changes: no
engine here skips single zeros.
Papers: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks" (arXiv:1506.02626);
schedule: Zhu and Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878); ERK: Evci et al. 2020, "Rigging the Lottery"
(arXiv:1911.11134); LAMP: Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (arXiv:2010.07611).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator

from edgecompress import allocation, masks, patterns
from edgecompress.allocation import Allocation
from edgecompress.compress.contract import Context, FineTune
from edgecompress.errors import UserError
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def _sparsity(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not value:
            raise ValueError("the mapping is empty: give a fraction for each layer, for example {'*': 0.8}")
        return {str(pattern): _fraction(one, f" for {pattern!r}") for pattern, one in value.items()}
    return _fraction(value, "")


def _fraction(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a number is needed{where}, not {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"must be at least 0 and less than 1{where}, not {value!r}")
    return float(value)


@dataclass(frozen=True)
class Params:
    """Parameters of magnitude pruning.

    sparsity: fraction removed of the weights that are still alive (of all, in a model that was not pruned before), in
        [0, 1). One number, or a mapping from patterns of layer names to numbers ({"conv*": 0.5, "fc*": 0.9}; of several that
        match, the one that spells out more of the name).
    allocation: what each layer keeps. "uniform": round((1 − sparsity) · alive) in every layer, halves to even. The others keep
        that many of all layers' weights together: "global" by one cut-off for |w|; "lamp" by one for w² over the sum of the
        layer's squares that are not smaller; "erk" in proportion to the sum of the weight's dimensions, whatever the weights.
    steps: prunings, each followed by its share of the fine-tuning's epochs; after step t of n the fraction removed is
        sparsity · (1 − (1 − t/n)³).
    exclude: layers left as they are, by name; `*` and `?` match as in file names ("conv1", "layer3.*", "*.downsample.*").
    finetune: training after the pruning, mask held; None: none. Its lr is 0.01 unless given.
    """

    sparsity: Annotated[float | dict[str, float], PlainValidator(_sparsity)] = 0.8
    allocation: Allocation = "uniform"
    steps: int = 1
    exclude: patterns.LayerNames = ()
    finetune: FineTune = None

    def __post_init__(self) -> None:
        if self.allocation != "uniform" and isinstance(self.sparsity, Mapping):
            raise ValueError(
                f"allocation {self.allocation} finds each layer's share itself: give sparsity as one number"
            )
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


def keeps_layers(params: Params) -> bool:
    """Whether the network after the step has the layers and sizes of the one before."""
    return True


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned in place and fine-tuned. UserError: nothing to prune, an unknown layer, weights that are NaN."""
    weights = prunable(model, params.exclude)
    layers = {name: name.rpartition(".")[0] for name in weights}
    wanted = patterns.of_layers(params.sparsity, layers.values(), "sparsity")
    before = masks.get(model)
    alive = {name: int(before[name].sum()) if name in before else weight.numel() for name, weight in weights.items()}
    for step in range(1, params.steps + 1):
        # The exact end is not left to floating point: with t = n the cube is 0.
        progress = 1 - (1 - step / params.steps) ** 3
        removed = {name: wanted[layer] * progress for name, layer in layers.items()}
        weights = prunable(model, params.exclude)  # anew: a training may have moved them to other memory
        masks.put(model, select(weights, masks.get(model), alive, removed, params.allocation))
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
    excluded = patterns.matching(exclude, layers, "exclude")
    left = [name for name in layers if name not in excluded]
    found: list[Any] = [model.get_submodule(name).weight for name in left]
    weights: dict[str, Tensor] = {names[id(w)]: w.detach() for w in found if id(w) in names}
    if not weights:
        raise UserError(
            "the model has no convolution or linear layer to prune", fix="Exclude fewer layers, or use another model."
        )
    for name, weight in weights.items():
        # aminmax: a NaN comes through, and nothing of the weight's size is allocated
        if weight.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(weight)):
            raise UserError(
                f"{name} holds values that are not finite", fix="Use weights from a training that went well."
            )
    return weights


def select(
    weights: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    alive: Mapping[str, int],
    removed: Mapping[str, float],
    how: Allocation,
) -> dict[str, Tensor]:
    """The masks that keep each layer's largest |w|, out of what the present masks keep, in the numbers of an allocation.

    alive: weights to reckon from, by name; with several steps, those before the first. removed: fraction of them, by name;
    the same for all with any allocation but uniform.
    """
    import torch

    kept = {name: present.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}
    total = round((1 - next(iter(removed.values()))) * sum(alive.values()))
    if how == "uniform":
        counts = allocation.uniform(alive, removed)
    elif how == "erk":
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        counts = allocation.erk(shapes, {name: int(mask.sum()) for name, mask in kept.items()}, total)
    else:
        counts = (allocation.lamp if how == "lamp" else allocation.one_cut)(weights, kept, total)
    return {name: masks.keep_highest(weight.abs(), counts[name], kept[name]) for name, weight in weights.items()}


def _share(spec: TrainSpec, step: int, steps: int) -> TrainSpec:
    """The training of one of several steps: equal epochs, what remains goes to the last."""
    epochs = spec.epochs // steps + (spec.epochs % steps if step == steps else 0)
    return spec.model_copy(update={"epochs": epochs})
