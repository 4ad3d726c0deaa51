"""Int8 files of ResNet-20 and ResNet-56 on CIFAR-10: after training and trained, beside NNCF and the LiteRT quantiser's default.

Of each network: the float files; our int8 files with default settings; int8 files of a network trained with rounding (method
`qat`, a short training); NNCF's quantisation after training of the same ONNX file, in its own virtual environment (--nncf);
and the LiteRT quantiser's default calibration of the same float file. All calibrate with the same images. Each file is scored on
all test images by the agent, in its own engine on this machine, its operators as run are counted, and all are timed in
interleaved rounds, pinned to one CPU. For the trained networks: how many outputs over the whole test part lie within one
step of what `simulated` says.

x86 without VNNI: 8-bit weights saturate sums there, so our ONNX files have 7-bit weights, and a second training reckons
with those; ONNX files are scored with exact sums too, which is what they give elsewhere.

A finished piece is a file under --state: the same command goes on from there. `python studies/int8_resnet.py --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import int8_resnet_making as making
import int8_resnet_measuring as measuring
import int8_resnet_report as report

from edgecompress import activations
from edgecompress.rundir import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PIECES = ("files", "peers", "qat", "scores", "exact", "agreement", "latency")


@dataclass(frozen=True)
class Place:
    """One network's part of the study. folder: its state. bits: of the weights of ONNX files that suit this machine."""

    given: argparse.Namespace
    name: str
    data: Any
    folder: Path
    activation: activations.ActivationType

    @property
    def bits(self) -> int:
        return 7 if self.activation == "uint8-reduced" else 8

    def files(self) -> dict[str, Path]:
        """Way → its file. `onnx-…-8bit` are files for a machine with VNNI, on one without."""
        onnx = f"onnx-int8-{self.activation}.onnx"
        found = {
            "onnx-fp32": "float/onnx-fp32.onnx",
            "onnx-ptq": f"ptq/{onnx}",
            "onnx-qat": f"qat-{self.bits}/{onnx}",
            "onnx-nncf": "peers/nncf.onnx",
            "tflite-fp32": "float/tflite-fp32.tflite",
            "tflite-ptq": "ptq/tflite-int8.tflite",
            "tflite-qat": "qat-8/tflite-int8.tflite",
            "tflite-default": "peers/litert-default.tflite",
        }
        if self.bits == 7:
            found |= {"onnx-ptq-8bit": "ptq/onnx-int8-uint8.onnx", "onnx-qat-8bit": "qat-8/onnx-int8-uint8.onnx"}
        return {way: self.folder / file for way, file in found.items()}

    def qat_settings(self) -> dict[str, Any]:
        keys = ("qat_images", "qat_epochs", "qat_lr", "qat_ranges", "qat_distill", "qat_batch_norm", "seed")
        return {key.removeprefix("qat_"): getattr(self.given, key) for key in keys}


def main() -> int:
    given = _arguments()
    for file in (given.data, *(given.weights / f"{name}.safetensors" for name in given.models)):
        if not file.is_file():
            print(f"no such file: {file}; see studies/README.md, or give --data and --weights", file=sys.stderr)
            return 2
    import torch

    torch.set_num_threads(1)
    data = _data(given)
    ends = time.monotonic() + 60 * given.minutes
    found, complete = {}, True
    for name in given.models:
        place = Place(given, name, data, given.state / name, activations.for_this_machine())
        for kind, piece, settings, make in pieces(place):
            file = place.folder / f"{piece}.json"
            if file.exists() and json.loads(file.read_text())["settings"] != settings:
                print(f"{file} is of other settings: {settings} are asked for; give another --state", file=sys.stderr)
                return 2
            if file.exists() or kind not in given.pieces:
                complete &= file.exists()
                continue
            if time.monotonic() > ends:
                print("time is up; the same command goes on from here", flush=True)
                complete = False
                break
            began = time.monotonic()
            result = make()
            if result is None:
                complete = False
                continue
            result = {"settings": settings, "seconds": round(time.monotonic() - began, 1), **result}
            write_atomically(file, json.dumps(result, indent=1) + "\n")
            print(f"{name}: {piece}, {result['seconds']} s", flush=True)
        found[name] = {
            piece: json.loads(file.read_text())
            for _, piece, _, _ in pieces(place)
            if (file := place.folder / f"{piece}.json").exists()
        }
    about = {
        "machine": _machine(),
        "activation": activations.for_this_machine(),
        "images": len(data.test),
        **_versions(),
    }
    print(report.write(given.out if complete or given.early else None, {**about, "models": found}))
    return int(not complete)


