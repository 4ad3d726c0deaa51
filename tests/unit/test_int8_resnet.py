"""The tables of the study `int8_resnet`, from pieces made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STUDIES))
    import int8_resnet_report

    return int8_resnet_report


def _file(name: str, operators: dict[str, int], left: int = 0, additions: int = 0) -> dict[str, Any]:
    layers = [f"layer{k}" for k in range(left)]
    return {
        "file": name, "bytes": 1234567, "operators": operators, "float_layers": layers, "float_additions": additions
    }  # fmt: skip


@pytest.fixture
def pieces() -> dict[str, Any]:
    right = "1" * 90 + "0" * 10
    return {
        "float": {"files": [_file("onnx-fp32.onnx", {"Conv": 19, "Add": 9, "Gemm": 1}, 20, 9)]},
        "ptq": {
            "files": [
                _file("onnx-int8-uint8.onnx", {"QLinearConv": 1}),
                _file("onnx-int8-uint8-reduced.onnx", {"QLinearConv": 19, "QGemm": 1, "QLinearAdd": 9}),
                _file("tflite-int8.tflite", {"CONV_2D": 19, "FULLY_CONNECTED": 1, "ADD": 9}, 1, 2),
            ]
        },
        "nncf": {"files": [_file("nncf.onnx", {"QLinearConv": 19, "QLinearAdd": 7, "Add": 2, "Gemm": 1}, 1, 2)]},
        "qat-7": {"files": [_file("onnx-int8-uint8-reduced.onnx", {"QLinearConv": 7})]},
        "qat-8": {"files": [_file("onnx-int8-uint8.onnx", {"QLinearConv": 8})]},
        "score-onnx-fp32": {"correct": right},
        "score-onnx-ptq": {"correct": "0" + right[1:]},
        "score-onnx-nncf": {"correct": right},
        "exact-onnx-ptq": {"top1": 0.875},
        "agreement-onnx-qat": {
            "outputs": 1000, "equal": 0.9, "within_one_step": 0.9995, "largest_difference_steps": 2.0
        },
        **{
            f"latency-{k}": {"ms": {"onnx-fp32": {"p10_ms": 2.0 * k}, "onnx-ptq": {"p10_ms": 1.0 * k}}} for k in (1, 2, 3)
        },
    }  # fmt: skip


def test_each_file_has_its_own_census(report: Any, pieces: dict[str, Any]) -> None:
    def told(way: str) -> str:
        return report.census(report.file_of(pieces, way))

    assert told("onnx-fp32") == "0 + 0, 29"
    assert told("onnx-ptq") == "20 + 9, 0"
    assert told("onnx-ptq-8bit") == "1 + 0, 0"
    assert told("tflite-ptq") == "19 + 7, 3"
    assert told("onnx-nncf") == "19 + 7, 3"
    assert told("onnx-qat") == "7 + 0, 0"
    assert told("onnx-qat-8bit") == "8 + 0, 0"
    assert report.file_of(pieces, "tflite-default") is None


def test_the_tables_compare_with_float_and_with_the_peer(report: Any, pieces: dict[str, Any], tmp_path: Path) -> None:
    text = report.write(tmp_path, {"models": {"resnet20": pieces}})
    row = next(line for line in text.splitlines() if "ONNX Runtime, ours, after training |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("89.00 [") and cells[2].startswith("-1.00 [") and cells[3] == "1"
    assert cells[4:] == ["87.50", "1,234,567", "20 + 9, 0", "2.00 [2.00, 2.00]"]
    assert "| onnx-ptq | onnx-nncf | -1.00 [" in text and "| onnx-qat | onnx-nncf" not in text
    assert "| onnx-qat | 1,000 | 90.00 % | 99.950 % | 2.00 |" in text
    assert (tmp_path / "table.md").read_text() == text
    assert json.loads((tmp_path / "results.json").read_text())["models"]["resnet20"] == pieces


def test_one_round_has_no_spread_and_says_nothing(report: Any, pieces: dict[str, Any]) -> None:
    only = {name: piece for name, piece in pieces.items() if name not in ("latency-2", "latency-3")}
    assert report.speed(only, "onnx-fp32", "onnx-ptq") == ""
    assert report.speed(pieces, "onnx-fp32", "onnx-nncf") == ""
