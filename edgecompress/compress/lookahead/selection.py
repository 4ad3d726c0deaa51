"""Which weights stay, given scores: per layer or over all layers, at once or in splits, all together or one layer after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgecompress import masks as masking
from edgecompress import patterns
from edgecompress.compress.lookahead.scoring import Scorer
from edgecompress.errors import UserError


def select(
    scorer: Scorer,
    ratios: Mapping[str, float],
    present: Mapping[str, Tensor],
    *,
    scope: str = "layer",
    mode: str = "base",
    splits: int = 1,
    used: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Parameter name → bool mask, for the names of `ratios` (in the order of execution).

    present: masks to start from. Split s of S removes (p/S) / (1 − p·s/S) of what is alive, so that p is gone at the end, up
    to rounding. used: takes the scores that decided, by name.
    """
    if splits < 1:
        raise UserError(f"splits must be 1 or more, not {splits}")
    if scope == "global" and mode != "base":
        raise UserError("scope global prunes all layers at once: it takes mode base")
    if scope not in ("layer", "global"):
        raise UserError(f"there is no scope {scope!r}", fix="Scopes: layer, global.")
    check_mode(mode)
    kept = {name: present[name] for name in ratios if name in present}
    order = list(ratios) if mode != "backward" else list(ratios)[::-1]
    for split in range(splits):
        removed = {name: (p / splits) / (1 - p * split / splits) for name, p in ratios.items()}
        if scope == "global":
            chosen = _overall(scorer, removed, kept)
        else:
            chosen = {}
            for name in order:
                score = scorer.score(name)
                if used is not None:
                    used[name] = score
                alive = int(kept[name].sum()) if name in kept else score.numel()
                chosen[name] = masking.keep_highest(score, round((1 - removed[name]) * alive), kept.get(name))
                if mode != "base":
                    scorer.drop(name, chosen[name])
        kept |= chosen
        if mode == "base" and split + 1 < splits:
            for name, mask in chosen.items():
                scorer.drop(name, mask)
    return {name: kept[name] for name in ratios}


def check_mode(mode: str) -> None:
    """UserError when there is no such mode."""
    if mode not in ("base", "forward", "backward"):
        raise UserError(f"there is no mode {mode!r}", fix="Modes: base, forward, backward.")


def _overall(scorer: Scorer, removed: Mapping[str, float], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One cut-off for all layers' scores, each layer's divided by their L2 norm."""
    if len(set(removed.values())) > 1:
        raise UserError("scope global removes one fraction of all layers together", fix="Give one ratio.")
    sizes = {name: scorer.parameters[name].numel() for name in removed}
    flat: Tensor | None = None
    living = torch.ones(sum(sizes.values()), dtype=torch.bool)
    start = 0
    for name, size in sizes.items():
        score = scorer.score(name).reshape(-1)
        norm = torch.linalg.vector_norm(score, dtype=torch.float64)
        if norm > 0:
            score /= norm.to(score.dtype)
        flat = score.new_zeros(len(living)) if flat is None else flat
        flat[start : start + size] = score
        if name in kept:
            living[start : start + size] = kept[name].reshape(-1)
        start += size
    assert flat is not None
    (fraction,) = set(removed.values())
    chosen = masking.keep_highest(flat, round((1 - fraction) * int(living.sum())), living.to(flat.device))
    parts = torch.split(chosen, list(sizes.values()))
    return {name: part.reshape(scorer.parameters[name].shape).clone() for name, part in zip(sizes, parts, strict=True)}


def resolve(ratios: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Parameter name → ratio, in the order of `names`, from one ratio or a mapping of parameter names and layer patterns.

    UserError: a ratio that is not in [0, 1), a name that matches nothing.
    """
    if not isinstance(ratios, Mapping):
        return dict.fromkeys(names, _checked(ratios, ""))
    given = {str(key): _checked(value, f" for {key}") for key, value in ratios.items()}
    exact = {name: given[name] for name in names if name in given}
    rest = {key: value for key, value in given.items() if key not in exact}
    found = {**by_layer(rest, names), **exact}
    if not found:
        raise UserError("ratios is empty: there is nothing to prune", fix="Give one ratio, or a mapping with layers.")
    return {name: found[name] for name in names if name in found}


def by_layer(ratios: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Parameter name → ratio for the layers that a pattern matches. UserError: a pattern that matches none."""
    layers = {name.rpartition(".")[0]: name for name in names}
    chosen: dict[str, float] = patterns.of_layers(ratios, list(layers), "ratios", partial=True)
    return {layers[layer]: ratio for layer, ratio in chosen.items()}


def _checked(ratio: float, what: str) -> float:
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise UserError(f"ratios: {ratio!r}{what} is not in [0, 1)", fix="Give the fraction to remove.")
    return float(ratio)
