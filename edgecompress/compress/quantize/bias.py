"""Bias correction: rounding the weights shifts the mean of an output channel, and the bias takes the shift back.

For each layer the shift is the mean of its outputs on the calibration images with its weights and those of the layers before it
rounded (and these corrected already), less the mean in float (Nagel et al. 2019, section 4.2, the empirical form). It goes into
the layer's bias, or, where the layer has none, into the running mean of the batch norm that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.rounding import rounded_weight
from edgecompress.watching import Look, watch

if TYPE_CHECKING:
    from edgecompress.compress.quantize import Params

_BATCH = 64


def correct(
    model: nn.Module, context: Context, layers: list[str], params: Params, simulated: Mapping[str, int]
) -> list[str]:
    """Correct the biases in place; the names of the layers that were. The weights themselves stay as they are.

    simulated: layer → bits, fewer than the file's, that its weights are rounded to first.
    """
    from edgecompress.data import calibration_images

    images = torch.from_numpy(calibration_images(context.need_data("quantize with correct_bias")))
    norms = batch_norms(model, images[:2])
    order = _in_order(model, layers, images[:2])
    exact = _means(model, order, images)
    originals: dict[str, Tensor] = {}
    corrected = []
    try:
        for name in order:
            layer = model.get_submodule(name)
            originals[name] = layer.weight.detach().clone()
            with torch.no_grad():
                layer.weight.copy_(rounded_weight(layer, params.weight_bits, params.weights, simulated.get(name)))
            places = _places(layer, norms.get(name))
            if places is not None:
                target, sign = places
                with torch.no_grad():
                    target.add_(sign * (_means(model, [name], images)[name] - exact[name]))
                corrected.append(name)
    finally:
        with torch.no_grad():
            for name, weight in originals.items():
                model.get_submodule(name).weight.copy_(weight)
    return corrected


def _places(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, float] | None:
    """The tensor that takes the shift, and its sign; None where there is neither a bias nor a batch norm."""
    if layer.bias is not None:
        return layer.bias, -1.0
    if norm is not None and norm.running_mean is not None:
        return norm.running_mean, 1.0
    return None


def _means(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Layer → mean over images and positions of what it gives: (output channels,)."""
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def add(name: str, output: Tensor) -> None:
        axis = 1 if output.dim() == 4 else output.dim() - 1
        sums = output.double().sum([k for k in range(output.dim()) if k != axis])
        totals[name] = totals[name] + sums if name in totals else sums
        counts[name] += output.numel() // output.shape[axis]

    looks = [(model.get_submodule(name), lambda _, __, output, name=name: add(name, output)) for name in names]
    watch(model, images.split(_BATCH), looks)
    return {name: (total / counts[name]).float() for name, total in totals.items()}


def batch_norms(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Layer name → the batch norm that takes the very tensor which the layer gives, and nothing else in between."""
    made: dict[int, str] = {}
    held: list[Any] = []  # as long as a tensor is held, no other has its id
    found: dict[str, nn.Module] = {}

    def give(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        made[id(output)] = name
        held.append(output)

    def take(norm: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        name = made.get(id(inputs[0]))
        if name is not None:
            found[name] = norm

    looks: list[tuple[nn.Module, Look]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            looks.append((module, take))
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
            looks.append((module, partial(give, name)))
    watch(model, [images], looks)
    return found


def _in_order(model: nn.Module, layers: list[str], images: Tensor) -> list[str]:
    """The layers in the order in which they compute; those that do not are left out."""
    order: list[str] = []
    watch(model, [images], [(model.get_submodule(name), lambda *_, name=name: order.append(name)) for name in layers])
    return list(dict.fromkeys(order))
