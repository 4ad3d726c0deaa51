"""Initial weights of the zoo's networks."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float) -> int:
    """A channel count times the width factor, rounded, at least 1."""
    return max(1, round(channels * width))


def he(model: nn.Module) -> None:
    """Kaiming normal for convolution and linear weights (He et al. 2015), zero biases; BN starts as the identity."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier(model: nn.Module) -> None:
    """Xavier normal for convolution and linear weights (Glorot and Bengio 2010), zero biases."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
