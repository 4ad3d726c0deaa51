"""scikit-learn's bundled handwritten digits: 1,797 real 8×8 images (UCI "Optical Recognition of Handwritten Digits").

No download. Scaled to 32×32 so that CIFAR-style networks take them. 497 of them are the test part, whatever the seed.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.data.parts import ArrayPart
from edgecompress.data.raw import RawDataset
from edgecompress.data.splitting import stratified

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS: dict[str, bool] = {}

SIDE, TEST_IMAGES, TEST_SEED = 32, 497, 0


def load(spec: DataSpec) -> RawDataset:
    """1,300 training and 497 test images, uint8 (n, 32, 32, 1), ten classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    small = np.round(digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for i in small])
    everything = ArrayPart.of(pixels[..., None], labels)
    # A fixed seed: a test part that moved with the study's seed would mix with what another study trained on.
    test = stratified(everything.labels, TEST_IMAGES, seed=TEST_SEED)
    return RawDataset(
        train=everything.subset(np.setdiff1d(np.arange(len(labels)), test)),
        test=everything.subset(test),
        num_classes=10,
        in_shape=(1, SIDE, SIDE),
        augment="crop",
        class_names=tuple("0123456789"),
        preprocessing="8×8 images in 0..16 scaled to 0..255 and, bilinear, to 32×32",
    )


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    return {"split": [SIDE, TEST_IMAGES, TEST_SEED], "scikit-learn": metadata.version("scikit-learn")}
