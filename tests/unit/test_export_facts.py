"""Export without torch: names, checks of what comes in, the arithmetic of parity, and a clean terminal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import StepFailed, UserError
from edgecompress.export import census, contract, parity
from edgecompress.export.quiet import quiet

FORMATS = ["onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"]


def context(calibration: np.ndarray, tmp_path: Path) -> contract.ExportContext:
    return contract.ExportContext((3, 8, 8), calibration, "uint8", tmp_path)


def images(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_formats_are_found_by_file_name() -> None:
    assert contract.formats() == FORMATS


def test_naming_formats_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom edgecompress.export import contract\ncontract.formats()\ncontract.available_formats()\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'litert_torch', 'ai_edge_litert') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_unknown_format_names_the_near_miss() -> None:
    with pytest.raises(UserError, match="Did you mean 'onnx-int8'"):
        contract.check_installed("onnx-int4")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (images(0, 3, 8, 8), r"shape \(0, 3, 8, 8\) does not fit"),
        (images(4, 1, 8, 8), r"shape \(4, 1, 8, 8\) does not fit"),
        (images(4, 8, 8, 3), "does not fit"),
        (images(3, 8, 8), "does not fit"),
        (images(4, 3, 8, 8).astype(np.float64), "float64 instead of float32"),
    ],
)
def test_unfit_calibration_images_are_refused(calibration: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        contract.check_calibration(context(calibration, tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_images_that_are_not_finite_are_counted(value: float, tmp_path: Path) -> None:
    calibration = images(4, 3, 8, 8)
    calibration[1, 0, 0, 0] = calibration[3, 2, 7, 7] = value
    with pytest.raises(UserError, match="2 of 4 images hold NaN or infinity"):
        contract.check_calibration(context(calibration, tmp_path))


def test_parity_of_equal_logits() -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    record = parity.compare(logits, logits.copy(), int8=False)
    assert (record.max_abs_diff, record.mean_abs_diff, record.top1_agreement, record.images) == (0.0, 0.0, 1.0, 2)
    assert record.tolerance == pytest.approx(3e-3)
    assert parity.judge(record, "onnx-fp32") == ()


def test_float_parity_above_the_tolerance_is_refused() -> None:
    logits = np.array([[0.5, 0.25], [0.1, 0.0]], np.float32)
    record = parity.compare(logits, logits + np.float32(2e-3), int8=False)
    assert record.tolerance == parity.TOLERANCE
    with pytest.raises(StepFailed, match=r"differs by 0\.002"):
        parity.judge(record, "onnx-fp32")


@pytest.mark.parametrize("int8", [False, True])
def test_nan_passes_no_parity(int8: bool) -> None:
    logits = np.array([[0.5, 0.25], [0.1, 0.0]], np.float32)
    with pytest.raises(StepFailed):
        parity.judge(parity.compare(logits, logits * np.nan, int8=int8), "x")


def test_int8_agreement_warns_and_then_refuses() -> None:
    reference = np.eye(10, dtype=np.float32)
    for wrong, expected in ((0, 0), (2, 1)):
        got = reference.copy()
        got[:wrong] = np.roll(got[:wrong], 1, axis=1)
        record = parity.compare(reference, got, int8=True)
        assert record.tolerance is None
        assert record.top1_agreement == pytest.approx(1 - wrong / 10)
        assert len(parity.judge(record, "onnx-int8")) == expected
    with pytest.raises(StepFailed, match="40% of 10"):
        parity.judge(
            parity.compare(
                reference, np.roll(reference, 1, axis=1) * 0.1 + got * np.repeat([0, 1], [6, 4])[:, None], int8=True
            ),
            "onnx-int8",
        )


def test_another_output_shape_is_refused() -> None:
    with pytest.raises(StepFailed, match=r"\(2, 11\).*\(2, 10\)"):
        parity.compare(np.zeros((2, 10)), np.zeros((2, 11)), int8=False)


def test_compared_images_are_spread_and_fewer_when_large() -> None:
    small = parity.pick(1000, (3, 32, 32))
    assert len(small) == 256
    assert (small[0], small[-1]) == (0, 999)
    assert len(parity.pick(1000, (3, 224, 224))) == 32
    assert parity.pick(5, (3, 32, 32)).tolist() == [0, 1, 2, 3, 4]
    assert parity.pick(1, (3, 32, 32)).tolist() == [0]


def test_zeros_are_those_of_the_zero_point() -> None:
    values = np.array([[0, 3], [3, 3]], np.int8)
    assert census.zeros_of(values) == 1
    assert census.zeros_of(values, np.array([3], np.int8)) == 3
    assert census.zeros_of(values, np.array([0, 3], np.int8), axis=0) == 3
    assert census.zeros_of(np.array([0.0, -0.0, 1e-38], np.float32)) == 2


@pytest.mark.parametrize("name", ["weights.bin", "cut.onnx", "cut.tflite"])
def test_a_file_that_is_no_network_is_a_user_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x00\x01 not a network")
    with pytest.raises(UserError) as error:
        census.count(path)
    assert str(path) in str(error.value)


def test_quiet_keeps_the_terminal_clean(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    print("before")
    with quiet():
        print("python")
        os.write(1, b"from C on stdout\n")
        os.write(2, b"from C on stderr\n")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logging.warning("root logger")
        logging.basicConfig(level=logging.DEBUG, force=True)
    print("after", file=sys.stderr)
    captured = capfd.readouterr()
    assert captured.out == "before\n"
    assert captured.err == "after\n"
    assert (root.handlers[:], root.level) == before


def test_quiet_gives_an_exception_what_was_printed() -> None:
    with pytest.raises(ValueError, match="no") as error, quiet():
        os.write(2, b"failed to legalize operation 'x'\n")
        raise ValueError("no")
    assert error.value.__notes__ == ["failed to legalize operation 'x'"]
