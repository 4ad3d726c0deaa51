"""Import torchvision next to a CPU build of torch.

The wheel that the package index offers for torchvision 0.28.0 is a CUDA build. Beside a CPU torch its compiled extension
does not load, and the plain import fails with `operator torchvision::nms does not exist`. Once the two operators are
declared, the import succeeds: models, transforms and datasets work; `torchvision.ops.nms` and `torchvision.io.read_image`
do not, and nothing here uses them. Where torchvision imports as it is, nothing is done.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from edgecompress.errors import UserError

_DECLARED: list[Any] = []
"""The operator library: its declarations vanish with the object, so it must outlive this call."""


def import_torchvision() -> ModuleType:
    """The module torchvision, with `models` and `datasets`. UserError when it is absent or does not fit this torch."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise UserError("torchvision is not installed", fix="pip install torchvision==0.28.0") from None
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _DECLARED:
            raise
    import torch

    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    _DECLARED.append(library)
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")
