"""Deep Compression: prune, share the weights that are left, entropy-code what results. A pipeline of the three in one step.

What it does: in every convolution and fully connected layer the weights of largest |w| are kept, in several prunings with
training between; the kept ones then share the values of a codebook, which is fine-tuned with summed gradients (see the
method `codebook`); and the size is counted that the layers take as Huffman-coded codes and gaps. The coded file itself is
written by `edgecompress pack`.
Costs: the epochs of both fine-tunings; clustering and counting sort each layer's weights a few times.
Needs: data for the fine-tunings, without which little accuracy is left. Gains: the size of a packed file, 35 to 49 times in the
paper. Neither plain size nor latency changes: no engine here skips single zeros or computes with codes.
Papers: Han, Mao and Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding" (arXiv:1510.00149); thresholds: Han et al. 2015 (arXiv:1506.02626).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgecompress import kmeans, masks, patterns
from edgecompress.compress.codebook import Bits, share, values_in
from edgecompress.compress.contract import Context, FineTune
from edgecompress.compress.deep_compression import size
from edgecompress.compress.magnitude import prunable
from edgecompress.study import Fraction, Positive, TrainSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_SPARSITY = 0.9

Kept = Annotated[float, Field(gt=0, le=1)]
IndexBits = Annotated[int, Field(ge=1, le=12)]


@dataclass(frozen=True)
class Params:
    """Parameters of Deep Compression.

    kept: fraction of its weights that a layer keeps, in (0, 1]: one number, or a mapping from patterns of layer names
        ({"conv1": 0.66, "fc*": 0.08}; of several that match, the one that spells out more of the name).
    threshold_std: instead of kept, as in Han et al. 2015: weights below s standard deviations of their layer's weights are
        dropped. One s, or a mapping.
    sparsity: instead of both: fraction removed of the weights of all layers together, one cut-off for |w|. None of the
        three given: 0.9.
    steps: prunings, each followed by its share of the epochs of finetune. After step t of n the fraction removed is
        (1 − kept) · (1 − (1 − t/n)³); with threshold_std, the threshold is t/n of the full one.
    finetune: training between and after the prunings, masks held; None: none. Its lr is 0.01 unless given.
    conv_bits, fc_bits: width of a code in convolutions and in fully connected layers, 1 to 16: up to 2^bits values, the
        zero among them. The paper has 8 and 5 (6 in LeNet-300-100).
    init: where k-means starts: "linear", "density" or "forgy".
    finetune_codebook: training of the shared values; None: none. Its lr is 0.01 unless given: a sum of many gradients
        wants a small one.
    index_bits: width of a gap in the relative index, 1 to 12; None: in each layer the one that makes it smallest. The paper's
        tables have 5 for LeNet and VGG-16, 4 for AlexNet. It changes the count, not the network.
    exclude: layers left as they are, by name; `*` and `?` match as in file names. They count as 32 bits a weight.
    """

    kept: Kept | dict[str, Kept] | None = None
    threshold_std: Positive | dict[str, Positive] | None = None
    sparsity: Fraction | None = None
    steps: Annotated[int, Field(ge=1)] = 1
    finetune: FineTune = None
    conv_bits: Bits = 8
    fc_bits: Bits = 5
    init: kmeans.Init = "linear"
    finetune_codebook: FineTune = None
    index_bits: IndexBits | None = 5
    exclude: patterns.LayerNames = ()

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.kept, self.threshold_std, self.sparsity)) > 1:
            raise ValueError("give one of kept, threshold_std and sparsity")
        if self.steps > 1:
            if self.finetune is None or self.finetune.epochs < self.steps:
                raise ValueError(
                    f"steps above 1 prune between trainings: give a finetune of at least {self.steps} epochs"
                )
            if self.finetune.warmup_epochs >= self.finetune.epochs // self.steps:
                raise ValueError("the warmup_epochs of finetune must be below the epochs of one step")


def keeps_layers(params: Params) -> bool:
    """Whether the network after the step has the layers and sizes of the one before."""
    return True


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned, its weights shared. Notes: `values`, `kept_fraction`, and `paper_size` (see `size.Count`).

    UserError: a layer that no pattern matches, a pattern without a layer, weights that are not finite, no data to train on.
    """
    _prune(model, params, context)
    weights = prunable(model, params.exclude)
    wanted = {
        name: values_in(weight, params.conv_bits if weight.ndim > 2 else params.fc_bits)
        for name, weight in weights.items()
    }
    share(model, weights, wanted, params.init, context)
    if params.finetune_codebook is not None:
        context.train(model, params.finetune_codebook, method="deep_compression")
    weights = prunable(model, params.exclude)
    kept = {name: int((weight != 0).sum()) / weight.numel() for name, weight in weights.items()}
    context.note("kept_fraction", kept)
    context.note("paper_size", size.count(model, weights, params.index_bits).as_json())
    emptied = [name for name, fraction in kept.items() if fraction == 0]
    if emptied:
        context.note("emptied_layers", emptied)
        context.progress.say(f"deep_compression: no weight is left in {', '.join(emptied)}; keep more, or exclude them")
    return model


