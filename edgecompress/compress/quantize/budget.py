"""Which layers stay in float, so that the quantised network loses no more top-1 on validation images than it may.

The network is simulated as its int8 file computes it (simulation.py): all layers quantised first, then with one layer more in
float, and another, in the order of their effects (sensitivity.py), until the loss is small enough. The order is one by effect
alone, whatever a layer's bytes; of equal effects the layer that is defined first goes first.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress import sites
from edgecompress.compress.contract import Context
from edgecompress.compress.quantize import bias, sensitivity
from edgecompress.compress.quantize.simulation import calibrated, fold, of_inputs, simulated
from edgecompress.errors import UserError
from edgecompress.quantization import Quantization

if TYPE_CHECKING:
    from edgecompress.compress.quantize import Params

_SLACK = 1e-9
"""Of a difference of two fractions that is an exact count of images but for the rounding of the division."""


def choose(
    model: nn.Module,
    context: Context,
    layers: list[str],
    kept: list[str],
    params: Params,
    bits: Mapping[str, int],
    *,
    max_drop: float,
) -> list[str]:
    """`kept` and the layers that `max_drop` asks for beside them; the record gets what was measured on the way.

    layers: all; kept: those in float by name; bits: of simulated ones. UserError: a network that cannot be simulated, a
    budget that is not met with one layer left to quantise (with the smallest loss on the way).
    """
    from edgecompress.data import calibration_images
    from edgecompress.evaluate import accuracy

    data = context.need_data("quantize with max_drop")
    exact = accuracy(model, data, "val")
    plain = copy.deepcopy(model).eval()
    rule = Quantization(params.calibration, params.percentile, params.weights)
    images = torch.from_numpy(calibration_images(data))
    ranges = calibrated(plain, images, rule)
    settings = dataclasses.replace(
        rule, ranges=ranges, float_precision=params.float_precision, simulated_bits=dict(bits)
    )
    traced = sites.trace(copy.deepcopy(plain))
    inputs = of_inputs(traced, ranges)
    fold(traced)
    candidates = [name for name in layers if name not in kept and name in inputs]
    effects = sensitivity.effects(traced, context, candidates, params, bits, inputs)
    order = sorted(candidates, key=lambda name: -effects[name])
    moves: list[dict[str, Any]] = []
    chosen: list[str] | None = None
    with context.progress.task("layers in float", total=len(order)) as task:
        for count in range(len(order)):
            floats = [*kept, *order[:count]]
            trial = copy.deepcopy(plain)
            if params.correct_bias:
                bias.correct(trial, context, [name for name in layers if name not in floats], params, bits)
                settings = dataclasses.replace(settings, ranges=calibrated(trial, images, rule))
            top1 = accuracy(
                simulated(trial, dataclasses.replace(settings, float_layers=tuple(floats)), params.weight_bits),
                data,
                "val",
            ).top1
            moves.append(
                _move(model, order[count - 1] if count else None, len(floats), top1, exact.top1 - top1, params)
            )
            task.advance()
            if exact.top1 - top1 <= max_drop + _SLACK:
                chosen = floats
                break
    if chosen is None:
        raise _out_of_reach(moves, max_drop, exact.images)
    context.note("effect_of_each_layer", effects)
    context.note(
        "budget",
        {
            "max_drop": max_drop,
            "validation_images": exact.images,
            "float_top1": exact.top1,
            "simulated_top1": moves[-1]["simulated_top1"],
            "drop": moves[-1]["drop"],
            "order": order,
            "moves": moves,
        },
    )
    return chosen


def _move(model: nn.Module, layer: str | None, floats: int, top1: float, drop: float, params: Params) -> dict[str, Any]:
    """What was simulated after a layer was put into float (None: before the first). extra_bytes: what its weights grow by."""
    each = 1 if params.float_precision == "float16" else 3
    weights = 0 if layer is None else model.get_submodule(layer).weight.numel()
    return {
        "layer_put_into_float": layer,
        "float_layers": floats,
        "simulated_top1": top1,
        "drop": drop,
        "extra_bytes": each * weights,
    }


def _out_of_reach(moves: list[dict[str, Any]], max_drop: float, images: int) -> UserError:
    if not moves:
        return UserError("max_drop: float_layers leave no layer to quantise", fix="Name fewer of them.")
    best = min(moves, key=lambda move: move["drop"])  # of equal ones the first: the fewest layers in float
    return UserError(
        f"max_drop: {max_drop:g} is out of reach: the least that the simulated network loses on {images} validation images is "
        f"{best['drop']:.4f}, with {best['float_layers']} layers in float; with all but one it is {moves[-1]['drop']:.4f}",
        fix=f"Ask for max_drop: {_above(best['drop'])} or more, try another calibration or correct_bias, or train (method qat).",
    )


def _above(drop: float) -> str:
    """The drop rounded up to four digits behind the point."""
    return f"{-(-drop * 10_000 // 1) / 10_000:.4f}"
