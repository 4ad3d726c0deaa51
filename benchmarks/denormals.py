"""Whether zeros and denormal numbers in a file change its latency: `python benchmarks/denormals.py [--out FILE.json]`.

A ResNet-20 (one channel, 32×32, random weights) in float ONNX and TFLite, one thread, five files in turn, round after round:
dense; 90 % of the weights zero; 90 % of them denormal, written as they are; the same model as the project exports it (denormal
numbers made zero); and the dense file on an input so small that all activations are denormal. Limit: what the project writes of a
pruned model, zeros or denormal numbers, takes at most 1.1 times as long as the dense file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

LIMIT = 1.1
NOISE = 0.1
"""Largest interquartile range of a ratio over the rounds at which a missed limit is believed."""
ROUNDS, RUNS = 15, 20
CASES = ("dense", "zeros", "denormal weights, as they are", "denormal weights, as exported", "denormal activations")
WRITTEN = ("zeros", "denormal weights, as exported")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    given = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/denormals.py", "processor": _processor(), "rounds": ROUNDS, "runs": RUNS, "files": {},
    }  # fmt: skip
    missed, noisy = False, False
    with tempfile.TemporaryDirectory() as folder:
        for kind, suffix in (("onnx-fp32", ".onnx"), ("tflite-fp32", ".tflite")):
            runners = _runners(kind, suffix, Path(folder))
            times: dict[str, list[float]] = {case: [] for case in CASES}
            for _ in range(ROUNDS):
                for case, run in runners.items():
                    times[case].append(_fastest(run))
            result["files"][kind] = {"round_ms": times}
            for case in CASES:
                ratios = [a / b for a, b in zip(times[case], times["dense"], strict=True)]
                low, _, high = quantiles(ratios, n=4)
                print(
                    f"{kind}: {case}: {median(times[case]):.3f} ms, {median(ratios):.3f} × dense ({low:.3f} to {high:.3f})"
                )
                if case in WRITTEN and median(ratios) > LIMIT:
                    missed, noisy = missed or high - low <= NOISE, noisy or high - low > NOISE
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if missed else 3 if noisy else 0


def _runners(kind: str, suffix: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """Case → one inference."""
    import torch

    from edgecompress import data, plugins
    from edgecompress.export.contract import ExportContext, export_artifact
    from edgecompress.models import build
    from edgecompress.study import DataSpec, ModelSpec

    torch.set_num_threads(1)
    digits = data.load(DataSpec(name="digits", calibration_images=1), seed=0)
    exporter = plugins.find("edgecompress.export", kind.replace("-", "_"), attribute="export", kind="format")
    context = ExportContext(digits.in_shape, np.empty((0, *digits.in_shape), np.float32), "uint8", folder / kind)

    def model(value: float | None) -> torch.nn.Module:
        network = build(ModelSpec(name="resnet20"), num_classes=10, in_shape=digits.in_shape, seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < 0.9
            if parameter.ndim > 1 and value is not None:
                parameter.data.masked_fill_(chosen, value)
        return network

    def written(name: str, value: float | None) -> Path:
        path = folder / f"{name}{suffix}"
        exporter.export(model(value), path, context)
        return path

    cleaned = folder / f"{kind}-exported"
    artifact = export_artifact(
        model(1e-39), kind, cleaned, dataset=digits, activation_type="uint8", cache=folder / f"{kind}-cache"
    )
    dense = written("dense", None)
    image = np.random.default_rng(0).standard_normal((1, *digits.in_shape)).astype(np.float32)
    files = (dense, written("zeros", 0.0), written("denormal", 1e-39), cleaned / artifact.file)
    runners = {case: _runner(path, image) for case, path in zip(CASES, files, strict=False)}
    return {**runners, CASES[-1]: _runner(dense, image * np.float32(1e-39))}


def _runner(path: Path, image: np.ndarray) -> Callable[[], Any]:
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"input": image})
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    )
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


def _fastest(run: Callable[[], Any]) -> float:
    """Fastest of some inferences, ms: what the file costs, with least of what else ran on the machine."""
    run()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