def _arguments() -> argparse.Namespace:
    root = Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], choices=["resnet20", "resnet56"])
    parser.add_argument("--weights", type=Path, default=root / "weights", help="folder with MODEL.safetensors")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("CIFAR10_50K", root / "cifar10.npz")),
        help="cifar10.npz, as full_train.py or unpack.py of the real data make it; default: $CIFAR10_50K",
    )  # fmt: skip
    parser.add_argument("--calibration", type=int, default=512, help="calibration images, of the training part")
    parser.add_argument("--nncf", type=Path, help="python of a virtual environment with nncf, onnx and onnxruntime")
    parser.add_argument(
        "--qat-images", type=int, default=2000, help="training images that QAT sees in each epoch, the same in all"
    )
    parser.add_argument("--qat-epochs", type=int, default=4, help="each ends in a checkpoint")
    parser.add_argument("--qat-lr", type=float, default=1e-3)
    parser.add_argument("--qat-ranges", default="learned", choices=["learned", "observed"])
    parser.add_argument("--qat-batch-norm", default="fixed", choices=["fixed", "updated"])
    parser.add_argument(
        "--qat-distill",
        type=float,
        default=4.0,
        help="temperature of distillation from the float network; 0: labels alone",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", type=int, default=0, help="CPU that scoring and timing are pinned to")
    parser.add_argument("--rounds", type=int, default=9, help="of the timing")
    parser.add_argument("--seconds", type=float, default=0.6, help="timed, of each file in each round")
    parser.add_argument("--pieces", nargs="+", default=list(PIECES), choices=PIECES, help="only these")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after this time")
    parser.add_argument("--early", action="store_true", help="write the report of what there is")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "int8_resnet")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "quantisation" / "int8_resnet")
    return parser.parse_args()


def _data(given: argparse.Namespace) -> Any:
    from edgecompress.data import load
    from edgecompress.study import DataSpec

    spec = DataSpec(
        name="npz", path=given.data, val_fraction=0.01, augment="crop-flip", calibration_images=given.calibration
    )
    return load(spec, seed=given.seed)


Piece = tuple[str, str, dict[str, Any], Callable[[], dict[str, Any] | None]]
"""(kind, name, what decides it, how it is made: None where it needs a piece that is not there)"""


def pieces(place: Place) -> Iterator[Piece]:
    """All pieces of a network, each after those that it needs."""
    base = {"calibration": place.given.calibration, "seed": place.given.seed}
    trained = {**base, **place.qat_settings()}
    yield "files", "float", base, partial(making.float_files, place)
    yield "files", "ptq", base, partial(making.ptq_files, place)
    yield "peers", "litert-default", base, partial(making.litert_default, place)
    yield "peers", "nncf", base, partial(making.nncf, place)
    for bits in sorted({8, place.bits}):
        yield "qat", f"qat-{bits}", trained, partial(making.trained, place, bits)
    for way, file in place.files().items():
        settings = trained if "qat" in way else base
        yield "scores", f"score-{way}", settings, partial(measuring.score, place, file)
        if way.startswith("onnx") and way != "onnx-fp32":
            yield "exact", f"exact-{way}", settings, partial(measuring.exact, place, file)
        if "qat" in way:
            bits = int(file.parent.name.removeprefix("qat-"))
            yield "agreement", f"agreement-{way}", trained, partial(measuring.agreement, place, file, bits)
    for number in range(1, place.given.rounds + 1):
        timed = {**trained, "seconds": place.given.seconds}
        yield "latency", f"latency-{number}", timed, partial(measuring.latency, place, number)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} CPUs, ONNX Runtime's type for it: {activations.for_this_machine()}"


def _versions() -> dict[str, str]:
    from importlib import metadata

    packages = ("torch", "onnxruntime", "ai-edge-litert", "ai-edge-quantizer", "litert-torch")
    return {package: metadata.version(package) for package in packages}


if __name__ == "__main__":
    sys.exit(main())
