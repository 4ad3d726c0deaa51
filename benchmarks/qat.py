"""What training with rounding costs, and whether its files compute what was trained: `python benchmarks/qat.py [--out FILE.json]`.

A ResNet-20 on scikit-learn's digits, one thread. Cost: processor time of one epoch of 512 images, plain, learned and observed
ranges in turn, round after round; ratios within a round. Agreement: a network trained for 5 epochs and 2 more with rounding; the
share of the 497 test images' outputs that lie within one step of the output's scale of `simulated(model, engine=…)`, in
ONNX Runtime (its graph optimisations off, so that sums are exact on every processor) and LiteRT. Limit: 99.9 % in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROUNDS = 5
LIMIT = 0.999
STEP = 1.01
"""Output steps that count as one: the engines' outputs are floats."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    given = parser.parse_args()
    import torch

    from edgecompress.data import load
    from edgecompress.study import DataSpec

    torch.set_num_threads(1)
    digits = load(DataSpec(name="digits"), seed=0)
    agreement = _agreement(digits)
    result = {"command": "python benchmarks/qat.py", "cost": _cost(digits), "agreement": agreement}
    print(json.dumps(result, indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(found["within_one_step"] < LIMIT for found in agreement.values()))


def _network() -> Any:
    from edgecompress.models import build
    from edgecompress.study import ModelSpec

    return build(ModelSpec(name="resnet20"), num_classes=10, in_shape=(1, 32, 32), seed=1)


def _cost(digits: Any) -> dict[str, Any]:
    import dataclasses

    from edgecompress.compress.qat import Params
    from edgecompress.compress.qat.network import QuantisedTraining
    from edgecompress.study import TrainSpec
    from edgecompress.train import fit

    few = dataclasses.replace(digits, train=digits.train.subset(np.arange(512)), calibration_indices=tuple(range(256)))
    spec = TrainSpec(epochs=1, batch_size=64, lr=0.01)
    fit(_network(), few, spec)  # the first training of a process also loads libraries
    seconds: dict[str, list[float]] = {"plain": [], "learned": [], "observed": []}
    for _ in range(ROUNDS):
        for kind, taken in seconds.items():
            model = _network()
            network = None if kind == "plain" else QuantisedTraining(model, Params(ranges=kind), few)  # type: ignore[arg-type]
            began = time.process_time()
            if network is None:
                fit(model, few, spec)
            else:
                with network.rounding():
                    fit(network.module, few, spec)
            taken.append(time.process_time() - began)
    ratios = {
        kind: [a / b for a, b in zip(seconds[kind], seconds["plain"], strict=True)] for kind in ("learned", "observed")
    }
    return {
        "seconds": seconds,
        "ratio": {kind: {"median": median(r), "lowest": min(r), "highest": max(r)} for kind, r in ratios.items()},
    }


def _agreement(digits: Any) -> dict[str, Any]:
    import torch

    import edgecompress as ec
    from edgecompress import data, quantization
    from edgecompress.compress.quantize.simulation import simulated
    from edgecompress.export.contract import export_artifact
    from edgecompress.study import TrainSpec
    from edgecompress.train import fit

    model = _network()
    fit(model, digits, TrainSpec(epochs=5, batch_size=64, lr=0.1))
    model = ec.compress(model, "qat", data=digits, epochs=2, lr=0.01).model
    images = data.normalise(digits.test.images(np.arange(len(digits.test))), digits.mean, digits.std)
    with torch.no_grad():
        exact = model(torch.from_numpy(images)).numpy()
    low, high = quantization.get(model).ranges["linear"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form, outputs, engine in (("onnx-int8", _onnxruntime, "onnxruntime"), ("tflite-int8", _litert, "litert")):
            with torch.no_grad():
                expected = simulated(model, engine=engine)(torch.from_numpy(images)).numpy()  # type: ignore[arg-type]
            artifact = export_artifact(
                model, form, Path(folder), dataset=digits, activation_type="int8", cache=Path(folder) / "cache"
            )
            got = outputs(Path(folder) / artifact.file, images)
            steps = np.abs(got - expected) / ((high - low) / 255)
            found[form] = {
                "outputs": int(steps.size),
                "within_one_step": float((steps < STEP).mean()),
                "largest_difference_steps": float(steps.max()),
                "top1": float((got.argmax(1) == digits.test.labels).mean()),
                "top1_float": float((exact.argmax(1) == digits.test.labels).mean()),
            }
    return found


def _onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(onnxruntime.InferenceSession(str(path), options).run(None, {"input": images})[0])


def _litert(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    entry, last = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (out_scale, out_zero) = entry["quantization"], last["quantization"]
    found = []
    for image in images.transpose(0, 2, 3, 1):
        interpreter.set_tensor(entry["index"], np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8)[None])
        interpreter.invoke()
        found.append((interpreter.get_tensor(last["index"])[0].astype(np.float32) - out_zero) * out_scale)
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
