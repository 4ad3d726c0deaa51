"""What is in an .onnx or .tflite file: operators and their counts, layers left in float, weights and zeros.

A layer here is a convolution or a product with a constant matrix. Any file can be counted, ours or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.errors import StepFailed, UserError


@dataclass(frozen=True)
class Census:
    """operators: type → count, over all subgraphs. float_layers: names of layers that compute in float; float16_layers: those of
    them whose weights are stored as float16.

    weights, zeros: elements of the layers' weight tensors (biases not), a shared tensor once; a zero of an int8 tensor is an
    element equal to its zero point. denormals: those of float tensors that are neither zero nor a normal number. input_shape
    has -1 where a dimension is free.
    """

    operators: dict[str, int]
    float_layers: tuple[str, ...]
    weights: int
    zeros: int
    input_shape: tuple[int, ...]
    input_dtype: str
    output_dtype: str
    denormals: int = 0
    float16_layers: tuple[str, ...] = ()


def count(path: Path) -> Census:
    """The census of a file. UserError when it is neither .onnx nor .tflite, or cannot be read as one."""
    if path.suffix == ".onnx":
        from edgecompress.export.census_onnx import count_onnx

        return count_onnx(path)
    if path.suffix == ".tflite":
        from edgecompress.export.census_tflite import count_tflite

        return count_tflite(path)
    raise UserError("is neither an .onnx nor a .tflite file", where=str(path), fix="Give a file of one of these types.")


def refuse_float_layers(census: Census, name: str, wanted: tuple[str, ...] = (), precision: str = "float32") -> None:
    """StepFailed when a file that calls itself int8 holds a convolution or linear layer in float, or a float input of TFLite.

    wanted: layers that are to stay in float: they must, and the input and output of the file may then be float too.
    precision: what their weights are stored as.
    """
    stray = [layer for layer in census.float_layers if layer not in wanted]
    if stray:
        listed = ", ".join(stray[:8])
        more = f" and {len(stray) - 8} more" if len(stray) > 8 else ""
        raise StepFailed(f"the {name} file would compute in float in: {listed}{more}; it is not an int8 file")
    lost = [layer for layer in wanted if layer not in census.float_layers]
    if lost:
        raise StepFailed(f"the {name} file computes in int8, and not in float as it should: {', '.join(lost)}")
    others = [layer for layer in wanted if (layer in census.float16_layers) != (precision == "float16")]
    if others:
        raise StepFailed(f"the {name} file does not store the weights of {', '.join(others)} as {precision}")
    if not wanted and name.startswith("tflite") and (census.input_dtype, census.output_dtype) != ("int8", "int8"):
        raise StepFailed(
            f"the {name} file has {census.input_dtype} input and {census.output_dtype} output instead of int8"
        )


def zeros_of(values: np.ndarray, zero_points: np.ndarray | None = None, axis: int = 0) -> int:
    """How many elements stand for exactly 0.0; `zero_points`: one, or one for each index of `axis`."""
    if zero_points is None or not zero_points.any():
        return int(values.size - np.count_nonzero(values))
    if zero_points.size > 1:
        shape = [1] * values.ndim
        shape[axis] = zero_points.size
        zero_points = zero_points.reshape(shape)
    return int((values == zero_points).sum())


def denormals_of(values: np.ndarray) -> int:
    """How many elements of a float array are neither zero nor as large as the smallest normal number.

    Those of float16 are computed with as float32, where all of them are normal.
    """
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        return 0
    return int(((values != 0) & (np.abs(values) < np.finfo(values.dtype).tiny)).sum())


def unique(names: list[str]) -> tuple[str, ...]:
    """The names in order, each once."""
    return tuple(dict.fromkeys(names))
