"""What a study will do, as keys: every step is named by a hash of its inputs, its parameters and the code that makes it.

Nothing heavy is imported and nothing is run here, so that a study that is done already is recognised in a moment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgecompress import data, plugins, step_files
from edgecompress.activations import ActivationType
from edgecompress.compress.contract import Asked, asked_of_device
from edgecompress.errors import UserError
from edgecompress.pools import Device, document_of, facts_of, members_of
from edgecompress.rundir import content_key, file_sha256
from edgecompress.study import Step, StudySpec

PACKAGE = Path(__file__).resolve().parent
_OTHER_CODE = re.compile(r"^\s*from edgecompress\.((?:compress|coding)\.[\w.]+) import", re.MULTILINE)

MODEL_CODE = (
    "allocation.py",
    "models",
    "data",
    "train.py",
    "loop.py",
    "optim.py",
    "losses.py",
    "distillation.py",
    "masks.py",
    "codebooks.py",
    "kmeans.py",
    "patterns.py",
    "quantization.py",
    "histograms.py",
    "sites.py",
    "watching.py",
    "recipe.py",
    "evaluate.py",
    "cost.py",
    "records.py",
    "graph.py",
    "flows.py",
    "tracing.py",
    "compress/contract.py",
)
EXPORT_CODE = (
    "export",
    "masks.py",
    "codebooks.py",
    "quantization.py",
    "histograms.py",
    "sites.py",
    "watching.py",
    "data",
    "records.py",
)
MEASURE_CODE = ("measurement.py", "rounds.py", "dealing.py", "records.py", "operators.py")
DEVICE_STEP_CODE = (
    *EXPORT_CODE, *MEASURE_CODE, "channel_sweep.py", "sweep_networks.py", "latency_search.py", "on_device.py", "stats.py",
    "small_networks.py", "energy",
)  # fmt: skip
"""Sources that decide what a method is told of a device."""


@dataclass(frozen=True)
class ModelNode:
    """A model on disk: the baseline (parent and step None), or its parent after one more step.

    measures: what the step measures while it works, its device one of the study's; None: nothing.
    """

    key: str
    parent: str | None
    method: str | None
    params: dict[str, Any] | None
    measures: Asked | None = None


@dataclass(frozen=True)
class ArtifactNode:
    key: str
    model: str
    format: str
    activation_type: ActivationType | None


@dataclass(frozen=True)
class Variant:
    """A row of the report: recipe × format on a device, and the keys of what it is made of."""

    recipe: str
    format: str
    device: str
    artifact: ArtifactNode
    measurement: str


@dataclass(frozen=True)
class Plan:
    """The steps of a study in the order of the file. `recipes`: name → its models, the baseline first."""

    study: dict[str, Any]
    devices: dict[str, dict[str, Any]]
    data_key: str
    recipes: dict[str, tuple[ModelNode, ...]]
    variants: tuple[Variant, ...]

    @property
    def artifacts(self) -> dict[str, ArtifactNode]:
        return {v.artifact.key: v.artifact for v in self.variants}


def code_hash(paths: Iterable[str]) -> str:
    """SHA-256 over the sources that make a step: a change of the code is a change of the key."""
    digest = hashlib.sha256()
    for name in sorted(paths):
        path = PACKAGE / name
        path = path if path.exists() else path.with_suffix("")  # a method may be a folder
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each package (None: not installed), from the metadata, without importing it."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def make_plan(study: StudySpec, devices: Mapping[str, Device], *, agent_sha256: str) -> Plan:
    """The plan of a study on these devices (name → profile or pool)."""
    data_key = content_key(
        "data", study.data.model_dump(mode="json"), data.fingerprint(study.data), study.seed, code_hash(["data"])
    )
    baseline = _baseline(study, data_key)
    recipes = {
        name: _chain(baseline, steps, study, devices, agent_sha256, where=name) for name, steps in study.recipes.items()
    }
    variants = []
    for recipe, chain in recipes.items():
        for form in study.formats:
            for name, device in devices.items():
                artifact = _artifact(chain[-1].key, form, device, data_key)
                variants.append(
                    Variant(
                        recipe,
                        form,
                        name,
                        artifact,
                        _measurement(artifact.key, study, device, data_key, agent_sha256),
                    )
                )
    return Plan(
        study=study.model_dump(mode="json"),
        devices={name: document_of(device) for name, device in devices.items()},
        data_key=data_key,
        recipes=recipes,
        variants=tuple(variants),
    )


def _baseline(study: StudySpec, data_key: str) -> ModelNode:
    weights = file_sha256(study.model.weights) if study.model.weights else None
    spec = study.model.model_dump(mode="json", exclude={"weights"})
    key = content_key("baseline", spec, weights, _training(study), data_key, study.seed, code_hash(MODEL_CODE),
                      versions("torch", "torchvision"))  # fmt: skip
    return ModelNode(key, None, None, None)


def search_key(study: StudySpec, method: str) -> str:
    """A key of all, beside weights and parameters, that decides what a method finds for this study's network."""
    spec = study.model.model_dump(mode="json", exclude={"weights"})
    code = code_hash([*MODEL_CODE, *method_code(method)])
    return content_key("searches", spec, code, versions("torch", "torchvision"))[:16]


