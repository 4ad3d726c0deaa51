"""The Python interface: compress a network that is a block of a larger program, and load what a study left on disk."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT, Progress
from edgecompress.records import Accuracy, Cost, StepRecord
from edgecompress.study import DataSpec, Step

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.data import Dataset


_NOT_KEPT = (
    "The checkpoints of this call are not kept, for no scratch was given: they lay in a temporary folder. With scratch=… the same "
    "call goes on from them."
)
"""Added to a failure that may speak of what is kept, as it is in a study."""


@dataclass(frozen=True)
class Report:
    """What a compression did. A value that is None was not measured, and the reason beside it says why.

    bytes: parameters and buffers in memory, zeros included. cost: parameters, MACs (see `edgecompress.cost`). accuracy: on
    the test part of the data, which no method has seen. seconds: of all steps; each step's own, its full parameters and
    its trainings are in `steps`.
    """

    params_before: int
    params_after: int
    nonzero_before: int
    nonzero_after: int
    bytes_before: int
    bytes_after: int
    cost_before: Cost | None
    cost_after: Cost | None
    cost_reason: str | None
    accuracy_before: Accuracy | None
    accuracy_after: Accuracy | None
    accuracy_reason: str | None
    seconds: float
    steps: tuple[StepRecord, ...]


@dataclass(frozen=True)
class CompressResult:
    """model: same inputs, same outputs as the one given, in eval mode. report: what that took and gave."""

    model: nn.Module
    report: Report


def compress(
    model: nn.Module,
    method: str | Step | Mapping[str, Any] | Sequence[str | Step | Mapping[str, Any]],
    *,
    data: Dataset | DataSpec | str | None = None,
    seed: int = 0,
    example_input: Tensor | None = None,
    scratch: str | Path | Sequence[str | Path] | None = None,
    device: str | DeviceProfile = "local",
    progress: Progress = SILENT,
    **params: Any,
) -> CompressResult:
    """Compress a copy of `model`; the one given is not changed.

    method: a method's name with its parameters as keywords, `compress(model, "magnitude", sparsity=0.9)`, or a list of
    steps, `[{"method": "magnitude", "sparsity": 0.8}, "distill"]`. data: a dataset, its spec or its name; needed where
    something trains and for the accuracy. example_input: a batch (N, C, H, W), whose shape counts when there are no data.
    scratch: a directory of this call's own for checkpoints of trainings and searches (or a list, one for each step), which stays
    until you remove it: after a kill or a StepFailed the same call goes on from there. Without it they lie in a temporary folder
    and nothing of them is kept. A call that asks for something else, or measures on another device, wants another directory.
    device: the profile, its name or file, of the device that a step measures on while it works, where it does.
    Raises UserError for a wrong request, before anything is trained as far as it can be known then, and StepFailed when a step
    could not be done.
    """
    from edgecompress.benches import open_benches
    from edgecompress.recipe import check_before, run_steps

    steps = _steps(method, params)
    folders = _scratch(scratch, len(steps))
    dataset = _dataset(data, seed)
    in_shape: tuple[int, ...] | None = dataset.in_shape if dataset is not None else None
    if in_shape is None and example_input is not None:
        in_shape = tuple(example_input.shape[1:])
    with (
        open_benches(steps, device, progress) as benches,
        tempfile.TemporaryDirectory(prefix="edgecompress-") as temporary,
    ):
        check_before(steps, lambda: (copy.deepcopy(model).eval(), in_shape), progress.say)
        before = _measure(model, in_shape, dataset, progress)
        began = time.monotonic()
        try:
            result, records = run_steps(
                copy.deepcopy(model), steps, data=dataset, seed=seed,
                scratch=Path(temporary) if folders is None else folders, progress=progress, benches=benches, in_shape=in_shape,
            )  # fmt: skip
        except StepFailed as error:
            if any(path.is_file() for path in Path(temporary).rglob("*")):
                raise StepFailed(f"{error}\n  {_NOT_KEPT}") from error
            raise
    seconds = time.monotonic() - began
    after = _measure(result, in_shape, dataset, progress)
    report = Report(
        params_before=before.params, params_after=after.params,
        nonzero_before=before.nonzero, nonzero_after=after.nonzero,
        bytes_before=before.bytes, bytes_after=after.bytes,
        cost_before=before.cost, cost_after=after.cost,
        cost_reason=None if in_shape else "not counted: neither data nor example_input tell the input's shape",
        accuracy_before=before.accuracy, accuracy_after=after.accuracy,
        accuracy_reason=None if dataset is not None else "not measured: no data given",
        seconds=seconds, steps=records,
    )  # fmt: skip
    return CompressResult(result, report)


def load(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network in a model directory (of a run, or of `edgecompress compress --out`) or in an `.ecz` file that
    `edgecompress pack` made of one, in eval mode, masks in place.

    model: the module to fill, where the directory holds the weights of a network of one's own. UserError: see
    `edgecompress.models.checkpoint.load_model` and `edgecompress.coding.unpack`.
    """
    from edgecompress.models.checkpoint import load_model

    path = Path(directory)
    if path.is_dir() or path.suffix != ".ecz":
        return load_model(path, model)
    from edgecompress.coding import unpack

    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
        unpack(path, Path(folder) / "model")
        try:
            return load_model(Path(folder) / "model", model)
        except UserError as error:
            raise UserError(error.what, where=str(path), fix=error.fix) from None


