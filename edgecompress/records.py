"""The records that pass between stages: frozen, plain, units in the names, no I/O.

`None` means "not measured" and stands beside a reason; `0` is a measured zero. `to_json`/`from_json` turn any of them into
plain JSON values and back, so that a run directory holds them as text that other tools can read.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Arithmetic and storage of a network, for one input (batch 1).

    macs: multiply-accumulates of convolution and fully connected layers, bias excluded (FLOPs = 2 × MACs).
    effective_macs: the same without those whose weight is exactly zero. No engine here skips them: no claim of speed.
    peak_activation_bytes: largest sum of a layer's input and output as float32 over all layers (lower bound of the arena).
    """

    params: int
    nonzero_params: int
    macs: int
    effective_macs: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class Accuracy:
    """top1, top5 in [0, 1] over `images` images of `split`. top5 is None for 5 classes or fewer.

    correct: one character per image in order, '1' right and '0' wrong (the raw data for paired tests).
    """

    split: str
    images: int
    top1: float
    top5: float | None
    correct: str


@dataclass(frozen=True)
class TrainRecord:
    """One training run. seconds: wall time of the loop. energy_j: None, with energy_reason, where nothing measured it."""

    epochs: int
    seconds: float
    images: int
    final_loss: float
    history: tuple[dict[str, float], ...]
    device: str
    precision: str
    seed: int
    resumed_at_epoch: int | None = None
    energy_j: float | None = None
    energy_reason: str | None = "not measured: no sensor on this host"


@dataclass(frozen=True)
class StepRecord:
    """What one step of a recipe did: its method, its full parameters (defaults included), seconds, and the method's notes."""

    method: str
    params: dict[str, Any]
    seconds: float
    trainings: tuple[TrainRecord, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def train_seconds(self) -> float:
        return sum(t.seconds for t in self.trainings)


@dataclass(frozen=True)
class ModelRecord:
    """A model on disk (the baseline, or the baseline after some steps). `directory` is relative to the run directory."""

    directory: str
    steps: tuple[StepRecord, ...]
    cost: Cost
    accuracy: Accuracy
    trainings: tuple[TrainRecord, ...] = ()
    weights: str | None = None
    """Where the weights came from when they were not trained here: the file as the study names it."""


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the torch model on the same real inputs (validation images), measured at export.

    tolerance: largest |difference| of a logit that is accepted for a float file; None for int8 files, which are held to
    `agreement_floor`, the fraction of images whose top-1 must be the same.
    """

    images: int
    max_abs_diff: float
    mean_abs_diff: float
    top1_agreement: float
    tolerance: float | None
    agreement_floor: float | None


@dataclass(frozen=True)
class Artifact:
    """An exported file. `file` is relative to the run directory.

    packed_bytes: the size after xz -6 (the packing every Debian archive uses), what a download or a flash image would cost.
    operators: operator type → count, and `float_layers`: names of convolution or linear layers left in float.
    zeros: weights that are exactly zero in the file's convolution and linear layers, weights: how many there are.
    model_zeros: the zeros of the same weights before the export, never more than `zeros`; None: the file's layers are others.
    notes: what a reader must know so as not to misread the file's figures.
    """

    format: str
    file: str
    sha256: str
    file_bytes: int
    packed_bytes: int
    seconds: float
    parity: Parity
    operators: dict[str, int]
    weights: int
    zeros: int
    input_shape: tuple[int, ...]
    input_dtype: str
    activation_type: str | None
    toolchain: dict[str, str]
    warnings: tuple[str, ...] = ()
    model_zeros: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """One round of a measurement: what was asked and the agent's whole answer (`wire.Job`, `wire.Result` as JSON).

    member: the board that measured, by its profile's name: of a pool one of its members, else the device itself (None in
    a run of an older version).
    """

    job: dict[str, Any]
    result: dict[str, Any]
    seconds: float
    member: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One variant on one device, all rounds: the first job, and the answers put together, raw. `result`: a `wire.Result`.

    correct: as in Accuracy, from the predictions that the device made on the exported file. None: not scored.
    member: as in Round.
    """

    device: str
    job: dict[str, Any]
    result: dict[str, Any]
    accuracy: Accuracy | None
    seconds: float
    warnings: tuple[str, ...] = ()
    member: str | None = None


@dataclass(frozen=True)
class Failure:
    """A step that could not be done. It is kept and becomes a row; running the study again tries it again."""

    stage: str
    reason: str
    traceback: str | None = None


def to_json(record: Any) -> Any:
    """Plain JSON values of a record: dataclasses to dicts, tuples to lists."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, (list, tuple)):
        return [to_json(v) for v in record]
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in record.items()}
    return record


def from_json(kind: Any, value: Any) -> Any:
    """The record of type `kind` from its JSON values; TypeError when they do not fit (unknown or missing fields)."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None else from_json(inner[0], value)
    if origin is tuple:
        (item, *rest) = typing.get_args(kind)
        kinds = [item] * len(value) if rest in ([], [...]) else [item, *rest]
        return tuple(from_json(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is dict:
        return {k: from_json(typing.get_args(kind)[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{k: from_json(hints[k], v) if k in hints else v for k, v in value.items()})
    return value
