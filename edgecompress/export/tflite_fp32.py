"""TFLite in float32: litert-torch, channels last.

Batch normalisation and ReLU are fused, and the input is NHWC without a transposition inside. Input float32 (1, H, W, C)
normalised, output float32 (1, classes): batch 1, as LiteRT runs it on a board. Needs the extra `tflite`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.export.contract import ExportContext, check_installed, float_file
from edgecompress.export.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".tflite"
FILE_TYPE = "tflite"
INT8 = False
PACKAGES = ("torch", "litert-torch", "ai-edge-litert")


def export(model: nn.Module, destination: Path, context: ExportContext) -> None:
    """Write `model` (in eval mode, on the CPU) to `destination`. Raises what litert-torch raises."""
    check_installed("tflite-fp32")
    float_file(model, destination, context, SUFFIX, lambda path: _convert(model, path, context))


def _convert(model: nn.Module, path: Path, context: ExportContext) -> None:
    import torch

    channels, height, width = context.in_shape
    # litert-torch prints through rich, whose console keeps the terminal it found at import: fd 1 alone would not do
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    with quiet(), torch.no_grad():
        import litert_torch

        channels_last = litert_torch.to_channel_last_io(model, args=[0]).eval()
        converted = litert_torch.convert(channels_last, (torch.zeros(1, height, width, channels),))
        converted.export(str(path))
