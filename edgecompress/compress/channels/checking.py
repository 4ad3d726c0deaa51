"""What is found out about a request before anything is cut: names that match layers, and weights that are numbers."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from edgecompress.errors import UserError, near_misses
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.channels import Params


def check_finite(model: nn.Module) -> None:
    import torch

    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} holds values that are not finite", fix="Use weights from a training that went well."
            )


def check_names(model: nn.Module, params: Params) -> None:
    """UserError when a pattern of exclude or ratios matches no layer that has output channels."""
    layers = [name for name, module in model.named_modules() if isinstance(module, kept.WEIGHTED)]
    if not layers:
        raise UserError("the model has no convolution or linear layer to cut", fix="Use another model.")
    for key, patterns in (("exclude", params.exclude), ("ratios", tuple(params.ratios or {}))):
        for pattern in patterns:
            if not fnmatch.filter(layers, pattern):
                raise UserError(
                    f"{key}: {pattern!r} matches no convolution or linear layer", fix=near_misses(pattern, layers)
                )