def _steps(method: Any, params: dict[str, Any]) -> tuple[Step, ...]:
    if isinstance(method, str):
        wanted: list[Any] = [{**params, "method": method}]
    elif isinstance(method, (Step, Mapping)):
        wanted = [method]
    elif isinstance(method, Sequence):
        wanted = list(method)
    else:
        raise UserError(f"a {type(method).__name__} is no method", fix="Give a method's name or a list of steps.")
    if params and not isinstance(method, str):
        raise UserError(
            f"{', '.join(params)}: parameters belong into the steps when steps are given",
            fix='For example [{"method": "magnitude", "sparsity": 0.9}].',
        )
    steps = []
    for number, value in enumerate(wanted, 1):
        try:
            steps.append(Step.model_validate(dict(value) if isinstance(value, Mapping) else value))
        except ValidationError as error:
            reasons = "; ".join(d["msg"].removeprefix("Value error, ") for d in error.errors(include_url=False))
            raise UserError(reasons, where=f"step {number}") from None
    return tuple(steps)


def _scratch(scratch: Any, steps: int) -> Path | tuple[Path, ...] | None:
    """The directory or directories for checkpoints. UserError: not one for each step, or one that cannot be a directory."""
    if scratch is None:
        return None
    single = isinstance(scratch, (str, Path))
    given = [scratch] if single else scratch
    if not isinstance(given, Sequence) or not all(isinstance(folder, (str, Path)) for folder in given):
        raise UserError(
            "no directory, and no list of directories",
            where="scratch",
            fix="Give one path, or a list of one for each step.",
        )
    if not single and len(given) != steps:
        raise UserError(
            f"one directory for each step is needed: the steps are {steps}, the directories {len(given)}", where="scratch",
            fix="Give as many, or one path for all steps.",
        )  # fmt: skip
    folders = tuple(map(Path, given))
    for folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not there.is_dir():
            raise UserError(
                f"{there} is no directory", where="scratch", fix="Name a directory, which may be a new one."
            )
    return folders[0] if single else folders


def _dataset(data: Any, seed: int) -> Dataset | None:
    from edgecompress.data import Dataset, load

    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, DataSpec):
        return load(data, seed=seed)
    if isinstance(data, str):
        try:
            return load(DataSpec(name=data), seed=seed)
        except ValidationError as error:
            reasons = "; ".join(d["msg"].removeprefix("Value error, ") for d in error.errors(include_url=False))
            raise UserError(reasons, where="data", fix="Give a DataSpec for a dataset that needs a path.") from None
    raise UserError(f"data is a {type(data).__name__}", fix="Give a Dataset, a DataSpec or a dataset's name.")


@dataclass(frozen=True)
class _State:
    params: int
    nonzero: int
    bytes: int
    cost: Cost | None
    accuracy: Accuracy | None


def _measure(model: nn.Module, in_shape: Any, data: Dataset | None, progress: Progress) -> _State:
    from edgecompress import cost
    from edgecompress.evaluate import accuracy

    params, nonzero = cost.parameter_counts(model)
    return _State(
        params,
        nonzero,
        cost.weight_bytes(model),
        cost.count(model, in_shape) if in_shape else None,
        accuracy(model, data, "test", progress=progress) if data is not None else None,
    )
