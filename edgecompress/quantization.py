"""How a model is to be quantised when it is exported to int8: settings that stay with it, as its masks do.

The step `quantize` puts them, the int8 exporters read them, and a model directory keeps them in its `model.json`. The float
formats ignore them. A deep copy of the model keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Calibration = Literal["minmax", "percentile", "mse", "entropy"]
Granularity = Literal["channel", "tensor"]
Precision = Literal["float32", "float16"]
Bits = Annotated[int, Field(ge=2, le=8)]

_ATTRIBUTE = "edgecompress_quantization"


@dataclass(frozen=True)
class Quantization:
    """Settings of the int8 exporters. Defaults: what an export without the step `quantize` does.

    calibration: how the range of each activation tensor follows from the calibration images: minmax, percentile, mse or
    entropy (see histograms.py). percentile: for percentile, in percent. weights: one scale per output channel or one
    per tensor. float_layers: names of layers (modules) that stay in float, and float_precision what their weights are stored
    as. simulated_bits: layer → bits, fewer than 8, of the grid that its weights were put on; the files store them in 8 (or in
    float). ranges: site of the network (see sites.py) → the range that its activations were trained with, which goes before
    calibration. rounded_bits: the bits of a file's weights whose rounding was learned and is in the model's weights;
    None: none was.
    """

    calibration: Calibration = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weights: Granularity = "channel"
    float_layers: tuple[str, ...] = ()
    float_precision: Precision = "float32"
    simulated_bits: Mapping[str, Bits] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rounded_bits: Literal[7, 8] | None = None


DEFAULT = Quantization()


def bytes_apart(model: nn.Module, bits: Mapping[str, int]) -> int:
    """What the weights of these layers (name → bits) would take by themselves: their bits without gaps, and a float32 scale for
    each output channel. No file here is of this size.
    """
    from torch import nn

    total = 0
    for name, few in bits.items():
        weight = model.get_parameter(f"{name}.weight")
        channels = weight.shape[1] if isinstance(model.get_submodule(name), nn.ConvTranspose2d) else weight.shape[0]
        total += -(-weight.numel() * few // 8) + 4 * channels
    return total


def simulation(model: nn.Module, bits: Mapping[str, int], stored_in: str) -> str:
    """The sentence that keeps simulated bits from being taken for real ones. stored_in: "an 8-bit", "a float32"."""
    values = " and ".join(f"{few}-bit" for few in sorted(set(bits.values())))
    weights = sum(model.get_parameter(f"{name}.weight").numel() for name in bits)
    return (
        f"simulated: {values} values in {stored_in} file, in {len(bits)} layers. Their {weights:,} weights would take "
        f"{bytes_apart(model, bits):,} bytes if they were stored apart; neither the file's size nor its latency is that"
    )


def get(model: nn.Module) -> Quantization:
    """The settings of a model; the default where no step gave any."""
    found: Any = model.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Quantization) else DEFAULT


def refuse_other(model: nn.Module, method: str) -> None:
    """UserError when the model has settings already: of two steps one would be without effect."""
    present = get(model)
    if present != DEFAULT:
        earlier = "qat" if present.ranges else "quantize"
        raise UserError(
            f"method {method} after method {earlier}: both say how int8 files are made",
            fix="Keep one of the two steps.",
        )


def lost_rounding(settings: Quantization, weight_bits: int) -> tuple[str, ...]:
    """A warning about a file with weights of so many bits, when the rounding of the model's weights was learned for others."""
    if settings.rounded_bits in (None, weight_bits):
        return ()
    return (
        f"the rounding of the weights was learned for {settings.rounded_bits} bits (quantize: weight_bits), and this file has "
        f"weights of {weight_bits}: they are rounded to the nearest again",
    )


def put(model: nn.Module, settings: Quantization) -> None:
    """Give the model these settings in the place of those that it had."""
    model.__dict__[_ATTRIBUTE] = settings
