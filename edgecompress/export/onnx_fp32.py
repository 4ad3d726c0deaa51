"""ONNX in float32: torch's tracing exporter, opset 17 (IR 8).

That exporter rather than the torch.export one: 4 to 16 times faster, batch normalisation folded into the convolutions as
well, and opset 17 runs on the old ONNX Runtime of JetPack 5. Input `input` float32 (N, C, H, W) normalised, output `logits`
float32 (N, classes), N free.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.export.contract import ExportContext, float_file
from edgecompress.export.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".onnx"
FILE_TYPE = "onnx"
INT8 = False
PACKAGES = ("torch", "onnx", "onnxruntime")

OPSET = 17


def export(model: nn.Module, destination: Path, context: ExportContext) -> None:
    """Write `model` (in eval mode, on the CPU) to `destination`. Raises what torch's exporter raises."""
    float_file(model, destination, context, SUFFIX, lambda path: _convert(model, path, context))


def _convert(model: nn.Module, path: Path, context: ExportContext) -> None:
    import torch

    with quiet(), torch.no_grad():
        torch.onnx.export(
            model,
            (torch.zeros(1, *context.in_shape),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
