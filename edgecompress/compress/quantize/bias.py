"""Bias correction: rounding the weights shifts the mean of an output channel, and the bias takes the shift back.

For each layer the shift E[(W_q − W) * x] is measured on the calibration images with the layers before it already rounded and
corrected (Nagel et al. 2019, section 4.2, the empirical form). It goes into the layer's bias, or, where the layer has none,
into the running mean of the batch norm that follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.rounding import rounded_weight

if TYPE_CHECKING:
    from edgecompress.compress.quantize import Params

_BATCH = 64


def correct(model: nn.Module, context: Context, layers: list[str], params: Params) -> list[str]:
    """Correct the biases in place; the names of the layers that were. The weights themselves stay as they are."""
    from edgecompress.data import calibration_images

    images = torch.from_numpy(calibration_images(context.need_data("quantize with correct_bias")))
    training = model.training
    model.eval()
    norms = batch_norms(model, images[:2])
    originals: dict[str, Tensor] = {}
    corrected = []
    try:
        for name in _in_order(model, layers, images[:2]):
            layer = model.get_submodule(name)
            places = _places(layer, norms.get(name))
            weight = layer.weight.detach()
            error = rounded_weight(layer, params.weight_bits, params.weights) - weight
            if places is not None:
                shift = _mean_output(model, layer, error, images)
                target, sign = places
                with torch.no_grad():
                    target.add_(sign * shift)
                corrected.append(name)
            originals[name] = weight.clone()
            with torch.no_grad():
                layer.weight.copy_(weight + error)
    finally:
        with torch.no_grad():
            for name, weight in originals.items():
                model.get_submodule(name).weight.copy_(weight)
        model.train(training)
    return corrected


def _places(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, float] | None:
    """The tensor that takes the shift, and its sign; None where there is neither a bias nor a batch norm."""
    if layer.bias is not None:
        return layer.bias, -1.0
    if norm is not None and norm.running_mean is not None:
        return norm.running_mean, 1.0
    return None


def _mean_output(model: nn.Module, layer: nn.Module, weight: Tensor, images: Tensor) -> Tensor:
    """Mean over images and positions of what the layer computes with `weight` and no bias: (output channels,)."""
    total = torch.zeros(())
    count = 0

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total, count
        saved, layer.weight.data = layer.weight.data, weight
        bias, layer.bias = layer.bias, None
        try:
            response = layer.forward(inputs[0])
        finally:
            layer.weight.data, layer.bias = saved, bias
        axis = 1 if response.dim() == 4 else response.dim() - 1
        others = [k for k in range(response.dim()) if k != axis]
        total = total + response.double().sum(others)
        count += response.numel() // response.shape[axis]

    handle = layer.register_forward_hook(look)
    try:
        with torch.no_grad():
            for batch in images.split(_BATCH):
                model(batch)
    finally:
        handle.remove()
    return (total / max(count, 1)).to(weight.dtype)


def batch_norms(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Layer name → the batch norm that takes the very tensor which the layer gives, and nothing else in between."""
    made: dict[int, str] = {}
    held: list[Any] = []  # as long as a tensor is held, no other has its id
    found: dict[str, nn.Module] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            handles.append(module.register_forward_pre_hook(lambda m, x: _note(found, made.get(id(x[0])), m)))
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):

            def keep(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
                made[id(output)] = name
                held.append(output)

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _note(found: dict[str, nn.Module], name: str | None, module: nn.Module) -> None:
    if name is not None:
        found[name] = module


def _in_order(model: nn.Module, layers: list[str], images: Tensor) -> list[str]:
    """The layers in the order in which they compute; those that do not are left out."""
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name)) for name in layers
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))
