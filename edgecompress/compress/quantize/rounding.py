"""Rounding to integers and back in floating point: what a quantised layer computes, without the engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.quantization import Granularity

_SHARES = torch.linspace(1.0, 0.05, 96).tolist()
"""Fractions of a channel's largest weight that the search for a grid of few bits tries as its range."""


def limit(bits: int) -> int:
    """The largest integer of a symmetric weight: 127, or 64 of 7 bits (ONNX Runtime's reduced range goes from -64 to 64)."""
    return 127 if bits == 8 else 64


def output_axis(layer: nn.Module) -> int:
    """The axis of a layer's weight that counts its output channels."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def steps(weight: Tensor, axis: int, most: int, granularity: Granularity) -> Tensor:
    """The distance of two levels, so that the largest |weight| is level `most`: of the weight's rank, 1 where all are zero.

    axis: of the output channels. One step per channel, or one in all.
    """
    others = [k for k in range(weight.dim()) if k != axis] if granularity == "channel" else list(range(weight.dim()))
    found = weight.abs().amax(others, keepdim=True) / most
    return torch.where(found > 0, found, torch.ones_like(found))


def rounded_weight(layer: nn.Module, bits: int, granularity: Granularity, simulated: int | None = None) -> Tensor:
    """The layer's weight after symmetric rounding to `bits` bits, in floating point; same shape.

    Per channel it is what the export makes of it even where a batch norm is folded in: a factor for a whole output channel
    moves its scale and leaves the integers. simulated: fewer bits, to which the weight is rounded first.
    """
    weight = layer.weight.detach() if simulated is None else few_bits_weight(layer, simulated)
    most = limit(bits)
    step = steps(weight, output_axis(layer), most, granularity)
    return torch.round(weight / step).clamp(-most, most) * step


def few_bits_weight(layer: nn.Module, bits: int) -> Tensor:
    """The layer's weight rounded to the symmetric grid of `bits` bits (2 to 7), ±(2^(bits-1) - 1) steps, one scale per output
    channel: that of least squared error, which clips where few bits gain by it (Choukroun et al. 2019). Zeros stay.
    """
    weight, axis = layer.weight.detach(), output_axis(layer)
    rows = weight.transpose(0, axis).flatten(1)
    most = 2 ** (bits - 1) - 1
    peak = rows.abs().amax(1, keepdim=True)
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    best, least = torch.zeros_like(rows), torch.full_like(peak, torch.inf)
    for share in _SHARES:
        scale = peak * (share / most)
        tried = torch.round(rows / scale).clamp(-most, most) * scale
        error = (tried - rows).square().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return best.reshape(weight.transpose(0, axis).shape).transpose(0, axis).contiguous()


def rounded(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values after rounding to 256 levels from low ≤ 0 to high ≥ 0 (scalars; 0 among the levels), clipped, in floating point."""
    if high <= low:
        return values
    scale = (high - low) / 255
    zero = torch.round(-low / scale)
    return torch.round(values / scale).clamp(-zero, 255 - zero) * scale