def _prune(model: nn.Module, params: Params, context: Context) -> None:
    import torch

    weights = prunable(model, params.exclude)
    layers = {name.rpartition(".")[0]: name for name in weights}
    already = {name: mask.clone() for name, mask in masks.get(model).items() if name in weights}
    # What is asked for is asked of the layers as they came in, not of what one pruning after the other leaves.
    deviations = {name: float(weight[weight != 0].double().std(correction=0)) for name, weight in weights.items()}
    for step in range(1, params.steps + 1):
        weights = prunable(model, params.exclude)  # anew: a training may have moved them to other memory
        present = masks.get(model)
        alive = {n: present.get(n, torch.ones_like(w, dtype=torch.bool)) for n, w in weights.items()}
        progress = 1 - (1 - step / params.steps) ** 3
        if params.threshold_std is not None:
            factors = patterns.of_layers(params.threshold_std, layers, "threshold_std")
            chosen = {
                name: alive[name] & (weights[name].abs() >= factors[layer] * deviations[name] * step / params.steps)
                for layer, name in layers.items()
            }
        elif params.kept is not None:
            fractions = patterns.of_layers(params.kept, layers, "kept")
            chosen = {
                layers[layer]: _largest(weights[layers[layer]], alive[layers[layer]], 1 - (1 - fraction) * progress)
                for layer, fraction in fractions.items()
            }
        else:
            removed = DEFAULT_SPARSITY if params.sparsity is None else params.sparsity
            chosen = _largest_overall(weights, alive, 1 - removed * progress)
        masks.put(model, chosen)
        if params.finetune is not None:
            context.train(model, _share_of(params.finetune, step, params.steps), method="deep_compression")
    if already:
        context.note("pruned_before", {name: 1 - float(mask.float().mean()) for name, mask in already.items()})


def _largest(weight: Tensor, alive: Tensor, fraction: float) -> Tensor:
    """The mask of the largest |w|: this fraction of all weights, or those alive where they are fewer."""
    return masks.keep_highest(weight.abs(), min(round(fraction * weight.numel()), int(alive.sum())), alive)


def _largest_overall(weights: dict[str, Tensor], alive: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    import torch

    flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
    mask = _largest(flat, torch.cat([alive[name].reshape(-1) for name in weights]), fraction)
    parts = torch.split(mask, [weight.numel() for weight in weights.values()])
    return {n: part.reshape(w.shape).clone() for (n, w), part in zip(weights.items(), parts, strict=True)}


def _share_of(spec: TrainSpec, step: int, steps: int) -> TrainSpec:
    """The training of one of several steps: equal epochs, what remains goes to the last."""
    epochs = spec.epochs // steps + (spec.epochs % steps if step == steps else 0)
    return spec.model_copy(update={"epochs": epochs})
