"""What is said of a file whose weights have fewer bits than it stores them in (`simulated_bits` of the step `quantize`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress import quantization

if TYPE_CHECKING:
    from torch import nn


def notes(model: nn.Module, settings: quantization.Quantization, stored_in: str) -> tuple[str, ...]:
    """That the weights of some layers are on grids of fewer bits than the file has, or no longer are. Empty: of none.

    stored_in: "an 8-bit" or "a float32" (file).
    """
    if not settings.simulated_bits:
        return ()
    lost = [name for name, bits in settings.simulated_bits.items() if not _on_grid(model.get_submodule(name), bits)]
    if lost:
        return (f"not on the grids of fewer bits any more, as a later step changed their weights: {', '.join(lost)}",)
    return (quantization.simulation(model, settings.simulated_bits, stored_in),)


def _on_grid(layer: nn.Module, bits: int) -> bool:
    """Whether no output channel has more values than so many bits can say."""
    from torch import nn

    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    values = weight.flatten(1).sort(1).values
    return bool(((values.diff(dim=1) != 0).sum(1) < 2**bits - 1).all())
