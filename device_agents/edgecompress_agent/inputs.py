"""From raw pixels, or from nothing, to what a model's input takes: layout, normalisation, quantisation. Never timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional, Sequence, Tuple

import numpy as np

from edgecompress_agent.errors import AgentError
from edgecompress_agent.wire import Job, TensorInfo

Array = Any
"""numpy.ndarray; numpy 1.19 (Python 3.8 boards) has no type to write here."""


def load_images(path: Any) -> Array:
    """The images of a .npy, uint8 (N, H, W, C), mapped rather than read: a board's memory is small. AgentError otherwise."""
    try:
        images = np.load(str(path), mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise AgentError(f"the images are not a .npy file: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise AgentError(f"the images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}")
    return images


class ImageInput:
    """How images become the model's one input. AgentError when they cannot."""

    def __init__(self, tensors: Sequence[TensorInfo], image_shape: Tuple[int, int, int], job: Job) -> None:
        if len(tensors) != 1:
            raise AgentError(
                f"the model has {len(tensors)} inputs ({', '.join(t.name for t in tensors)}): images fit one"
            )
        self._tensor = tensors[0]
        self._channels_first = _channels_first(self._tensor, image_shape, job.engine)
        if len(job.mean) != image_shape[2]:
            raise AgentError(
                f"images of {image_shape[2]} channels need as many values of mean and std, not {len(job.mean)}"
            )
        self._mean = np.asarray(job.mean, np.float32)
        self._std = np.asarray(job.std, np.float32)
        self.raw = self._tensor.dtype == "uint8" and self._tensor.scale is None
        """The model takes pixels as they are: normalisation is the model's own."""

    def __call__(self, images: Array) -> Array:
        """uint8 (n, H, W, C) → the input's layout and dtype, contiguous."""
        if self.raw:
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if self._channels_first else images)
        values = (images.astype(np.float32) / np.float32(255) - self._mean) / self._std
        if self._channels_first:
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(to_dtype(values, self._tensor))


def _channels_first(tensor: TensorInfo, image_shape: Tuple[int, int, int], engine: str) -> bool:
    height, width, channels = image_shape
    orders = [(True, (1, channels, height, width)), (False, (1, height, width, channels))]
    if engine == "litert":  # a shape that fits both (free or equal dimensions) is read as the engine's usual layout
        orders.reverse()
    for channels_first, wanted in orders:
        fits = len(tensor.shape) == 4 and all(have in (None, want) for have, want in zip(tensor.shape, wanted))
        if fits:
            return channels_first
    raise AgentError(
        f"the input {tensor.name!r} has shape {_shape(tensor)}: it takes neither {orders[0][1]} nor {orders[1][1]}, "
        "one image at a time"
    )


def to_dtype(values: Array, tensor: TensorInfo) -> Array:
    """Real values as the tensor stores them: quantised by its scale and zero point, or as a float type."""
    dtype = np.dtype(tensor.dtype)
    if tensor.scale is not None and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        stored = np.rint(values / np.float32(tensor.scale)) + float(tensor.zero_point or 0)
        return np.clip(stored, limits.min, limits.max).astype(dtype)
    if dtype.kind != "f":
        raise AgentError(
            f"the input {tensor.name!r} is {tensor.dtype} without a scale: normalised images do not fit it"
        )
    return values.astype(dtype)


def with_batch(tensor: TensorInfo, batch: int, *, resizable: bool) -> TensorInfo:
    """The input as it is for so many at once. resizable: the engine can change a first dimension of 1. AgentError: it is
    fixed."""
    if not tensor.shape or (batch == 1 and tensor.shape[0] is not None):
        return tensor
    if tensor.shape[0] in (None, batch) or (tensor.shape[0] == 1 and resizable):
        return replace(tensor, shape=(batch, *tensor.shape[1:]))
    raise AgentError(
        f"the input {tensor.name!r} has shape {_shape(tensor)}: it takes no batch of {batch}, its first dimension is fixed"
    )


def check_batch(outputs: Sequence[Array], batch: int) -> None:
    """AgentError when an output has not as many rows as were put in: then the file does not compute the batch."""
    for output in outputs if batch > 1 else ():
        if output.shape[:1] != (batch,):
            raise AgentError(
                f"of a batch of {batch} the file puts out {tuple(output.shape)}: it does not compute a batch"
            )


def random_input(tensor: TensorInfo, generator: Any) -> Array:
    """Seeded values for an input when there are no images: normal ones; 0 and 1 for integers that could be indices; any
    pixel for uint8. A free first dimension is 1. AgentError when another one is free, or for text."""
    shape = tensor.shape if not tensor.shape or tensor.shape[0] is not None else (1, *tensor.shape[1:])
    if None in shape:
        raise AgentError(f"the input {tensor.name!r} has shape {_shape(tensor)}: a size must be fixed in the file")
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError:
        raise AgentError(f"the input {tensor.name!r} is of type {tensor.dtype}, which there is no value for") from None
    if dtype.kind == "f" or tensor.scale is not None:
        return to_dtype(generator.standard_normal(shape).astype(np.float32), tensor)
    if dtype.kind in "iub":
        return generator.integers(0, 256 if tensor.dtype == "uint8" else 2, shape).astype(dtype)
    raise AgentError(f"the input {tensor.name!r} is of type {tensor.dtype}, which there is no value for")


def top5(output: Array) -> Tuple[int, ...]:
    """Indices of the five largest values of one image's output, best first, the lower index first among equals.

    Quantised values keep their order, so nothing is dequantised; float64 holds every stored integer exactly, and its
    negation does not overflow as that of int8's -128 would.
    """
    order = np.argsort(-np.asarray(output).reshape(-1).astype(np.float64), kind="stable")
    return tuple(int(i) for i in order[:5])


def _shape(tensor: TensorInfo) -> str:
    def name(size: Optional[int]) -> str:
        return "free" if size is None else str(size)

    return f"({', '.join(name(s) for s in tensor.shape)})"
