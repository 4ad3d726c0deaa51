"""What every compression method is given, and how its parameters are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from edgecompress import plugins
from edgecompress.distillation import FineTuneSpec, distillation_loss
from edgecompress.errors import UserError, near_misses
from edgecompress.progress import SILENT, Progress
from edgecompress.records import TrainRecord
from edgecompress.study import ModelSpec, TrainSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.data import Dataset
    from edgecompress.latency_search import LatencyRatio

Loss = Callable[["nn.Module", "Tensor", "Tensor"], "Tensor"]
"""(model, images float32 (N, C, H, W) normalised, labels int64 (N,)) → scalar loss.

One that has something for each training image has a method `by_row(model, images, labels, rows)` too, which is called
instead; rows int64 (N,): the images' places in the training part.
"""


FINETUNE_LR = 0.01
"""Learning rate of a fine-tuning that names none: a tenth of a training's, for weights that are nearly right."""


def _finetune_lr(value: Any) -> Any:
    if isinstance(value, TrainSpec):
        value = value.model_dump()
    return {"lr": FINETUNE_LR, **value} if isinstance(value, dict) else value


FineTune = Annotated[FineTuneSpec | None, BeforeValidator(_finetune_lr)]
"""The training after a method has changed the weights: a TrainSpec whose `lr` is 0.01 unless given, with `distill: {…}` under
the dense model (`edgecompress.distillation`). None: no training."""


Resource = Literal["latency", "energy"]
"""What a device is asked: ms or mJ of an inference."""


def share_or(unit: str, example: str) -> BeforeValidator:
    """Of a parameter that is a fraction of the whole network's in (0, 1), or an amount above 0 such as `example`."""
    amount = re.compile(rf"([0-9]+(\.[0-9]+)?) ?{unit}")

    def checked(value: Any) -> Any:
        if value is None or (isinstance(value, float) and 0 < value < 1):
            return value
        found = amount.fullmatch(value) if isinstance(value, str) else None
        if found is not None and float(found[1]) > 0:
            return value
        raise ValueError(
            f"{value!r} is neither a fraction of the whole network's, above 0 and below 1, nor such as {example!r}"
        )

    return BeforeValidator(checked)


Small = Callable[[], tuple["nn.Module", tuple[int, int, int]]]
"""Makes a small network, in eval mode, and says its (C, H, W)."""


class Against(Protocol):
    """Candidates against one dense network on a device, measured in the same rounds."""

    def __call__(self, model: nn.Module, target: float | None = None) -> LatencyRatio:
        """target: the ratio that is searched for; a candidate that is clearly off it is measured for a shorter time."""
        ...

    def dense_ms(self) -> float:
        """Median latency of the dense network, ms."""
        ...