def _training(study: StudySpec) -> dict[str, Any] | None:
    spec = study.trains_baseline
    return None if spec is None else spec.model_dump(mode="json")


def _chain(
    baseline: ModelNode,
    steps: tuple[Step, ...],
    study: StudySpec,
    devices: Mapping[str, Device],
    agent_sha256: str,
    *,
    where: str,
) -> tuple[ModelNode, ...]:
    chain = [baseline]
    for step in steps:
        parent = chain[-1].key
        code = code_hash([*MODEL_CODE, *method_code(step.method)])
        parts = ["step", parent, step.method, step.params, step_files.hashes(step.params), study.seed, code]
        asked = asked_of_device(step.method, step.params)
        if asked is not None:
            device = _device_of_step(step.method, asked.device, devices, where)
            asked = replace(asked, device=device)
            parts += [
                facts_of(devices[device]),
                study.measure.threads,
                agent_sha256,
                code_hash(DEVICE_STEP_CODE),
            ]
        chain.append(ModelNode(content_key(*parts), parent, step.method, step.params, asked))
    return tuple(chain)


def _device_of_step(method: str, named: str | None, devices: Mapping[str, Device], where: str) -> str:
    if named is None:
        return next(iter(devices))
    if named not in devices:
        raise UserError(
            f"method {method} measures on device {named!r}, which is not one of this run's",
            where=f"recipes.{where}",
            fix=f"Leave its device out (then it is {next(iter(devices))}), or name one of: {', '.join(devices)}.",
        )
    return named


def method_code(method: str) -> tuple[str, ...]:
    """The method's own file or folder, and the files of other methods and of `coding` that it imports from, and they in turn."""
    found: dict[str, None] = {}
    waiting = [f"compress/{method}.py"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = None
        path = PACKAGE / name if (PACKAGE / name).exists() else (PACKAGE / name).with_suffix("")
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            modules = _OTHER_CODE.findall(file.read_text(encoding="utf-8"))
            waiting += [f"{module.replace('.', '/')}.py" for module in modules]
    return tuple(found)


def _artifact(model_key: str, form: str, device: Device, data_key: str) -> ArtifactNode:
    exporter = plugins.find("edgecompress.export", form.replace("-", "_"), attribute="export", kind="format")
    # Only an ONNX int8 file has a choice of activation type; the others are shared between devices.
    activation_type = members_of(device)[0].activation_type if exporter.INT8 and exporter.FILE_TYPE == "onnx" else None
    tools = versions("torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
    key = content_key("artifact", model_key, form, activation_type, data_key, code_hash(EXPORT_CODE), tools)
    return ArtifactNode(key, model_key, form, activation_type)


def _measurement(artifact_key: str, study: StudySpec, device: Device, data_key: str, agent_sha256: str) -> str:
    return content_key(
        "measurement", artifact_key, facts_of(device), study.measure.model_dump(mode="json"), data_key, agent_sha256,
        code_hash(MEASURE_CODE),
    )  # fmt: skip
