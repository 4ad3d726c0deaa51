"""The grammar of the command line."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgecompress.version import __version__

CHANNELS = (
    "Measure which multiple of channels the engine likes there, by a sweep of small networks. The result is kept."
)
ACTIVATIONS = ("uint8", "uint8-reduced", "int8", "symmetric-int8")


def _verb(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def call(arguments: argparse.Namespace) -> int:
        status: int = getattr(importlib.import_module(f"edgecompress.cli.{module}"), name)(arguments)
        return status

    return call


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgecompress",
        description="From a trained CNN to accuracy, bytes, latency and joules per inference on a board, "
        "for several ways of compressing it.",
    )
    parser.add_argument("--version", action="version", version=f"edgecompress {__version__}")
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(
        name: str, help_text: str, module: str, *, within: Any = verbs, resumable: bool = False
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = within.add_parser(
            name, help=help_text, description=help_text, parents=[everywhere]
        )
        sub.set_defaults(verb=_verb(module, name if within is verbs else f"device_{name}"), resumable=resumable)
        return sub

    run = verb(
        "run",
        "Run a study the whole way, from the model to the report. Resumes what is not done yet.",
        "studies",
        resumable=True,
    )
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument("--out", type=Path, metavar="RUN_DIR", help="default: runs/<name of the study>")
    run.add_argument(
        "--device", action="append", metavar="NAME_OR_FILE", help="instead of the study's devices; may be repeated"
    )
    run.add_argument(
        "--skip-absent",
        action="store_true",
        help="devices that cannot be reached now do not stop the study, unless a step measures on them: their rows say why",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="change a value of the study: measure.min_s=2",
    )

    report = verb("report", "Make the report of a run directory again, from its records alone.", "studies")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument("--format", help="html (default), md, csv or json", default="html")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="html: default RUN_DIR/report.html; the others: default stdout"
    )

    compress = verb("compress", "Compress one model by one or more steps, and save it.", "models")
    compress.add_argument(
        "--model", required=True, metavar="M", help="zoo name, torchvision:NAME, or package.module:callable"
    )
    compress.add_argument(
        "--model-arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the callable"
    )
    compress.add_argument("--width", type=float, help="multiplies the channels of a zoo model")
    compress.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint: .safetensors, or .pt read with weights_only"
    )
    _add_data(compress)
    compress.add_argument(
        "--step",
        action="append",
        required=True,
        dest="steps",
        metavar="METHOD[:k=v,...]",
        help="in this order; may be repeated",
    )
    compress.add_argument(
        "--epochs", type=int, default=0, metavar="N", help="train the network so long first (default: 0)"
    )
    compress.add_argument("--lr", type=float, default=0.02, help="learning rate of that training (default: 0.02)")
    compress.add_argument(
        "--device",
        default="local",
        metavar="D",
        help="where a step measures while it works (a multiple: auto, a latency)",
    )
    compress.add_argument("--seed", type=int, default=0)
    compress.add_argument("--out", type=Path, required=True, metavar="DIR")

    evaluate = verb(
        "evaluate", "Score a saved model (with torch) or an exported file (with its engine) on a dataset.", "models"
    )
    evaluate.add_argument("what", type=Path, metavar="DIR_OR_ARTIFACT")
    _add_data(evaluate)
    evaluate.add_argument("--part", choices=("test", "val"), default="test")
    evaluate.add_argument("--seed", type=int, default=0, help="of the split that makes val")
    evaluate.add_argument("--json", action="store_true")

    export = verb(
        "export", "Export a saved model to one or more formats, checked against torch on real images.", "models"
    )
    export.add_argument("model_dir", type=Path, metavar="DIR")
    export.add_argument(
        "--format", action="append", required=True, dest="formats", metavar="FORMAT", help="may be repeated"
    )
    _add_data(export)
    export.add_argument("--seed", type=int, default=0)
    export.add_argument(
        "--activations", choices=ACTIVATIONS, help="onnx-int8: activation type (default: the one of device local)"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR")

    profile = verb("profile", "Measure any .onnx or .tflite file on a device, with random inputs.", "profiling")
    profile.add_argument("artifact", type=Path, metavar="ARTIFACT")
    profile.add_argument("--device", default="local", metavar="D")
    profile.add_argument(
        "--threads", type=_numbers, default=(1,), metavar="N[,N...]", help="each is measured; default 1"
    )
    profile.add_argument(
        "--batch", type=_numbers, default=(1,), metavar="N[,N...]", help="inputs at once; each is measured; default 1"
    )
    profile.add_argument(
        "--profile-ops", action="store_true", help="also the time of each operator, as far as the engine tells it"
    )
    profile.add_argument("--warmup-s", type=float, default=1.0)
    profile.add_argument("--min-s", type=float, default=5.0)
    profile.add_argument("--blocks", type=int, default=5)
    profile.add_argument(
        "--power",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the power pass on a device with a sensor, as measure.power of a study: windows=3, window_s=20, …; may be "
        "repeated; off: no power pass",
    )
    profile.add_argument(
        "--json", action="store_true", help="print the raw result of the agent and the summary as JSON"
    )

    device = verbs.add_parser(
        "device", help="List, check, pin and prepare devices.", description="List, check, pin and prepare devices."
    )
    actions = device.add_subparsers(metavar="ACTION", required=True)
    verb("list", "The device profiles that come with edgecompress.", "devices", within=actions)
    for name, text in (
        ("doctor", "Look at everything that a measurement needs, before anything is copied, and say how to mend it."),
        ("trust", "Show the SHA-256 fingerprint of the device's host key and pin it."),
        ("setup", "Make a Python environment with the engines in the device's workdir."),
    ):
        action = verb(name, text, "devices", within=actions)
        action.add_argument("device", metavar="D", help="a device, or a pool: each of its boards")
        if name == "doctor":
            action.add_argument(
                "--json", action="store_true", help="print the table as JSON; of a pool, a list of tables"
            )
        if name == "trust":
            action.add_argument(
                "--yes", action="store_true", help="pin without asking (compare the fingerprint yourself)"
            )
        if name == "setup":
            _add_setup(action)

    _add_packing(verb)
    _add_channels(verb("channels", CHANNELS, "devices", within=actions))

    methods = verb("methods", "List the compression methods, or describe one with its parameters.", "models")
    methods.add_argument("name", nargs="?", metavar="NAME")
    return parser.parse_args(argv)


def _add_setup(action: argparse.ArgumentParser) -> None:
    how = action.add_mutually_exclusive_group()
    how.add_argument(
        "--offline", action="store_true", help="the device has no network: collect the wheels here and bring them"
    )
    how.add_argument("--remove", action="store_true", help="remove the environment that setup made")
    action.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")


def _add_packing(verb: Callable[..., argparse.ArgumentParser]) -> None:
    pack = verb("pack", "Pack a saved model into one entropy-coded .ecz file, and say where its bytes go.", "packing")
    pack.add_argument("model_dir", type=Path, metavar="DIR")
    pack.add_argument("out", type=Path, metavar="OUT.ecz")
    pack.add_argument(
        "--coder", default="huffman", metavar="C", help="huffman (default), or range: smaller, needs constriction"
    )
    pack.add_argument("--json", action="store_true", help="print the sizes of every tensor as JSON")
    unpack = verb("unpack", "Make the model directory again that was packed, byte for byte.", "packing")
    unpack.add_argument("packed", type=Path, metavar="OUT.ecz")
    unpack.add_argument("out", type=Path, metavar="DIR")
    unpack.add_argument(
        "--limit-gib", type=float, default=4.0, metavar="N", help="most that the tensors may take, in GiB (default: 4)"
    )


def _add_channels(channels: argparse.ArgumentParser) -> None:
    channels.add_argument("device", metavar="D")
    channels.add_argument("--format", default="onnx-fp32", metavar="FORMAT", help="default: onnx-fp32")
    channels.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the engine; default: 1")
    channels.add_argument(
        "--width", type=int, default=48, metavar="N", help="typical width of the network; default: 48"
    )
    channels.add_argument(
        "--sizes", type=_numbers, default=(32, 16, 8), metavar="N[,N...]", help="spatial sizes; default: 32,16,8"
    )
    channels.add_argument("--fresh", action="store_true", help="measure again although a sweep is kept")
    channels.add_argument("--json", action="store_true", help="print the whole record")


def _numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers of 1 or more, each once."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different numbers of 1 or more, as in 1,2,4")
    return numbers


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, metavar="NAME[:k=v,...]", help="a dataset and its settings: npz:path=cifar10.npz"
    )
