"""The part of `int8_resnet` that runs in NNCF's own virtual environment, where this project is not: numpy, onnx and nncf only."""

from __future__ import annotations

import json
from importlib import metadata


def quantise(source: str, calibration: str, destination: str) -> None:
    """Write NNCF's quantisation after training of an ONNX file, its settings left at their defaults but for the number of images.

    calibration: a .npy, float32 (N, C, H, W), normalised; all N are used. Prints the versions as one line of JSON.
    """
    import nncf
    import numpy as np
    import onnx

    images = np.load(calibration)
    model = onnx.load(source)
    name = model.graph.input[0].name
    dataset = nncf.Dataset([{name: image[None]} for image in images])
    onnx.save(nncf.quantize(model, dataset, subset_size=len(images)), destination)
    print(json.dumps({package: metadata.version(package) for package in ("nncf", "onnx", "onnxruntime", "numpy")}))
