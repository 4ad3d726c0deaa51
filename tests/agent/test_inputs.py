"""From pixels to a model's input, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from edgecompress_agent import inputs, wire
from edgecompress_agent.errors import AgentError

BLOB = wire.Blob("m", "0" * 64, 1)


def _job(engine: str = "onnxruntime", channels: int = 3) -> wire.Job:
    return wire.Job("j", BLOB, engine, mean=(0.5, 0.4, 0.3)[:channels], std=(0.2, 0.3, 0.4)[:channels], score=False)


def _pixels(height: int, width: int, channels: int) -> np.ndarray:
    pixels: np.ndarray = np.random.default_rng(0).integers(0, 256, (1, height, width, channels), dtype=np.uint8)
    return pixels


@pytest.mark.parametrize(
    ("engine", "shape", "image", "first"),
    [
        ("onnxruntime", (1, 3, 5, 7), (5, 7, 3), True),
        ("onnxruntime", (None, 5, 7, 3), (5, 7, 3), False),
        ("litert", (1, 3, 5, 7), (5, 7, 3), True),
        ("onnxruntime", (None, None, None, None), (5, 7, 3), True),
        ("litert", (None, None, None, None), (5, 7, 3), False),
        ("onnxruntime", (1, 3, 3, 3), (3, 3, 3), True),
        ("litert", (1, 3, 3, 3), (3, 3, 3), False),
        ("onnxruntime", (1, 1, 5, 7), (5, 7, 1), True),
        ("onnxruntime", (1, 5, 7, 1), (5, 7, 1), False),
    ],
)
def test_layout_is_the_models(
    engine: str, shape: tuple[int | None, ...], image: tuple[int, int, int], first: bool
) -> None:
    pixels, job = _pixels(*image), _job(engine, image[2])
    made = inputs.ImageInput([wire.TensorInfo("x", shape, "float32")], image, job)(pixels)
    wanted = (pixels / 255 - np.array(job.mean)) / np.array(job.std)
    np.testing.assert_allclose(made, wanted.transpose(0, 3, 1, 2) if first else wanted, rtol=0, atol=2e-6)
    assert made.dtype == np.float32 and made.flags.c_contiguous


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 105), (1, 3, 7, 5), (1, 1, 3, 5, 7), ()])
def test_a_shape_that_fits_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AgentError, match="takes neither"):
        inputs.ImageInput([wire.TensorInfo("x", shape, "float32")], (5, 7, 3), _job())


def test_two_inputs_fit_no_image() -> None:
    tensor = wire.TensorInfo("x", (1, 3, 5, 7), "float32")
    with pytest.raises(AgentError, match="2 inputs"):
        inputs.ImageInput([tensor, tensor], (5, 7, 3), _job())


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -5), ("uint8", 120), ("int8", 127)])
def test_quantised_by_scale_and_zero_point_and_clipped(dtype: str, zero_point: int) -> None:
    values = np.array([-1e9, -1.0, -0.03, -0.015, 0.0, 0.015, 0.044, 1.0, 1e9], np.float32)
    made = inputs.to_dtype(values, wire.TensorInfo("x", (9,), dtype, 0.03, zero_point))
    limits = np.iinfo(dtype)
    wanted = np.clip(np.round(values / np.float32(0.03)) + zero_point, limits.min, limits.max)
    np.testing.assert_array_equal(made.astype(np.float32), wanted)
    assert made.dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types(dtype: str) -> None:
    assert inputs.to_dtype(np.ones(2, np.float32), wire.TensorInfo("x", (2,), dtype)).dtype == np.dtype(dtype)


def test_integers_without_a_scale_are_refused_for_images() -> None:
    with pytest.raises(AgentError, match="int8 without a scale"):
        inputs.to_dtype(np.ones(2, np.float32), wire.TensorInfo("x", (2,), "int8"))


@pytest.mark.parametrize(
    ("tensor", "low", "high"),
    [
        (wire.TensorInfo("x", (None, 3, 4), "float32"), -6, 6),
        (wire.TensorInfo("x", (2, 50), "int64"), 0, 1),
        (wire.TensorInfo("x", (2, 50), "uint8"), 0, 255),
        (wire.TensorInfo("x", (2, 50), "bool"), 0, 1),
        (wire.TensorInfo("x", (2, 50), "int8", 0.02, 3), -128, 127),
        (wire.TensorInfo("x", (), "float32"), -6, 6),
    ],
)
def test_random_inputs(tensor: wire.TensorInfo, low: int, high: int) -> None:
    first, again = (inputs.random_input(tensor, np.random.default_rng(0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.dtype(tensor.dtype)
    assert first.shape == tuple(1 if d is None else d for d in tensor.shape)
    assert low <= first.min() and first.max() <= high


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((1, None, 4), "float32", r"\(1, free, 4\): a size must be fixed"),
        ((1,), "string", "of type string"),
        ((1,), "complex64", "of type complex64"),
    ],
)
def test_no_random_input(shape: tuple[int | None, ...], dtype: str, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        inputs.random_input(wire.TensorInfo("x", shape, dtype), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (np.array([[-128, 5, 5, 127, -128, 0, 1]], np.int8), (3, 1, 2, 6, 5)),
        (np.array([[0, 255, 7]], np.uint8), (1, 2, 0)),
        (np.array([0.1, np.nan, 0.3], np.float32), (2, 0, 1)),
        (np.zeros((1, 9), np.float32), (0, 1, 2, 3, 4)),
    ],
)
def test_top5(output: np.ndarray, wanted: tuple[int, ...]) -> None:
    assert inputs.top5(output) == wanted
