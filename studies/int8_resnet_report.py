"""Tables and raw results of `int8_resnet`: all arithmetic from the pieces, nothing from the networks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from edgecompress import stats
from edgecompress.rundir import write_atomically

Pieces = dict[str, Any]
"""Name of a piece → what its state file holds."""

WORDS = {
    "fp32": "float32", "ptq": "ours, after training", "qat": "ours, trained (QAT)", "nncf": "NNCF",
    "default": "LiteRT quantiser's default", "ptq-8bit": "ours, after training, weights of 8 bits",
    "qat-8bit": "ours, trained, weights of 8 bits",
}  # fmt: skip
PAIRS = (
    ("onnx-ptq", "onnx-nncf"), ("onnx-qat", "onnx-nncf"), ("tflite-ptq", "tflite-default"), ("tflite-qat", "tflite-default"),
)  # fmt: skip
"""(ours, the peer's)"""
LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "CONV_2D", "FULLY_CONNECTED")
ADDITIONS = ("QLinearAdd", "ADD")


def write(out: Path | None, results: dict[str, Any]) -> str:
    """The tables; with `out` also there, as table.md, beside results.json."""
    text = "\n".join(part for name, pieces in results["models"].items() for part in tables(name, pieces))
    if out is not None:
        write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
        write_atomically(out / "table.md", text)
    return text


def tables(name: str, pieces: Pieces) -> list[str]:
    """Markdown: every file, ours against the peers', and agreement with the simulated network. What is missing stays out."""
    ways = [piece.removeprefix("score-") for piece in pieces if piece.startswith("score-")]
    lines = [f"## {name}", ""]
    lines += [
        "| engine, file | top-1 % [95 %] | against float32 [95 %] | p | with exact sums | bytes | int8 layers + additions, float "
        "| speed-up [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        engine, _, kind = way.partition("-")
        correct = pieces[f"score-{way}"]["correct"]
        low, high = stats.wilson(correct.count("1"), len(correct))
        difference = ["", ""]
        if kind != "fp32" and f"score-{engine}-fp32" in pieces:
            test = stats.mcnemar(pieces[f"score-{engine}-fp32"]["correct"], correct)
            difference = [points(test), f"{test.p:.2g}"]
        exact = pieces.get(f"exact-{way}")
        counted = file_of(pieces, way)
        cells = [
            f"{'ONNX Runtime' if engine == 'onnx' else 'LiteRT'}, {WORDS[kind]}",
            f"{100 * correct.count('1') / len(correct):.2f} [{100 * low:.2f}, {100 * high:.2f}]", *difference,
            "" if exact is None else f"{100 * exact['top1']:.2f}",
            "" if counted is None else f"{counted['bytes']:,}", "" if counted is None else census(counted),
            speed(pieces, f"{engine}-fp32", way),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| ours | the peer's | top-1, ours - the peer's [95 %] | p | speed, ours over the peer's [95 %] |"]
    lines += ["|---|---|---|---|---|"]
    for ours, peer in PAIRS:
        if f"score-{ours}" in pieces and f"score-{peer}" in pieces:
            test = stats.mcnemar(pieces[f"score-{peer}"]["correct"], pieces[f"score-{ours}"]["correct"])
            lines.append(f"| {ours} | {peer} | {points(test)} | {test.p:.2g} | {speed(pieces, peer, ours)} |")
    lines += [
        "",
        "| trained file | outputs | equal | within one step | largest difference, steps |",
        "|---|---|---|---|---|",
    ]
    for piece, found in pieces.items():
        if piece.startswith("agreement-"):
            lines.append(
                f"| {piece.removeprefix('agreement-')} | {found['outputs']:,} | {100 * found['equal']:.2f} % | "
                f"{100 * found['within_one_step']:.3f} % | {found['largest_difference_steps']:.2f} |"
            )
    return [*lines, ""]


def points(test: stats.PairedTest) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"


def file_of(pieces: Pieces, way: str) -> dict[str, Any] | None:
    """What was counted in the file of a way; None where it is not made."""
    engine, _, kind = way.partition("-")
    suffix = ".onnx" if engine == "onnx" else ".tflite"
    bits = "qat-8" if engine == "tflite" or kind == "qat-8bit" or "qat-7" not in pieces else "qat-7"
    piece = {"fp32": "float", "nncf": "nncf", "default": "litert-default", "qat": bits, "qat-8bit": bits}.get(
        kind, "ptq"
    )
    files = [f for f in pieces.get(piece, {"files": []})["files"] if f["file"].endswith(suffix)]
    if piece == "ptq" and len(files) > 1:
        files = [f for f in files if f["file"].endswith("-uint8.onnx") == (kind == "ptq-8bit")]
    return files[0] if files else None


def census(counted: dict[str, Any]) -> str:
    """`20 + 9, 0`: layers and additions that compute in int8, and those that do not."""
    operators, left = counted["operators"], len(counted["float_layers"])
    layers = sum(operators.get(kind, 0) for kind in LAYERS)
    additions = sum(operators.get(kind, 0) for kind in ADDITIONS)
    if counted["file"].endswith(".tflite"):  # the same names in float
        layers, additions = layers - left, additions - counted["float_additions"]
    return f"{layers} + {additions}, {left + counted['float_additions']}"


def speed(pieces: Pieces, slow: str, fast: str) -> str:
    """How many times as fast `fast` is as `slow`: the median over the rounds, each a ratio of 10 % quantiles; at least 2 rounds."""
    taken = [piece["ms"] for name, piece in pieces.items() if name.startswith("latency-")]
    ratios = [ms[slow]["p10_ms"] / ms[fast]["p10_ms"] for ms in taken if slow in ms and fast in ms]
    if slow == fast or len(ratios) < 2:
        return ""
    found = stats.quantile_with_interval([[ratio] for ratio in ratios], 0.5, seed=0)
    return f"{median(ratios):.2f} [{found.low:.2f}, {found.high:.2f}]"
