"""One layer alone as a network, at any widths, with a name that says all that its cost depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.evaluate import device_of
from edgecompress.watching import watch

if TYPE_CHECKING:
    from edgecompress.compress.contract import Small

NOTHING = "relu 1"
"""Name of the network that does nothing: what every measurement holds beside the layer."""


@dataclass(frozen=True)
class Shape:
    """A layer but for its widths. kind: "conv" or "linear". size: (height, width) of its input."""

    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    groups: int
    bias: bool

    @property
    def coupled(self) -> bool:
        """Whether its input channels follow from its output channels."""
        return self.groups > 1

    def name(self, into: int, out: int) -> str:
        if self.kind == "linear":
            return f"linear {into}>{out}{'' if self.bias else ' without bias'}"
        parts = [
            f"conv {into}>{out}",
            *(f"{k} {_text(getattr(self, k))}" for k in ("kernel", "stride", "padding", "dilation", "size")),
        ]
        return " ".join([*parts, f"groups {self.groups}"])

    def network(self, into: int, out: int) -> Small:
        """Makes the layer of these widths as a network. Of a grouped layer `groups` is that of these widths already."""

        def make() -> tuple[nn.Module, tuple[int, int, int]]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                if self.kind == "linear":
                    return nn.Sequential(nn.Flatten(), nn.Linear(into, out, self.bias)).eval(), (into, 1, 1)
                # With a bias, as every exporter folds a batch norm into one, and an activation, which engines fuse.
                layer = nn.Conv2d(into, out, self.kernel, self.stride, self.padding, self.dilation, self.groups)
                return nn.Sequential(layer, nn.ReLU()).eval(), (into, self.size[0], self.size[1])

        return make

    def narrowed(self, out: int, whole_out: int) -> Shape:
        """The shape for so many output channels: a grouped layer has fewer groups of the same size."""
        return replace(self, groups=self.groups * out // whole_out) if self.coupled else self


def nothing() -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of NOTHING."""
    return nn.Sequential(nn.ReLU()).eval(), (1, 1, 1)


def shapes(model: nn.Module, in_shape: tuple[int, ...]) -> dict[str, Shape]:
    """Layer name → its shape, of every 2-d convolution and linear layer that one image runs through."""
    found: dict[str, Shape] = {}
    modules = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}

    def look(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                found[name] = Shape("linear", (), (), (), (), (), 1, module.bias is not None)
                return
            padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
            found[name] = Shape(
                "conv", module.kernel_size, module.stride, padding, module.dilation,
                tuple(inputs[0].shape[2:]), module.groups, True,
            )  # fmt: skip

        return hook

    watch(model, [torch.zeros(1, *in_shape, device=device_of(model))], [(m, look(n)) for n, m in modules.items()])
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value))
