"""Rounding to integers and back in floating point: what a quantised layer computes, without the engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecompress.quantization import Granularity


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


def rounded_weight(layer: nn.Module, bits: int, granularity: Granularity) -> Tensor:
    """The layer's weight after symmetric rounding to `bits` bits, in floating point; same shape.

    Per channel it is what the export makes of it even where a batch norm is folded in: a factor for a whole output channel
    moves its scale and leaves the integers.
    """
    weight = layer.weight.detach()
    most = limit(bits)
    step = steps(weight, output_axis(layer), most, granularity)
    return torch.round(weight / step).clamp(-most, most) * step


def rounded(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values after rounding to 256 levels from low ≤ 0 to high ≥ 0 (scalars; 0 among the levels), clipped, in floating point."""
    if high <= low:
        return values
    scale = (high - low) / 255
    zero = torch.round(-low / scale)
    return torch.round(values / scale).clamp(-zero, 255 - zero) * scale
