"""What is found out about a request before anything is cut: names that match, weights that are numbers, the images' size."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from edgecompress.errors import UserError, near_misses
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.channels import Params
    from edgecompress.compress.contract import Context


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


def in_shape_of(model: nn.Module, context: Context) -> tuple[int, int, int]:
    """(C, H, W) of the images: of the data, else of what the network was built for."""
    from edgecompress.models import origin

    if context.data is not None:
        return context.data.in_shape
    for network in (model, context.teacher):
        known = origin(network)
        if known is not None:
            return known.in_shape
    raise UserError(
        "channels must know the size of the images to trace a network of one's own", fix="Pass data=… (or --data)."
    )
