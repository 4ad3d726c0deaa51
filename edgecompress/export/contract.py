"""What every exporter is given, and the one way from a model to a checked artifact: convert, count, compare, record."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import codebooks, masks, plugins, quantization
from edgecompress.activations import ActivationType
from edgecompress.errors import StepFailed, UserError, near_misses
from edgecompress.export import census, few_bits, parity, zeros
from edgecompress.progress import SILENT, Progress
from edgecompress.records import Artifact

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.data import Dataset

_NOTE_CHARACTERS = 600


@dataclass(frozen=True)
class ExportContext:
    """What an exporter may use.

    in_shape: (C, H, W). calibration: float32 (N, C, H, W), normalised; used by the int8 formats only. activation_type: for
    onnx-int8. cache: a directory for the float files of this model, which the int8 formats start from.
    """

    in_shape: tuple[int, int, int]
    calibration: np.ndarray
    activation_type: ActivationType
    cache: Path


def formats() -> list[str]:
    """Names of all export formats, as a study writes them."""
    return [name.replace("_", "-") for name in plugins.names("edgecompress.export", attribute="export")]


def available_formats() -> list[str]:
    """The formats whose packages are installed here (the tflite ones need the extra)."""
    return [name for name in formats() if not _missing(name)]


def check_installed(name: str) -> None:
    """UserError when a package that the format `name` needs is not installed, or there is no such format. Imports nothing."""
    missing = _missing(name)
    if missing:
        fix = "pip install 'edgecompress[tflite]'" if name.startswith("tflite") else "pip install edgecompress"
        raise UserError(f"the format {name} needs {', '.join(missing)}, which is not installed", fix=fix)


def _missing(name: str) -> list[str]:
    return [package for package in _exporter(name).PACKAGES if _version(package) is None]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages(name: str) -> tuple[str, ...]:
    """The distributions that make files of the format `name`: their versions decide what is in them."""
    needed: tuple[str, ...] = _exporter(name).PACKAGES
    return needed


def _exporter(name: str) -> ModuleType:
    known = formats()
    if name not in known:
        raise UserError(f"unknown export format {name!r}", fix=near_misses(name, known))
    return plugins.find("edgecompress.export", name.replace("-", "_"), attribute="export", kind="export format")


def check_calibration(context: ExportContext) -> None:
    """UserError unless the calibration images are finite float32 (N ≥ 1, C, H, W) of the model's input shape."""
    from edgecompress.data import check_images

    check_images(context.calibration, context.in_shape)


def float_file(
    model: nn.Module, destination: Path, context: ExportContext, suffix: str, convert: Callable[[Path], None]
) -> None:
    """Put the float file of `model` at `destination`: from the cache where the same weights were converted before.

    The key is of the weights, the input shape and the module's printed form, so that a cache which outlives its model does
    no harm; two models that differ only in the code of `forward` need two caches.
    """
    context.cache.mkdir(parents=True, exist_ok=True)
    cached = context.cache / f"float-{_model_key(model, context)}{suffix}"
    if not cached.exists():
        partial = cached.with_name(f"partial-{os.getpid()}-{cached.name}")
        convert(partial)
        partial.replace(cached)
    shutil.copyfile(cached, destination)


