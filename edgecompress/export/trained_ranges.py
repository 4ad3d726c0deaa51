"""Which tensor of a float file is which site of the network, so that the ranges it was trained with reach the int8 file.

Names differ from exporter to exporter, and operators are fused; values do not: a few images are run through the network and
through the file, and a tensor is a site when its values are the site's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.errors import StepFailed

if TYPE_CHECKING:
    from torch import nn

_IMAGES = 2
_TOLERANCE = 1e-3
"""Of a site's largest value: float files differ from torch by some 1e-6 of it."""

Activations = Callable[[np.ndarray], Iterable[dict[str, np.ndarray]]]
"""Images (N, C, H, W) → the file's tensors, batch by batch; the first axis is the images'."""


def of_tensors(
    model: nn.Module,
    ranges: Mapping[str, tuple[float, float]],
    images: np.ndarray,
    activations: Activations,
    *,
    nhwc: bool,
) -> dict[str, tuple[float, float]]:
    """Tensor name → range. nhwc: the file's images are (N, H, W, C). StepFailed when a site has no tensor in the file."""
    import torch

    from edgecompress import sites

    few = images[:_IMAGES]
    wanted = {name: _flat(value.numpy(), nhwc) for name, value in sites.values(model, torch.from_numpy(few)).items()}
    parts: dict[str, list[np.ndarray]] = {}
    for batch in activations(few):
        for name, value in batch.items():
            parts.setdefault(name, []).append(value)
    found: dict[str, tuple[float, float]] = {}
    missed = set(wanted)
    for name, pieces in parts.items():
        values = np.concatenate(pieces).ravel()
        for site, reference in wanted.items():
            if (
                values.size == reference.size
                and np.abs(values - reference).max() <= _TOLERANCE * np.abs(reference).max()
            ):
                low, high = ranges[site]
                found[name] = (low, high)
                missed.discard(site)
                break
    lost = sorted(site for site in missed if ranges[site][1] > ranges[site][0])
    if lost:
        raise StepFailed(
            f"the file has no tensor for {len(lost)} places where the network was trained with rounding: {', '.join(lost[:5])}"
        )
    return found


def _flat(values: np.ndarray, nhwc: bool) -> np.ndarray:
    return (values.transpose(0, 2, 3, 1) if nhwc and values.ndim == 4 else values).ravel()
