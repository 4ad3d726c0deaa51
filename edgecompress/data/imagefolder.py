"""Anyone's images, a folder for each class; classes are numbered by the sorted names of the training folders.

`root` holds train and val or test (or all three), or the class folders alone, which are then divided. Images become RGB;
`image_size` (224 where not given) is the side of the centre crop. `augment: auto` pads, crops and mirrors that crop; it
is not the random resized crop of ImageNet trainings from nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.data.folders import fingerprint_folders, load_folders
from edgecompress.data.raw import RawDataset

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS = {"root": True, "image_size": False}


def load(spec: DataSpec) -> RawDataset:
    """UserError: no such layout, a class without images, a single class, a test class that train lacks."""
    assert spec.root is not None  # DataSpec has seen to it
    return load_folders(spec.root, spec.image_size)


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    assert spec.root is not None
    return fingerprint_folders(spec.root)
