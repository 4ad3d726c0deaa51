"""ImageNet-1k (ILSVRC 2012) as folders: root/train/WNID/IMAGE and root/val/WNID/IMAGE; val is the test part.

Whatever part of the 1,000 classes is there, their numbers are those of every ImageNet-1k network: the position of the
WordNet id among all 1,000, sorted. So 50 folders of it score a network of 1,000 classes rightly (`imagefolder` would
number them 0..49). Images and augmentation as in `imagefolder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.data.folders import fingerprint_folders, load_folders
from edgecompress.data.raw import RawDataset
from edgecompress.data.wnids import WNIDS

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS = {"root": True, "image_size": False}


def load(spec: DataSpec) -> RawDataset:
    """UserError as `imagefolder`, and for a folder that is no class of ImageNet-1k."""
    assert spec.root is not None  # DataSpec has seen to it
    return load_folders(spec.root, spec.image_size, WNIDS)


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    assert spec.root is not None
    return fingerprint_folders(spec.root)
