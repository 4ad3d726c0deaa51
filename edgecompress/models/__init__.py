"""Networks by name: the zoo, `torchvision:NAME`, and anyone's own as `package.module:callable`.

Nothing heavy is imported here, so that a study is validated without torch. A zoo model is a function
`(num_classes, in_shape, width) -> nn.Module`, in_shape = (channels, height, width) with any channel count; `width`
multiplies the channels, and `depth`, where a model has it, the layers of each stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.study import ModelSpec

ZOO: dict[str, str] = {
    "resnet20": "edgecompress.models.resnet:resnet20",
    "resnet32": "edgecompress.models.resnet:resnet32",
    "resnet44": "edgecompress.models.resnet:resnet44",
    "resnet56": "edgecompress.models.resnet:resnet56",
    "resnet110": "edgecompress.models.resnet:resnet110",
    "vgg11_bn": "edgecompress.models.vgg:vgg11_bn",
    "vgg13_bn": "edgecompress.models.vgg:vgg13_bn",
    "vgg16_bn": "edgecompress.models.vgg:vgg16_bn",
    "vgg19_bn": "edgecompress.models.vgg:vgg19_bn",
    "lenet300": "edgecompress.models.lenet:lenet300",
    "lenet5": "edgecompress.models.lenet:lenet5",
    "lap_mlp": "edgecompress.models.lap:lap_mlp",
    "lap_conv6": "edgecompress.models.lap:lap_conv6",
    "mlp": "edgecompress.models.mlp:mlp",
}
"""Name → "module:function"."""

ZOO_ARGS: dict[str, tuple[str, ...]] = {"mlp": ("hidden", "dropout", "input_dropout")}
"""Zoo models that take `args`, and which."""


def has_depth(name: str) -> bool:
    """Whether a zoo model has stages of layers that `depth` can multiply."""
    return name.startswith(("resnet", "vgg")) or name in ("lap_mlp", "mlp")


@dataclass(frozen=True)
class Origin:
    """What a network was built from: enough to build it again. in_shape: (C, H, W)."""

    spec: ModelSpec
    num_classes: int
    in_shape: tuple[int, int, int]


def origin(model: nn.Module) -> Origin | None:
    """What `build` or `load_model` made this network from; None for a module of the caller's own. A deep copy keeps it."""
    found: Any = model.__dict__.get("edgecompress_origin")
    return found if isinstance(found, Origin) else None


def build(spec: ModelSpec, *, num_classes: int, in_shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """The network of a spec in train mode, initialised under `seed`, then filled from `spec.weights` where that is given.

    torchvision models get num_classes unless `args` names it; a callable gets exactly `args`. The global random state of
    torch is left as it was. UserError: an unknown name, an import or call that fails, a network whose output for
    (n, *in_shape) is not (n, num_classes), weights that do not fit.
    """
    from edgecompress.models.building import construct
    from edgecompress.models.checkpoint import load_weights

    model = construct(spec, num_classes=num_classes, in_shape=in_shape, seed=seed)
    if spec.weights is not None:
        load_weights(model, spec.weights)
    return model
