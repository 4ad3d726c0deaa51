"""How far an exported file is from the torch model: both run on the same real images here, and the logits are compared."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.errors import StepFailed
from edgecompress.records import Parity

if TYPE_CHECKING:
    from torch import nn

IMAGES = 256
"""Validation images compared; fewer of large images, see `pick`."""

TOLERANCE = 1e-3
"""Float files: largest accepted |difference| of a logit, times the largest |logit| where that is above 1. The converters
measure 1e-6 to 1e-5; a wrong padding, a missed layer or a frozen branch gives 1e-1 and more."""

AGREEMENT_FLOOR = 0.5
"""Int8 files: with less than this share of images of the same top-1 the file is refused: that is a broken file or a
model that int8 destroys, and no comparison of methods."""

AGREEMENT_WARNING = 0.95

_ELEMENTS = 32 * 224 * 224 * 3
_BATCH = 32


def pick(available: int, in_shape: tuple[int, int, int]) -> np.ndarray:
    """Indices of the validation images that are compared: evenly spread, 256, or 32 of 3×224×224. Always the same ones."""
    wanted = max(32, min(IMAGES, _ELEMENTS // int(np.prod(in_shape))))
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).astype(np.int64))


def torch_logits(model: nn.Module, images: np.ndarray, *, classes: int) -> np.ndarray:
    """float32 (N, classes) of the torch model. StepFailed when it returns anything else, or NaN."""
    import torch

    outputs = []
    with torch.inference_mode():
        for k in range(0, len(images), _BATCH):
            batch = torch.from_numpy(images[k : k + _BATCH])
            output = model(batch)
            if not isinstance(output, torch.Tensor):
                raise StepFailed(
                    f"the model returns a {type(output).__name__}; a model that is exported returns one tensor (N, {classes})"
                )
            if tuple(output.shape) != (len(batch), classes):
                raise StepFailed(
                    f"the model returns shape {tuple(output.shape)} for {len(batch)} images; ({len(batch)}, {classes}) is needed"
                )
            outputs.append(output.float().numpy())
    logits = np.concatenate(outputs)
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise StepFailed(f"the torch model gives NaN or infinity on {bad} of {len(logits)} validation images")
    return logits


def file_logits(path: Path, images: np.ndarray) -> np.ndarray:
    """float32 (N, classes) of an .onnx or .tflite file on float32 NCHW images; int8 inputs and outputs are converted."""
    try:
        return _onnx_logits(path, images) if path.suffix == ".onnx" else _tflite_logits(path, images)
    except (RuntimeError, ValueError) as error:
        # onnxruntime's exceptions derive from RuntimeError, LiteRT raises both
        raise StepFailed(f"the exported file does not run here: {str(error).strip()[:600]}") from error


def _onnx_logits(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # x86 without VNNI adds pairs of uint8 × int8 products in 16 bits, which saturates. This asks for the exact sum: parity
    # is about the file. What the device makes of it is what the agent scores.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    # the first image alone, then batches: both must work
    cuts = [0, 1, *range(1 + _BATCH, len(images), _BATCH), len(images)] if len(images) > 1 else [0, 1]
    runs = [session.run(None, {name: images[a:b]})[0] for a, b in itertools.pairwise(cuts)]
    return np.concatenate(runs).astype(np.float32)


def _tflite_logits(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    from edgecompress.export.quiet import quiet

    with quiet():  # XNNPACK announces itself
        interpreter = Interpreter(model_path=str(path), num_threads=min(4, os.cpu_count() or 1))
        interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    (target,) = interpreter.get_output_details()
    inputs = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    if source["dtype"] == np.int8:
        scale, zero = source["quantization"]
        inputs = np.clip(np.rint(inputs / scale) + zero, -128, 127).astype(np.int8)
    outputs = []
    for image in inputs:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    logits = np.stack(outputs).astype(np.float32)
    if target["dtype"] == np.int8:
        scale, zero = target["quantization"]
        logits = (logits - np.float32(zero)) * np.float32(scale)
    return logits


def compare(reference: np.ndarray, got: np.ndarray, *, int8: bool) -> Parity:
    """The two sets of logits (N, classes) compared. StepFailed when the file's have another shape."""
    if reference.shape != got.shape:
        raise StepFailed(f"the exported file returns shape {got.shape} where torch returns {reference.shape}")
    difference = np.abs(reference.astype(np.float64) - got)
    return Parity(
        images=len(reference),
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        top1_agreement=float((reference.argmax(1) == got.argmax(1)).mean()),
        tolerance=None if int8 else TOLERANCE * max(1.0, float(np.abs(reference).max())),
        agreement_floor=AGREEMENT_FLOOR if int8 else None,
    )


def judge(parity: Parity, name: str) -> tuple[str, ...]:
    """Warnings about a file that passes; StepFailed for one that does not (NaN passes nothing)."""
    if parity.tolerance is not None and not parity.max_abs_diff <= parity.tolerance:
        raise StepFailed(
            f"the {name} file is not the model: a logit differs by {parity.max_abs_diff:.3g} on {parity.images} validation "
            f"images, {parity.tolerance:.3g} is tolerated. A forward with data-dependent branches is frozen at one of them."
        )
    if parity.agreement_floor is None:
        return ()
    if not (parity.top1_agreement >= parity.agreement_floor and np.isfinite(parity.max_abs_diff)):
        raise StepFailed(
            f"the {name} file has the top-1 of the torch model on {parity.top1_agreement:.0%} of {parity.images} validation "
            f"images, {parity.agreement_floor:.0%} is the floor: int8 destroys this model, or its calibration images do not "
            "resemble its data"
        )
    if parity.top1_agreement < AGREEMENT_WARNING:
        return (
            f"top-1 differs from the torch model's on {1 - parity.top1_agreement:.1%} of {parity.images} validation images",
        )
    return ()
