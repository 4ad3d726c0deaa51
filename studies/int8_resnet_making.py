"""The files of `int8_resnet`: our exports, trainings with rounding, and those of the peers."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import activations
from edgecompress.rundir import file_sha256

if TYPE_CHECKING:
    from int8_resnet import Place

IN_SHAPE = (3, 32, 32)


def _network(place: Place) -> Any:
    from edgecompress.models import build
    from edgecompress.study import ModelSpec

    spec = ModelSpec(name=place.name, weights=place.given.weights / f"{place.name}.safetensors")
    return build(spec, num_classes=10, in_shape=IN_SHAPE).eval()


def _export(place: Place, model: Any, form: str, folder: str, activation: Any) -> dict[str, Any]:
    from edgecompress.export.contract import export_artifact

    artifact = export_artifact(
        model, form, place.folder / folder, dataset=place.data, activation_type=activation, cache=place.folder / "cache"
    )
    return _counted(place.folder / folder / artifact.file) | {"warnings": list(artifact.warnings)}


def _counted(file: Path) -> dict[str, Any]:
    """The census of a file, for ONNX as its engine runs it on a machine of this kind, and its bytes."""
    from edgecompress.export import census, census_onnx, census_tflite

    float_additions = 0
    if file.suffix == ".onnx":
        run = census_onnx.as_run(file, int8_activations=not activations.for_this_machine().startswith("uint8"))
        operators, layers = run.operators, run.float_layers
        float_additions = operators.get("Add", 0)
    else:
        counted = census.count(file)
        operators, layers = counted.operators, counted.float_layers
        model, schema, _ = census_tflite.read_model(file)
        names = census_tflite.builtin_names(schema)
        for graph in model.subgraphs:
            for operator in graph.operators:
                name = census_tflite.operator_name(model.operatorCodes[operator.opcodeIndex], names)
                whole = graph.tensors[operator.outputs[0]].type == schema.TensorType.INT8
                float_additions += name == "ADD" and not whole
    return {
        "file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file),
        "operators": dict(operators), "float_layers": list(layers), "float_additions": int(float_additions),
    }  # fmt: skip


def float_files(place: Place) -> dict[str, Any]:
    model = _network(place)
    files = [_export(place, model, form, "float", "uint8") for form in ("onnx-fp32", "tflite-fp32")]
    return {"files": files}


def ptq_files(place: Place) -> dict[str, Any]:
    model = _network(place)
    kinds = sorted({place.activation, "uint8"})
    files = [_export(place, model, "onnx-int8", "ptq", kind) for kind in kinds]
    return {"files": [*files, _export(place, model, "tflite-int8", "ptq", "int8")]}


def litert_default(place: Place) -> dict[str, Any] | None:
    """The quantiser as its documentation has it: its recipe for static int8, and its own calibration."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    from edgecompress.data import calibration_images
    from edgecompress.export.quiet import quiet

    source = place.files()["tflite-fp32"]
    if not source.exists():
        return None
    file = place.files()["tflite-default"]
    file.parent.mkdir(exist_ok=True)
    with quiet():
        ((signature, tensors),) = Interpreter(str(source)).get_signature_list().items()
        images = np.ascontiguousarray(calibration_images(place.data).transpose(0, 2, 3, 1))
        work = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        found = work.calibrate({signature: [{tensors["inputs"][0]: image[None]} for image in images]}, num_threads=1)
        work.quantize(found).export_model(str(file), overwrite=True)
    return {"files": [_counted(file)]}


def nncf(place: Place) -> dict[str, Any] | None:
    from edgecompress.data import calibration_images

    source, file = place.files()["onnx-fp32"], place.files()["onnx-nncf"]
    if place.given.nncf is None or not source.exists():
        print(f"{place.name}: nncf needs --nncf and the float files", flush=True)
        return None
    file.parent.mkdir(exist_ok=True)
    images = file.with_name("calibration.npy")
    np.save(images, calibration_images(place.data))
    code = "import sys, int8_resnet_nncf; int8_resnet_nncf.quantise(*sys.argv[1:])"
    answer = subprocess.run(
        [place.given.nncf, "-c", code, source, images, file],
        cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": ""}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"files": [_counted(file)], "versions": json.loads(answer.stdout.splitlines()[-1])}


def trained(place: Place, bits: int) -> dict[str, Any]:
    """One training with rounding to so many bits, the model kept, and the files that it is for."""
    from edgecompress.compress import qat
    from edgecompress.compress.contract import Context, parse_params
    from edgecompress.models.checkpoint import save_model

    wanted, folder = place.qat_settings(), f"qat-{bits}"
    tuning: dict[str, Any] = {"epochs": wanted["epochs"], "lr": wanted["lr"]}
    if wanted["distill"]:
        tuning["distill"] = {"temperature": wanted["distill"]}
    params = parse_params(
        "qat", {"weight_bits": bits, "finetune": tuning, **{k: wanted[k] for k in ("ranges", "batch_norm")}}
    )
    model = _network(place)
    context = Context(
        data=_few(place.data, wanted["images"], wanted["seed"]), seed=wanted["seed"], teacher=copy.deepcopy(model),
        scratch=place.folder / "checkpoints" / folder,
    )  # fmt: skip
    model = qat.apply(model, params, context)
    save_model(place.folder / folder / "model", model)
    kind = place.activation if bits == place.bits else "uint8"
    files = [_export(place, model, "onnx-int8", folder, kind)]
    if bits == 8:
        files.append(_export(place, model, "tflite-int8", folder, "int8"))
    return {
        "files": files,
        "training": [dataclasses.asdict(record) for record in context.trainings],
    }


def _few(data: Any, images: int, seed: int) -> Any:
    """The dataset with so many of its training images, the calibration images among them."""
    if images >= len(data.train):
        return data
    calibration = np.asarray(data.calibration_indices)
    others = np.setdiff1d(np.arange(len(data.train)), calibration)
    drawn = np.random.default_rng(seed).choice(others, max(0, images - len(calibration)), replace=False)
    train = data.train.subset(np.concatenate([calibration, drawn]))
    return dataclasses.replace(data, train=train, calibration_indices=tuple(range(len(calibration))))