def _model_key(model: nn.Module, context: ExportContext) -> str:
    digest = hashlib.sha256(repr((context.in_shape, str(model))).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def export_artifact(
    model: nn.Module,
    format: str,
    directory: Path,
    *,
    dataset: Dataset,
    activation_type: ActivationType,
    cache: Path,
    progress: Progress = SILENT,
) -> Artifact:
    """Export `model` into `directory`, checked: no float layer in an int8 file, and parity with torch on validation images.

    The model itself is left as it is. `activation_type` is used by onnx-int8 only and becomes part of its file name; the
    returned `file` is relative to `directory`. StepFailed when the model cannot be exported or the file fails a check (no
    file is left then); UserError for an unknown format, a missing extra or unfit calibration images.
    """
    from edgecompress import data
    from edgecompress.cost import packed_bytes

    exporter = _exporter(format)
    activations = _activations(format, activation_type, int8=exporter.INT8)
    stem = f"{format}-{activations}" if exporter.FILE_TYPE == "onnx" and exporter.INT8 else format
    destination = directory / f"{stem}{exporter.SUFFIX}"
    partial = directory / f"partial-{destination.name}"
    directory.mkdir(parents=True, exist_ok=True)
    with progress.task(f"export {format}", total=4) as task:
        plain = _plain(model)
        images = data.normalise(
            dataset.val.images(parity.pick(len(dataset.val), dataset.in_shape)), dataset.mean, dataset.std
        )
        reference = parity.torch_logits(plain, images, classes=dataset.num_classes)
        calibration = (
            data.calibration_images(dataset) if exporter.INT8 else np.empty((0, *dataset.in_shape), np.float32)
        )
        context = ExportContext(dataset.in_shape, calibration, activation_type, cache)
        task.describe("converting")
        try:
            started = time.monotonic()
            _convert(exporter, format, plain, partial, context)
            seconds = time.monotonic() - started
            task.advance()
            task.describe("counting operators")
            counted = census.count(partial)
            settings = quantization.get(plain)
            if exporter.INT8:
                census.refuse_float_layers(counted, format, settings.float_layers, settings.float_precision)
            model_weights, model_zeros = zeros.of_layers(plain)
            warnings = zeros.compare(counted, model_weights, model_zeros, format)
            task.advance()
            task.describe("comparing with torch")
            compared = parity.compare(reference, parity.file_logits(partial, images), int8=exporter.INT8)
            warnings += parity.judge(compared, format)
            if exporter.INT8:
                weight_bits = 7 if activations == "uint8-reduced" else 8
                warnings += quantization.lost_rounding(quantization.get(plain), weight_bits)
            if exporter.FILE_TYPE == "onnx" and exporter.INT8:
                warnings += _left_in_float(partial, activation_type, settings.float_layers)
            task.advance()
            task.describe("packing")
            packed = packed_bytes(partial)
            sha256 = _sha256(partial)
            partial.chmod(0o644)  # the quantizer makes its file executable
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
        task.advance()
    return Artifact(
        format=format,
        file=destination.name,
        sha256=sha256,
        file_bytes=destination.stat().st_size,
        packed_bytes=packed,
        seconds=seconds,
        parity=compared,
        operators=counted.operators,
        weights=counted.weights,
        zeros=counted.zeros,
        model_zeros=model_zeros if model_weights == counted.weights else None,
        input_shape=counted.input_shape,
        input_dtype=counted.input_dtype,
        activation_type=activations,
        toolchain={package: metadata.version(package) for package in exporter.PACKAGES},
        warnings=warnings,
        notes=few_bits.notes(plain, settings, "an 8-bit" if exporter.INT8 else "a float32"),
    )


def export_file(model: nn.Module, format: str, directory: Path, stem: str, context: ExportContext) -> Path:
    """Only the file, unchecked, as `stem` in `directory` with the format's suffix: for networks that are there to be timed.

    The model itself is left as it is. Errors as in `export_artifact`.
    """
    check_installed(format)
    exporter = _exporter(format)
    path = directory / f"{stem}{exporter.SUFFIX}"
    _convert(exporter, format, _plain(model), path, context)
    return path


def _left_in_float(path: Path, activation_type: ActivationType, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Warnings when the engine itself puts layers of an int8 file back to float, on the kind of device that it is made for, or
    layers that are to stay in float into int8."""
    from edgecompress.export.census_onnx import as_run

    as_executed = as_run(path, int8_activations=not activation_type.startswith("uint8"))
    device = "x86" if activation_type.startswith("uint8") else "ARM"
    back = [layer for layer in as_executed.float_layers if layer not in wanted]
    lost = [layer for layer in wanted if layer not in as_executed.float_layers]
    return tuple(
        f"ONNX Runtime on {device} computes {len(layers)} layers of this file in {how}: {', '.join(layers[:8])}"
        for layers, how in ((back, "float"), (lost, "int8, which are to stay in float"))
        if layers
    )


def _activations(name: str, asked: ActivationType, *, int8: bool) -> str | None:
    """The activations' type in the file: LiteRT knows int8 with a zero point only."""
    if not int8:
        return None
    return "int8" if name.startswith("tflite") else asked


def _plain(model: nn.Module) -> nn.Module:
    """A copy for the exporter: on the CPU, float32, in eval mode, without masks and codes (the weights are as they say)."""
    try:
        plain = copy.deepcopy(model)
    except RuntimeError as error:  # torch: "Only Tensors created explicitly by the user support the deepcopy protocol"
        raise StepFailed(f"the model cannot be copied for the export: {error}") from error
    masks.apply(plain)
    codebooks.apply(plain)
    plain = codebooks.strip(masks.strip(plain)).cpu().float().eval().requires_grad_(False)
    zeros.flush_denormals(plain)
    return plain


def _convert(exporter: ModuleType, name: str, model: nn.Module, path: Path, context: ExportContext) -> None:
    try:
        exporter.export(model, path, context)
    except (UserError, StepFailed):
        raise
    except Exception as error:  # the exporters run the user's forward and raise whatever they or it like
        raise StepFailed(f"the model cannot be exported to {name}: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    """The kind and message of an exporter's exception, and the end of what it printed (see quiet.py)."""
    notes: list[Any] = getattr(error, "__notes__", [])
    text = f"{type(error).__name__}: {str(error).strip()}"[:_NOTE_CHARACTERS]
    printed = " ".join(str(note) for note in notes).strip()
    return f"{text} [it printed: …{printed[-_NOTE_CHARACTERS:]}]" if printed else text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