class Bench(Protocol):
    """One device and one export format, measured by the agent (ADR 0007)."""

    def multiple(self, model: nn.Module, in_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Plain JSON with what was measured for networks like this one, and "multiple": widths the engine likes."""
        ...

    def against(self, dense: nn.Module, in_shape: tuple[int, int, int]) -> AbstractContextManager[Against]: ...

    def energy_mj(self, model: nn.Module, in_shape: tuple[int, int, int]) -> float:
        """Energy of one inference at batch 1, all that the device's sensor reads, mJ. StepFailed: it could not be measured."""
        ...

    def small(self, what: Resource, networks: Mapping[str, Small]) -> dict[str, float]:
        """Of each network by name its latency in ms or its energy in mJ; what is known of a name on this device is not measured
        again, and what was measured before a failure is kept. The name has to say all that the cost depends on."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain JSON that what is measured depends on: device, engine and its version, format, …"""
        ...


Benches = Callable[[str | None, str], Bench]
"""(name of a device, None: the usual one; export format) → Bench."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a step measures while it works: on a device (None: the usual one), of files of an export format; energy: with a
    power sensor, too."""

    device: str | None
    format: str
    energy: bool = False


def asked_of_device(method: str, given: dict[str, Any]) -> Asked | None:
    """What the method measures with these parameters; None: nothing.

    A method that may measure has `measures(params)`, the resources that it asks a device for, and `device` and `format` among
    its parameters. ValueError as in `full_params`.
    """
    params = parse_params(method, given)
    measures = getattr(
        plugins.find("edgecompress.compress", method, attribute="apply", kind="method"), "measures", None
    )
    resources: Set[Resource] = set() if measures is None else measures(params)
    return Asked(params.device, params.format, "energy" in resources) if resources else None


def can_check(method: str) -> bool:
    """Whether a method can tell before a training that a network cannot be given what a step asks."""
    return hasattr(plugins.find("edgecompress.compress", method, attribute="apply", kind="method"), "check")


def check_network(method: str, given: dict[str, Any], model: nn.Module, context: Context) -> None:
    """UserError when no network like this one, whatever its weights, can be given what a step asks; the model may be changed.

    A method that can tell has `check(model, params, context)`; its context has neither data nor a device. ValueError as in
    `full_params`.
    """
    if can_check(method):
        module = plugins.find("edgecompress.compress", method, attribute="apply", kind="method")
        module.check(model, parse_params(method, given), context)


def check_files(method: str, given: dict[str, Any]) -> None:
    """UserError for a file that a step reads and cannot, or could not write, as far as that is known without a network.

    A method that reads or writes files has `check_files(params)`. ValueError as in `full_params`.
    """
    module = plugins.find("edgecompress.compress", method, attribute="apply", kind="method")
    if hasattr(module, "check_files"):
        module.check_files(parse_params(method, given))


def method_names() -> list[str]:
    return plugins.names("edgecompress.compress", attribute="apply")


def full_params(method: str, given: dict[str, Any], validation_context: Any = None) -> dict[str, Any]:
    """All parameters of a method as plain JSON values: the given ones checked, the others at their defaults.

    Raises ValueError with a readable message (unknown method, unknown key, wrong type or range).
    """
    return dict(
        TypeAdapter(_params_type(method)).dump_python(parse_params(method, given, validation_context), mode="json")
    )


def parse_params(method: str, given: dict[str, Any], validation_context: Any = None) -> Any:
    """The frozen `Params` of a method from plain values. ValueError as in `full_params`."""
    kind = _params_type(method)
    fields = [f.name for f in dataclasses.fields(kind)]
    for key in given:
        if key not in fields:
            raise ValueError(f"method {method}: unknown key {key!r}. {near_misses(key, fields)}")
    try:
        return TypeAdapter(kind).validate_python(given, context=validation_context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ValueError("; ".join(f"method {method}: {_sentence(d)}" for d in details)) from None


def _sentence(detail: Any) -> str:
    key = ".".join(str(p) for p in detail["loc"] if not str(p).startswith("function-"))
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{key} is needed and missing"
    return f"{key}: {message}" if key else message


def _params_type(method: str) -> Any:
    try:
        return plugins.find("edgecompress.compress", method, attribute="apply", kind="method").Params
    except UserError as error:
        raise ValueError(str(error).replace("\n  ", ". ")) from None


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may use.

    data: the dataset (train and val parts only: a method never touches `data.test`), or None when the caller gave none.
    teacher: the dense model that the recipe started from, frozen, in eval mode. seed: of every random choice of the step.
    scratch: a directory of this step for checkpoints, so that a killed training resumes. benches: of the devices that a
    method may measure on.
    """

    data: Dataset | None
    seed: int
    teacher: nn.Module
    scratch: Path
    progress: Progress = SILENT
    benches: Benches | None = None
    trainings: list[TrainRecord] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    in_shape: tuple[int, ...] | None = None
    """(C, H, W) of an image, where the caller gave it without data."""
    shared: Path | None = None
    """A directory of the run where a step may keep what another step can use, too (a search); None: there is none."""
    reweighted: bool = False
    """In a method's `check`: earlier steps will have changed or dropped weights, and only the layers and their sizes are known."""

    def input_shape(self, model: nn.Module, method: str) -> tuple[int, ...]:
        """(C, H, W) of an image: of the data, else as the caller gave it, else what the network was built for. UserError: none."""
        from edgecompress.models import origin

        built = [known.in_shape for network in (model, self.teacher) if (known := origin(network)) is not None]
        shapes = [None if self.data is None else self.data.in_shape, self.in_shape, *built]
        for shape in shapes:
            if shape is not None:
                return shape
        raise UserError(
            f"method {method} runs a network of one's own once, and must know the size of its images",
            fix="Pass data=… (or --data), or example_input=….",
        )

    def need_data(self, method: str) -> Dataset:
        """The dataset; UserError when the caller gave none."""
        if self.data is None:
            raise UserError(
                f"method {method} with these parameters trains, and needs data", fix="Pass data=… (or --data)."
            )
        return self.data

    def bench(self, device: str | None, format: str) -> Bench:
        """The bench of a device (None: the study's first one, or the caller's). UserError when there is none to measure on."""
        if self.benches is None:
            raise UserError("this step measures on a device, and none was given", fix="Pass device=… (or --device).")
        return self.benches(device, format)

    def train(self, model: nn.Module, spec: TrainSpec, *, method: str, loss: Loss | None = None) -> None:
        """Train `model` in place (masks held, interrupted runs resumed) and record it.

        loss: default cross-entropy, or distillation from the dense model where the spec asks for it (`finetune.distill`).
        UserError when it asks for that in a method whose trainings have a loss of their own.
        """
        from edgecompress.evaluate import device_of
        from edgecompress.train import fit

        number = len(self.trainings)
        distill = spec.distill if isinstance(spec, FineTuneSpec) else None
        if distill is not None:
            if loss is not None:
                raise UserError(
                    f"method {method} trains with a loss of its own, so distill cannot be the loss of its training",
                    fix="Leave distill out there, or add a step {method: distill} after it.",
                )
            loss = distillation_loss(distill, spec, self)
        home = device_of(self.teacher)
        try:
            record = fit(
                model,
                self.need_data(method),
                spec,
                loss=loss,
                seed=self.seed + number,
                checkpoints=self.scratch / f"training-{number}",
                progress=self.progress,
                label=f"{method} training",
            )
        finally:
            self.teacher.to(home)
        self.trainings.append(record)

    def build(self, spec: ModelSpec) -> nn.Module:
        """A new network for the same data (a student), its weights loaded where the spec names a file."""
        from edgecompress.models import build

        data = self.need_data("build")
        return build(spec, num_classes=data.num_classes, in_shape=data.in_shape, seed=self.seed)

    def replaced_model(self, why: str) -> None:
        """Say that the method returns another network than the one it was given (a student): earlier masks end there."""
        self.notes["replaced_model"] = why

    def note(self, key: str, value: Any) -> None:
        """Add a plain JSON value to the step's record (a target that was met, a ratio per layer, …)."""
        self.notes[key] = value
