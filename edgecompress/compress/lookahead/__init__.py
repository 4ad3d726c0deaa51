"""Lookahead pruning: a weight counts by what its layer and its neighbours together lose without it, not by its size alone.

What it does: as method magnitude, with the score S = w² · P · N in the place of |w|: P the squared norm of what the previous
layers send into the weight's input channel, N that of what the next layers read of its output channel. The neighbours are the
true ones, found by tracing one run of the model: residual additions, flatten, concatenation, groups, shared layers (scoring.py).
Costs: one forward pass of one image and a few passes over the weights (under two seconds for VGG-16); the fine-tuning costs
its epochs. Needs: the shape of the model's input; data only for fine-tuning and for weigh_activations.
Gains: as magnitude, the compressed size of a file, not its latency.
Paper: Park, Lee, Mo and Shin 2020, "Lookahead: A Far-sighted Alternative of Magnitude-based Pruning" (arXiv:2002.04809).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress import masks as masking
from edgecompress import patterns
from edgecompress.compress.contract import Context, FineTune
from edgecompress.compress.magnitude import prunable
from edgecompress.errors import UserError
from edgecompress.study import Fraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgecompress.compress.lookahead.scoring import Scorer

Mode = Literal["base", "forward", "backward"]
Scope = Literal["layer", "global"]

BN_EPS = 1e-10
"""What the paper's code adds to a batch norm's running variance."""


@dataclass(frozen=True)
class Params:
    """Parameters of lookahead pruning.

    sparsity: fraction removed of the weights that are still alive, in [0, 1). Each layer keeps the round((1 − sparsity) · alive)
        weights of highest score, halves to even.
    ratios: layers with another fraction, as a mapping from patterns of layer names to numbers ({"conv1": 0, "fc*": 0.9}; of
        several that match, the one that spells out more of the name).
    scope: "layer" removes its fraction in every layer; "global" over all layers together, each layer's scores divided by
        their L2 norm.
    mode: "base" scores all layers, then prunes them; "forward" prunes each layer before the next is scored; "backward" does
        so from the last layer to the first.
    splits: so many prunings of equal shares, scored anew each time, without training between them (the paper's sequential
        variant).
    weigh_activations: weigh each output channel by √p, p the share of training images on which it is above 0 after its
        activation function, averaged over positions.
    activation_images: how many training images tell that (the paper's code draws 60,000 with repetition).
    batch_norm: whether the factors of normalisations count into the neighbours' norms.
    bn_eps: what is added to a batch norm's variance: 1e-10 in the paper's code; None: what each layer itself adds.
    exclude: layers left as they are, by name; `*` and `?` match as in file names. They still count as neighbours.
    finetune: training after the pruning, mask held; None: none. Its lr is 0.01 unless given.
    """

    sparsity: Fraction = 0.8
    ratios: dict[str, Fraction] = field(default_factory=dict)
    scope: Scope = "layer"
    mode: Mode = "base"
    splits: Annotated[int, Field(ge=1, le=1000)] = 1
    weigh_activations: bool = False
    activation_images: Annotated[int, Field(ge=1)] = 2000
    batch_norm: bool = True
    bn_eps: Annotated[float, Field(ge=0)] | None = BN_EPS
    exclude: patterns.LayerNames = ()
    finetune: FineTune = None

    def __post_init__(self) -> None:
        if self.scope == "global" and (self.mode != "base" or self.ratios):
            raise ValueError("scope global prunes all layers at once: it takes mode base and no ratios")


def keeps_layers(params: Params) -> bool:
    """Whether the network after the step has the layers and sizes of the one before."""
    return True


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned in place and fine-tuned.

    UserError: nothing to prune, an unknown layer, weights that are not finite, a model that cannot be traced, no data where
    something needs them.
    """
    import torch

    from edgecompress.compress.lookahead import activity
    from edgecompress.compress.lookahead.selection import by_layer, select

    weights = prunable(model, params.exclude)
    images = None
    if params.weigh_activations:
        images = activity.draw(context.need_data("lookahead"), params.activation_images, context.seed)
    example = torch.zeros(1, *context.input_shape(model, "lookahead"))
    prunable(model)  # neighbours that are excluded must be finite too
    scorer = _scorer(model, weights, example, images=images, batch_norm=params.batch_norm, bn_eps=params.bn_eps)
    names = [name for name in scorer.names if name in weights]
    left_out = [name for name in weights if name not in names]
    wanted = {**dict.fromkeys(names, params.sparsity), **by_layer(params.ratios, names)}
    found = select(scorer, wanted, masking.get(model), scope=params.scope, mode=params.mode, splits=params.splits)
    masking.put(model, found)
    kept = {name: int(mask.sum()) for name, mask in found.items()}
    context.note("kept_fraction", {name: kept[name] / weights[name].numel() for name in kept})
    context.note("kept_fraction_overall", sum(kept.values()) / sum(weights[name].numel() for name in kept))
    _say(context, "emptied_layers", [name for name, count in kept.items() if count == 0],
         "no weight is left in {}; exclude them, or ask for less sparsity")  # fmt: skip
    _say(context, "unused_layers", left_out, "{} take no part in a run of the model, and are left as they are")
    _say(context, "operations_not_followed", list(scorer.graph.not_followed),
         "channels are not followed through {}; layers beside them are scored as if the network began and ended there")  # fmt: skip
    if params.finetune is not None:
        context.train(model, params.finetune, method="lookahead")
    return model


def scores(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    mode: Mode = "base",
    ratios: float | Mapping[str, float] | None = None,
    images: Tensor | None = None,
    batch_norm: bool = True,
    bn_eps: float | None = BN_EPS,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Parameter name → squared lookahead score S of every weight, in the weight's shape. The model is left as it was.

    example_input: (N, C, …), the first of which is run; its values do not matter. mode: "forward" and "backward" score each
    layer with those before (after) it already pruned by `ratios`, as in `masks`. images: (N, C, …), normalised, for the
    activation-weighted variant. batch_norm, bn_eps: as in `Params`. dtype: of the scores; default the weight's own, float32
    where that has 16 bits. Layers that take no part in a run of the model are left out. UserError: as in `apply`.
    """
    from edgecompress.compress.lookahead.selection import check_mode, resolve, select

    check_mode(mode)
    scorer = _scorer(
        model, prunable(model), example_input, images=images, batch_norm=batch_norm, bn_eps=bn_eps, dtype=dtype
    )
    if mode == "base":
        if ratios is not None:
            raise UserError("ratios are for mode forward or backward: mode base scores before it prunes")
        return {name: scorer.score(name) for name in scorer.names}
    if ratios is None:
        raise UserError(f"mode {mode} prunes as it scores", fix="Give ratios: the fraction to remove.")
    found: dict[str, Tensor] = {}
    wanted = {**dict.fromkeys(scorer.names, 0.0), **resolve(ratios, scorer.names)}
    select(scorer, wanted, masking.get(model), mode=mode, used=found)
    return {name: found[name] for name in scorer.names}


def masks(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    ratios: float | Mapping[str, float],
    *,
    scope: Scope = "layer",
    mode: Mode = "base",
    splits: int = 1,
    images: Tensor | None = None,
    batch_norm: bool = True,
    bn_eps: float | None = BN_EPS,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Parameter name → bool mask that keeps the round((1 − ratio) · alive) highest scores. The model is left as it was.

    ratios: fraction removed of what is alive, in [0, 1): one for all layers, or a mapping from parameter names or patterns of
    layer names; layers that it does not name are left out of the result. Masks that the model has are where it starts.
    scope "global": the ratio (one) holds for the named layers together. splits, mode: as in `Params`, the rest as in `scores`.
    """
    from edgecompress.compress.lookahead.selection import resolve, select

    scorer = _scorer(
        model, prunable(model), example_input, images=images, batch_norm=batch_norm, bn_eps=bn_eps, dtype=dtype
    )
    wanted = resolve(ratios, scorer.names)
    return select(scorer, wanted, masking.get(model), scope=scope, mode=mode, splits=splits)


def _scorer(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    example_input: Tensor | tuple[Tensor, ...],
    *,
    images: Tensor | None,
    batch_norm: bool,
    bn_eps: float | None,
    dtype: torch.dtype | None = None,
) -> Scorer:
    from edgecompress.compress.lookahead import activity
    from edgecompress.compress.lookahead.scoring import Scorer
    from edgecompress.tracing import trace

    graph = trace(model, example_input)
    shares = None if images is None else activity.measure(model, graph, images)
    scorer = Scorer(
        graph,
        weights,
        dict(model.named_parameters()),
        activity=shares,
        batch_norm=batch_norm,
        bn_eps=bn_eps,
        dtype=dtype,
    )
    if not scorer.names:
        raise UserError(
            "no convolution or linear layer takes part in a run of the model on this input",
            fix="Give the input that the model is used with.",
        )
    return scorer


def _say(context: Context, key: str, names: list[str], sentence: str) -> None:
    if names:
        context.note(key, names)
        context.progress.say("lookahead: " + sentence.format(", ".join(names)))
