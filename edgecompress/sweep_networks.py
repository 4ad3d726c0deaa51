"""The small networks of a channel sweep, and which sweep fits a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgecompress.channel_sweep import Setting, centre_for

if TYPE_CHECKING:
    from torch import nn

_MOST_SIZES = 3


def network(setting: Setting, width: int) -> nn.Module:
    """One network: input (N, 3, S, S) with S the largest size, output (N, width). Seeded weights, in eval mode."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        before = setting.sizes[0]
        for size, count in setting.blocks():
            if size != before:
                layers.append(nn.AdaptiveAvgPool2d(size) if before % size else nn.AvgPool2d(before // size))
            for _ in range(count):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
            before = size
        return nn.Sequential(*layers, nn.AvgPool2d(before), nn.Flatten()).eval()


def setting_for(model: nn.Module, in_shape: tuple[int, int, int]) -> Setting:
    """The sweep for a model: the three spatial sizes where most of its convolutions' multiply-accumulates are, and the mean
    (geometric, weighted with them) of its widths. The default for a model without ordinary convolutions."""
    work: dict[int, float] = {}
    logs = total = 0.0
    for width, size, macs in _convolutions(model, in_shape):
        work[size] = work.get(size, 0.0) + macs
        logs += macs * math.log(width)
        total += macs
    if not total:
        return Setting()
    sizes = sorted(sorted(work, key=lambda size: -work[size])[:_MOST_SIZES], reverse=True)
    return Setting(centre_for(math.exp(logs / total)), tuple(sizes))


def _convolutions(model: nn.Module, in_shape: tuple[int, int, int]) -> list[tuple[int, int, float]]:
    """(output channels, height of the output, multiply-accumulates) of each use of a convolution without groups."""
    import torch
    from torch import nn

    from edgecompress.evaluate import device_of
    from edgecompress.watching import watch

    found = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        macs = module.weight.numel() * output.shape[2] * output.shape[3]
        found.append((int(output.shape[1]), int(output.shape[2]), float(macs)))

    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    watch(model, [torch.zeros(1, *in_shape, device=device_of(model))], [(m, note) for m in convolutions])
    return found
