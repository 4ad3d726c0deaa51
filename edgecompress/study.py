"""What a user may write in a study file: the study, its recipes and steps, validated before anything runs.

Every mistake is a `UserError` that names the file, the key and the choices. Unknown keys are refused: an option that is
accepted and ignored would be a wrong answer with a clean face.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from edgecompress import plugins, step_files
from edgecompress.errors import near_misses


def _resolve(path: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home directory") from None
    return path if path.is_absolute() else base / path


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {'a directory' if path.is_dir() else 'no plain file'}, and a file is needed")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read")
    return path


StudyPath = Annotated[Path, AfterValidator(_resolve)]
"""A path as a study writes it: relative to the study file."""

ExistingPath = Annotated[Path, AfterValidator(_resolve), AfterValidator(_existing)]
"""A file that is there and can be read."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of the names that become part of file names."""

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """What all parts of a study share: immutable, no unknown keys, and no number that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class TrainSpec(Spec):
    """One training: of the baseline, a fine-tuning, or a distillation."""

    epochs: int = Field(default=6, ge=0, description="passes over the training part")
    lr: float = Field(default=0.1, gt=0, description="learning rate at the end of the warm-up")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="optimiser")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd (beta 1 of adam and adamw)")
    nesterov: bool = Field(default=False, description="Nesterov momentum; sgd only")
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 penalty; decoupled with adamw")
    schedule: Literal["cosine", "step", "constant"] = Field(
        default="cosine", description="learning rate after the warm-up"
    )
    milestones: tuple[float, ...] = Field(
        default=(0.5, 0.75), description="schedule step: fractions of the epochs where lr × gamma"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="schedule step: factor at each milestone")
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear warm-up of the learning rate, in epochs")
    batch_size: int = Field(default=128, ge=1, description="images per optimiser step")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="of the cross-entropy")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of an exponential moving average of the weights, kept at the end"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        default="auto",
        description="auto: 16-bit mixed where a GPU does it, bfloat16 where the CPU has the instructions, else 32",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd and a momentum above 0")
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be below epochs ({self.epochs})")
        if any(not 0 < m < 1 for m in self.milestones):
            raise ValueError("milestones are fractions of the epochs, between 0 and 1")
        return self


class ModelSpec(Spec):
    """A network by name: of the zoo, `torchvision:NAME`, or `package.module:callable` with its arguments."""

    name: str = Field(description="zoo name, torchvision:NAME, or package.module:callable")
    args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the callable or torchvision model, or of the zoo's mlp"
    )
    width: float | None = Field(default=None, gt=0, description="multiplies the channels of a zoo model")
    depth: float | None = Field(
        default=None,
        gt=0,
        description="multiplies the layers in each stage of a zoo resnet, vgg or mlp, rounded, 1 at least",
    )
    weights: ExistingPath | None = Field(
        default=None, description="checkpoint: .safetensors, or .pt/.pth/.th read with weights_only"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from edgecompress.models import ZOO

        if ":" not in name and name not in ZOO:
            raise ValueError(
                f"unknown model {name!r}. {near_misses(name, ZOO)} Or torchvision:NAME, or package.module:callable."
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        from edgecompress.models import ZOO_ARGS, has_depth

        own = ":" not in self.name
        for key in ("width", "depth"):
            if getattr(self, key) is not None and not own:
                raise ValueError(f"{key} is for models of the zoo; give args instead")
        if self.depth is not None and not has_depth(self.name):
            raise ValueError(f"{self.name} has no stages that depth could multiply; it takes width")
        for key in self.args if own else ():
            known = ZOO_ARGS.get(self.name)
            if known is None:
                takes = "width and depth" if has_depth(self.name) else "width"
                raise ValueError(
                    f"args are for torchvision:NAME and package.module:callable; {self.name} takes {takes} only"
                )
            if key not in known:
                raise ValueError(f"{self.name} takes no {key!r} in args. {near_misses(key, known)}")
        return self


class DataSpec(Spec):
    """A dataset by name. Which of path, root, download and image_size it takes depends on its loader."""

    name: str = Field(description="digits, mnist, cifar10, imagefolder, imagenet or npz")
    path: ExistingPath | None = Field(default=None, description="npz: the file")
    root: StudyPath | None = Field(default=None, description="mnist, cifar10, imagefolder, imagenet: the directory")
    download: bool = Field(
        default=False, description="mnist, cifar10: fetch into root where it is absent (needs a network)"
    )
    image_size: int | None = Field(
        default=None, ge=8, le=4096, description="imagefolder, imagenet: side of the centre crop"
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="of the training part, held back for methods and searches"
    )
    calibration_images: int = Field(default=256, ge=1, description="training images that calibrate int8 exports")
    augment: Literal["auto", "none", "flip", "crop", "crop-flip", "shift"] = Field(
        default="auto", description="auto: the usual for this dataset; shift: moved by up to 2 pixels"
    )
    mean: tuple[float, ...] | None = Field(
        default=None, description="per channel, of images in 0..1; default: the usual for this dataset"
    )
    std: tuple[float, ...] | None = Field(default=None, description="per channel; with mean")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = plugins.names("edgecompress.data", attribute="ACCEPTS")
        if name not in known:
            raise ValueError(f"unknown dataset {name!r}. {near_misses(name, known)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        accepts = plugins.find("edgecompress.data", self.name, attribute="ACCEPTS", kind="dataset").ACCEPTS
        for key in ("path", "root", "download", "image_size"):
            if getattr(self, key) and key not in accepts:
                raise ValueError(
                    f"dataset {self.name} takes no {key!r}; it takes {', '.join(sorted(accepts)) or 'none of these'}"
                )
        for key, needed in accepts.items():
            if needed and getattr(self, key) is None:
                raise ValueError(f"dataset {self.name} needs {key!r}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std come together")
        if self.std is not None and any(s <= 0 for s in self.std):
            raise ValueError("std must be above 0")
        return self


class Step(Spec):
    """One method with its parameters, as `{method: NAME, key: value, …}`."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"method": value, "params": {}}
        if isinstance(value, dict) and set(value) != {"method", "params"}:
            if "method" not in value:
                raise ValueError("a step needs 'method'")
            return {"method": value["method"], "params": {k: v for k, v in value.items() if k != "method"}}
        return value

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> Step:
        from edgecompress.compress.contract import full_params

        object.__setattr__(self, "params", full_params(self.method, self.params, info.context))
        return self


