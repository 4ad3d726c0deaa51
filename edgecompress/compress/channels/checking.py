"""What is found out about a request before anything is cut: names that match layers, and weights that are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress import patterns
from edgecompress.errors import UserError
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


def layers_of(model: nn.Module) -> list[str]:
    """The names of the layers whose channels may be cut. UserError: there is none."""
    layers = [name for name, module in model.named_modules() if isinstance(module, kept.WEIGHTED)]
    if not layers:
        raise UserError("the model has no convolution or linear layer to cut", fix="Use another model.")
    return layers


def named(model: nn.Module, params: Params) -> tuple[frozenset[str], dict[str, float]]:
    """Layers that are excluded, and layer → ratio where one is given. UserError: a pattern that matches no layer."""
    layers = layers_of(model)
    excluded = frozenset(patterns.matching(params.exclude, layers, "exclude"))
    return excluded, patterns.of_layers(params.ratios or {}, layers, "ratios", partial=True)
