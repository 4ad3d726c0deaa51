"""Seeded choices of images that keep the classes' shares."""

from __future__ import annotations

import numpy as np


def stratified(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Indices of `count` images, ascending, each class with its share of `labels` (N,) to within one image.

    The same for the same labels and seed. Shares that are no whole numbers are rounded so that the sum is `count`: the
    largest remainders are rounded up, ties by lot. 0 ≤ count ≤ N.
    """
    rng = np.random.default_rng(seed)
    classes, positions = np.unique(labels, return_inverse=True)
    sizes = np.bincount(positions, minlength=len(classes))
    shares = sizes * count / max(1, len(labels))
    quotas = np.floor(shares).astype(np.int64)
    lots = rng.permutation(len(classes))
    order = sorted(range(len(classes)), key=lambda c: (-round(float(shares[c] - quotas[c]), 9), lots[c]))
    quotas[order[: count - int(quotas.sum())]] += 1
    chosen = [rng.permutation(np.flatnonzero(positions == c))[: quotas[c]] for c in range(len(classes))]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
