"""Lookahead pruning: a weight counts by what its layer and both neighbours lose without it, not by its size alone.

What it does: as method magnitude, with the score S = w² · P · N in the place of |w|: P the squared norm of what the previous
layers send into the weight's input channel, N that of what the next layers read of its output channel. The neighbours are the
true ones, found by tracing the model: see scoring.py for residual additions, flatten, groups and shared layers.
Costs: a trace, one forward pass of one image, and two or three passes over the weights (about a second for VGG-16).
Needs: a model that torch.fx can trace; data only for fine-tuning and for weigh_activations. Gains: as magnitude, the
compressed size; accuracy at high sparsity is better than magnitude's.
Paper: Park, Lee, Mo and Shin 2020, "Lookahead: A Far-sighted Alternative of Magnitude-based Pruning" (arXiv:2002.04809).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from edgecompress import masks as masking
from edgecompress.compress.contract import Context, FineTune
from edgecompress.compress.magnitude import prunable
from edgecompress.errors import UserError, near_misses
from edgecompress.study import Fraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgecompress.compress.lookahead.scoring import Factors
    from edgecompress.graph import Graph

Mode = Literal["base", "forward", "backward"]

ACTIVITY_IMAGES = 512
"""Training images that tell how often a channel is alive (weigh_activations)."""


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Params:
    """Parameters of lookahead pruning.

    sparsity: fraction removed of the weights that are still alive, in [0, 1). Each layer keeps round((1 − sparsity) · alive)
        weights of highest score, halves to even.
    ratios: layer name (`*` and `?` match) → another fraction for it; of several that match, the last in the mapping counts.
    scope: "layer" removes its fraction in every layer; "global" over all layers together, each layer's scores divided by
        their L2 norm.
    mode: "base" scores all layers, then prunes; "forward" prunes each layer before the next is scored; "backward" the same
        from the last to the first.
    splits: so many prunings of equal shares, scored anew each time (the paper's sequential variant).
    weigh_activations: each channel's row counts by √(share of training images on which it is above 0 after its ReLU).
    batch_norm: count the factors of batch norms into the neighbours' weights.
    exclude: layers left as they are, by name. They still count as neighbours.
    finetune: training after the pruning, mask held; None: none. Its lr is 0.01 unless given.
    """

    sparsity: Fraction = 0.8
    ratios: Mapping[str, Fraction] = field(default_factory=dict)
    scope: Literal["layer", "global"] = "layer"
    mode: Mode = "base"
    splits: Annotated[int, Field(ge=1)] = 1
    weigh_activations: bool = False
    batch_norm: bool = True
    exclude: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    finetune: FineTune = None

    def __post_init__(self) -> None:
        if self.scope == "global" and (self.mode != "base" or self.ratios):
            raise ValueError("scope global prunes all layers at once: it takes mode base and no ratios")


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned in place and fine-tuned.

    UserError: nothing to prune, an unknown layer, weights that are NaN, a model that cannot be traced, no data where needed.
    """
    weights = prunable(model, params.exclude)
    ratios = _ratios(model, weights, params)
    masks_found = masks(
        model,
        _example(model, context),
        ratios,
        scope=params.scope,
        mode=params.mode,
        splits=params.splits,
        images=_images(context) if params.weigh_activations else None,
        batch_norm=params.batch_norm,
    )
    masking.put(model, masks_found)
    kept = {name: int(mask.sum()) for name, mask in masks_found.items()}
    context.note("kept_fraction", {name: kept[name] / weights[name].numel() for name in kept})
    context.note("kept_fraction_overall", sum(kept.values()) / sum(weights[name].numel() for name in kept))
    emptied = [name for name, count in kept.items() if count == 0]
    if emptied:
        context.note("emptied_layers", emptied)
        context.progress.say(
            f"lookahead: no weight is left in {', '.join(emptied)}; exclude them, or ask for less sparsity"
        )
    if params.finetune is not None:
        context.train(model, params.finetune, method="lookahead")
    return model


def scores(
    model: nn.Module,
    example_input: Tensor,
    *,
    mode: Mode = "base",
    ratios: float | Mapping[str, float] | None = None,
    images: Tensor | None = None,
    batch_norm: bool = True,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Parameter name → squared lookahead score S of every weight, in the weight's shape. The model is left as it was.

    example_input: (N, C, …), its values do not matter. mode: "forward" and "backward" score each layer with the layers before
    (after) it already pruned by `ratios` (fraction removed, one for all or by parameter name), which they need. images: for
    the activation-weighted variant. dtype: float32 unless given; float64 for exact comparisons. Masked weights count as 0.
    UserError: as in `apply`. ValueError: mode forward or backward without ratios.
    """
    if mode != "base" and ratios is None:
        raise ValueError(f"mode {mode} prunes as it scores: give ratios")
    weights = prunable(model)
    factors = _factors(model, example_input, weights, images=images, batch_norm=batch_norm, dtype=dtype)
    names = _used(factors.graph, weights)
    if mode == "base":
        return {name: factors.score(name) for name in names}
    found = {}
    _walk(model, factors, _by_name(ratios or 0.0, names), mode=mode, splits=1, step=0, start={}, found=found)
    return {name: found[name] for name in names}


def masks(
    model: nn.Module,
    example_input: Tensor,
    ratios: float | Mapping[str, float],
    *,
    scope: Literal["layer", "global"] = "layer",
    mode: Mode = "base",
    splits: int = 1,
    images: Tensor | None = None,
    batch_norm: bool = True,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Parameter name → bool mask that keeps the round((1 − ratio) · alive) highest scores. The model is left as it was.

    ratios: fraction removed of what is alive, one for all layers or by parameter name (others are left out). Present masks of
    the model are the start. With scope global the ratio holds for the named layers together. Else as `scores`.
    """
    weights = prunable(model)
    factors = _factors(model, example_input, weights, images=images, batch_norm=batch_norm, dtype=dtype)
    wanted = _by_name(ratios, _used(factors.graph, weights))
    start = {name: mask for name, mask in masking.get(model).items() if name in weights}
    kept: dict[str, Tensor] = start
    for step in range(splits):
        if scope == "global":
            kept = _overall(factors, wanted, start, kept, share=(step + 1) / splits)
            _drop(factors, kept)
        else:
            kept = _walk(model, factors, wanted, mode=mode, splits=splits, step=step, start=start, kept=kept)
    return {name: kept[name] for name in wanted}


def _factors(
    model: nn.Module,
    example_input: Tensor,
    weights: dict[str, Tensor],
    *,
    images: Tensor | None,
    batch_norm: bool,
    dtype: torch.dtype | None,
) -> Factors:
    import torch

    from edgecompress.compress.lookahead import activity
    from edgecompress.compress.lookahead.scoring import Factors
    from edgecompress.graph import trace

    graph = trace(model, example_input)
    shares = None if images is None else activity.measure(model, graph, images)
    present = masking.get(model)
    current = {name: w.masked_fill(~present[name], 0.0) if name in present else w for name, w in weights.items()}
    return Factors(graph, current, shares, batch_norm, dtype or torch.float32)


def _used(graph: Graph, weights: dict[str, Tensor]) -> list[str]:
    """The parameters that the network computes with, in that order."""
    return [name for name in dict.fromkeys(call.parameter for call in graph.calls) if name in weights]


def _by_name(ratios: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    given = dict.fromkeys(names, float(ratios)) if isinstance(ratios, int | float) else dict(ratios)
    for name, ratio in given.items():
        if name not in names:
            raise UserError(f"ratios: {name!r} is no weight that the model computes with", fix=near_misses(name, names))
        if not 0 <= ratio < 1:
            raise UserError(f"ratios: {ratio} for {name} is not in [0, 1)", fix="Give the fraction to remove.")
    return {name: given[name] for name in names if name in given}


def _walk(
    model: nn.Module,
    factors: Factors,
    ratios: dict[str, float],
    *,
    mode: Mode,
    splits: int,
    step: int,
    start: dict[str, Tensor],
    kept: dict[str, Tensor] | None = None,
    found: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One pruning of the layers one by one; the masks after it. found: takes the scores that were used."""
    kept = dict(kept or {})
    names = list(ratios) if mode != "backward" else list(reversed(ratios))
    chosen = {}
    for name in names:
        score = factors.score(name)
        if found is not None:
            found[name] = score
        alive = int(start[name].sum()) if name in start else score.numel()
        keep = round((1 - ratios[name] * (step + 1) / splits) * alive)
        chosen[name] = masking.keep_highest(score, keep, kept.get(name))
        if mode != "base":
            _drop(factors, {name: chosen[name]})
    if mode == "base":
        _drop(factors, chosen)
    return {**kept, **chosen}


def _overall(
    factors: Factors, ratios: dict[str, float], start: dict[str, Tensor], kept: dict[str, Tensor], *, share: float
) -> dict[str, Tensor]:
    import torch

    (ratio,) = set(ratios.values())
    flat, living, alive = [], [], 0
    for name in ratios:
        score = factors.score(name)
        norm = torch.linalg.vector_norm(score)
        flat.append((score / norm if norm > 0 else score).reshape(-1))
        living.append(kept[name].reshape(-1) if name in kept else torch.ones(score.numel(), dtype=torch.bool))
        alive += int(start[name].sum()) if name in start else score.numel()
    overall = masking.keep_highest(torch.cat(flat), round((1 - ratio * share) * alive), torch.cat(living))
    parts = torch.split(overall, [part.numel() for part in flat])
    return {**kept, **{n: p.reshape(factors.weights[n].shape).clone() for n, p in zip(ratios, parts, strict=True)}}


def _drop(factors: Factors, kept: dict[str, Tensor]) -> None:
    for name, mask in kept.items():
        factors.weights[name] = factors.weights[name].masked_fill(~mask, 0.0)


def _ratios(model: nn.Module, weights: dict[str, Tensor], params: Params) -> dict[str, float]:
    """Parameter name → ratio, from the sparsity and the patterns on layer names."""
    layers = {name.rpartition(".")[0]: name for name in weights}
    for pattern in params.ratios:
        if not fnmatch.filter(layers, pattern):
            raise UserError(
                f"ratios: {pattern!r} matches no convolution or linear layer", fix=near_misses(pattern, layers)
            )
    ratios = dict.fromkeys(weights, params.sparsity)
    for pattern, ratio in params.ratios.items():
        for layer in fnmatch.filter(layers, pattern):
            ratios[layers[layer]] = ratio
    return ratios


def _example(model: nn.Module, context: Context) -> Tensor:
    import torch

    from edgecompress.models import origin

    known = origin(model)
    shape = context.data.in_shape if context.data is not None else known.in_shape if known is not None else None
    if shape is None:
        raise UserError(
            "method lookahead traces the model and needs the shape of its input",
            fix="Pass data=…, or build the model by edgecompress.",
        )
    first = next(model.parameters())
    return torch.zeros(1, *shape, dtype=first.dtype, device=first.device)


def _images(context: Context) -> Tensor:
    import numpy as np
    import torch

    from edgecompress import data

    dataset = context.need_data("lookahead with weigh_activations")
    count = min(ACTIVITY_IMAGES, len(dataset.train))
    indices = np.sort(np.random.default_rng(context.seed).choice(len(dataset.train), count, replace=False))
    return torch.from_numpy(data.normalise(dataset.train.images(indices), dataset.mean, dataset.std))
