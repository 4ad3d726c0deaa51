"""A layer as an int8 file holds it: its batch norm folded in, and computed with other weights than its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights


def gain(norm: nn.Module) -> Tensor:
    """What a batch norm multiplies each channel by: (channels,)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return scale if norm.weight is None else norm.weight.detach() * scale


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the batch norm after it folded in, in the shapes of the layer's own."""
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    more = () if isinstance(layer, nn.Linear) else (isinstance(layer, nn.ConvTranspose2d),)
    weight, bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, *more
    )
    return weight.detach(), bias.detach()


def compute(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer gives for x with this weight and bias in the place of its own."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        return functional.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    return layer._conv_forward(x, weight, bias)  # type: ignore[no-any-return, operator]
