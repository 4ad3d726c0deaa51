"""A layer as an int8 file holds it: its batch norm folded in, and computed with other weights than its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgecompress.compress.quantize.rounding import output_axis

Engine = Literal["onnxruntime", "litert"]
"""Whose int8 file is meant: that of `onnx-int8` or of `tflite-int8`."""


def gain(norm: nn.Module) -> Tensor:
    """What a batch norm multiplies each channel by: (channels,)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return scale if norm.weight is None else norm.weight.detach() * scale


def folded(layer: nn.Module, norm: nn.Module, engine: Engine | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the batch norm after it folded in, in the shapes of the layer's own.

    engine: of a convolution, in the order of the exporter of its file, which decides the last bit.
    """
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    more = () if isinstance(layer, nn.Linear) else (isinstance(layer, nn.ConvTranspose2d),)
    weight, bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, *more
    )
    if engine is not None and norm.weight is not None and not isinstance(layer, nn.Linear):
        shape = [1] * layer.weight.dim()
        shape[output_axis(layer)] = -1
        variance, own = norm.running_var + norm.eps, 0.0 if layer.bias is None else layer.bias
        if engine == "onnxruntime":  # torch.onnx.export, with torch's own square root
            factor = norm.weight / variance.sqrt()
            weight, bias = layer.weight * factor.reshape(shape), own * factor + (norm.bias - norm.running_mean * factor)
        else:  # litert-torch writes the norm in its parts, and the converter folds one after the other
            inverse = 1 / variance.double().sqrt().float()
            weight = layer.weight * inverse.reshape(shape) * norm.weight.reshape(shape)
            bias = (own - norm.running_mean) * inverse * norm.weight + norm.bias
    return weight.detach(), bias.detach()


def compute(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer gives for x with this weight and bias in the place of its own."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        return functional.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    return layer._conv_forward(x, weight, bias)
