"""Which layers suffer most from few bits: each is quantised alone, and the change of the network's outputs is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.rounding import rounded, rounded_weight

if TYPE_CHECKING:
    from edgecompress.compress.quantize import Params

_IMAGES = 256


def effects(
    model: nn.Module,
    context: Context,
    layers: list[str],
    params: Params,
    simulated: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, float]:
    """Layer → mean Kullback-Leibler divergence (nats) of the outputs on validation images when this layer alone is quantised.

    Its weights are rounded (to fewer bits where `simulated` has them, then as in the file) and its input, to its range in
    `ranges`; without them by its minimum and maximum on these images. The model is left as it was.
    """
    import numpy as np

    from edgecompress import data

    dataset = context.need_data("quantize with float_worst")
    indices = np.arange(min(_IMAGES, len(dataset.val)))
    images = torch.from_numpy(data.normalise(dataset.val.images(indices), dataset.mean, dataset.std))
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), context.progress.task("sensitivity of layers", total=len(layers)) as task:
            reference = functional.log_softmax(model(images), 1)
            found = {}
            for name in layers:
                layer = model.get_submodule(name)
                weight = rounded_weight(layer, params.weight_bits, params.weights, simulated.get(name))
                found[name] = _effect(model, layer, weight, None if ranges is None else ranges[name], images, reference)
                task.advance()
    finally:
        model.train(training)
    return found


def _effect(
    model: nn.Module,
    layer: nn.Module,
    weight: Tensor,
    ends: tuple[float, float] | None,
    images: Tensor,
    reference: Tensor,
) -> float:
    def round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = inputs[0]
        low, high = (first.min(), first.max()) if ends is None else (first.new_tensor(end) for end in ends)
        return (rounded(first, low.clamp(max=0), high.clamp(min=0)), *inputs[1:])

    saved = layer.weight.data
    handle = layer.register_forward_pre_hook(round_input)
    try:
        layer.weight.data = weight
        outputs = functional.log_softmax(model(images), 1)
    finally:
        layer.weight.data = saved
        handle.remove()
    return float(functional.kl_div(outputs, reference, reduction="batchmean", log_target=True))