class PowerSpec(Spec):
    """The power pass of a measurement, where the device profile names a sensor: idle, windows of inferences, idle."""

    window_s: float = Field(default=10.0, gt=0, le=86400, description="seconds of one window, at least")
    min_samples: int = Field(
        default=100,
        ge=0,
        le=10**6,
        description="readings of the sensor in one window, at least: it lasts longer for them",
    )
    windows: int = Field(default=5, ge=1, le=1000, description="windows, whose spread gives the interval")
    idle_s: float = Field(default=5.0, ge=0, le=3600, description="seconds of idle before and after the windows")
    settle_s: float = Field(default=0.5, ge=0, le=600, description="seconds let go by between idle and load")
    max_window_s: float = Field(default=120.0, gt=0, le=86400, description="seconds of one window, at most")

    @model_validator(mode="after")
    def _ordered(self) -> PowerSpec:
        if self.max_window_s < self.window_s:
            raise ValueError(f"max_window_s ({self.max_window_s:g}) is less than window_s ({self.window_s:g})")
        return self


class MeasureSpec(Spec):
    """How a variant is measured on a device."""

    warmup_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="seconds of inference before the timing, at least: until it is steady, at most 4 times as long; kept as data",
    )
    min_s: float = Field(default=5.0, gt=0, le=86400, description="seconds of timed inference over all blocks")
    blocks: int = Field(default=5, ge=2, le=1000, description="blocks that the timed inferences are divided into")
    rounds: int = Field(
        default=2,
        ge=1,
        le=100,
        description="each variant is measured so often, in the order A B C, C B A, …; they share min_s",
    )
    cooldown_s: float = Field(default=0.0, ge=0, le=3600, description="rest of the device before each measurement")
    threads: int = Field(default=1, ge=1, le=1024, description="threads of the engine")
    score_on: Literal["test", "val", "none"] = Field(
        default="test", description="part that the exported file is scored on, on the device"
    )
    score_images: int | None = Field(default=None, ge=1, description="score the first so many images only")
    power: PowerSpec | None = Field(
        default_factory=PowerSpec, description="how power is measured on devices that have a sensor; null: it is not"
    )
    profile_ops: bool = Field(
        default=False, description="also the time of each operator, as far as the engine tells it (docs/profiling.md)"
    )
    timeout_s: float = Field(
        default=1800.0, gt=0, description="a measurement that takes longer is stopped by the agent"
    )


class StudySpec(Spec):
    """A study: one model, one dataset, recipes, export formats, devices, how to measure."""

    name: str = Field(pattern=NAME, description="names the run directory")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of every random choice")
    model: ModelSpec
    data: DataSpec
    baseline: TrainSpec | None = Field(
        default=None, description="training of the baseline; with model.weights: none unless given"
    )
    recipes: dict[str, tuple[Step, ...]] = Field(
        default={"baseline": ()},
        min_length=1,
        description="name → list of steps; an empty list is the baseline",
    )
    formats: tuple[str, ...] = Field(default=("onnx-fp32", "onnx-int8"), min_length=1, description="export formats")
    devices: tuple[str, ...] = Field(default=("local",), min_length=1, description="names of device profiles, or files")
    measure: MeasureSpec = Field(default_factory=MeasureSpec)

    @field_validator("recipes", mode="before")
    @classmethod
    def _files_are_there(cls, recipes: Any, info: ValidationInfo) -> Any:
        step_files.refuse_saved_and_read(recipes, (info.context or {}).get("base", Path()))
        return recipes

    @field_validator("recipes")
    @classmethod
    def _recipe_names(cls, recipes: dict[str, tuple[Step, ...]]) -> dict[str, tuple[Step, ...]]:
        for name in recipes:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
                raise ValueError(f"recipe name {name!r}: letters, digits, '.', '_', '+' and '-' only")
        return recipes

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        known = [n.replace("_", "-") for n in plugins.names("edgecompress.export", attribute="export")]
        for name in formats:
            if name not in known:
                raise ValueError(f"unknown format {name!r}. {near_misses(name, known)}")
        return _no_duplicates(formats)

    @field_validator("devices")
    @classmethod
    def _unique_devices(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        return _no_duplicates(devices)

    @property
    def trains_baseline(self) -> TrainSpec | None:
        """The training of the baseline: none when weights are given and no training is asked for."""
        return self.baseline if self.baseline or self.model.weights else TrainSpec()


def _no_duplicates(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands twice")
    return names
