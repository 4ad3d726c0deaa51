"""Measurements by the real engines: what is predicted is what the pixels say, and every figure is what its field claims."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_agent import wire

from edgecompress.board import bundle

from . import tiny_models
from .conftest import Board

pytestmark = pytest.mark.heavy
MakeBoard = Callable[[str], Board]
KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "onnx-nchw": ("onnxruntime", tiny_models.write_onnx),
    "onnx-nhwc": ("onnxruntime", lambda path: tiny_models.write_onnx(path, shape=(1, 8, 8, 3))),
    "tflite-float": ("litert", tiny_models.write_tflite),
    "tflite-free": ("litert", lambda path: tiny_models.write_tflite(path, free=True)),
    "tflite-int8": ("litert", lambda path: tiny_models.write_tflite(path, int8=True)),
}


def _job(board: Board, tmp_path: Path, kind: str, **changes: Any) -> wire.Job:
    engine, write = KINDS[kind]
    np.save(tmp_path / "images.npy", tiny_models.images())
    job = wire.Job(
        "job",
        board.put_blob(write(tmp_path / "model")),
        engine,
        images=board.put_blob(tmp_path / "images.npy"),
        mean=tiny_models.MEAN,
        std=tiny_models.STD,
        warmup_s=0.05,
        min_s=0.2,
        blocks=3,
    )
    return dataclasses.replace(job, **changes)


def _measure(board: Board, job: wire.Job) -> wire.Result:
    board.put_job(job)
    board.ask("start", job.job_id)
    return board.result(job.job_id)


def _ok(board: Board, job: wire.Job) -> wire.Result:
    result = _measure(board, job)
    assert result.status == "ok", result.reason
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_figures(make_board: MakeBoard, engine_python: str, kind: str, tmp_path: Path) -> None:
    board = make_board(engine_python)
    engine = wire.from_json(wire.Hello, board.ask("hello")).engines[KINDS[kind][0]]
    if engine.version is None:
        pytest.skip(f"{engine_python} has no {KINDS[kind][0]}: {engine.reason}")
    job = _job(board, tmp_path, kind)
    result = _ok(board, job)

    assert result.predictions is not None
    expected = tiny_models.expected(tiny_models.images())
    if kind == "tflite-int8":  # channels nearer than a quantisation step may change places; the first seldom does
        agreement = np.mean([p[0] == e[0] for p, e in zip(result.predictions, expected, strict=True)])
        assert agreement >= 0.9
    else:
        assert list(result.predictions) == expected

    assert result.agent_sha256 == bundle.build()[1]
    assert result.engine is not None
    assert (result.engine.name, result.engine.version) == (job.engine, engine.version)
    assert result.engine.inputs[0].dtype == ("int8" if kind == "tflite-int8" else "float32")
    assert (result.engine.inputs[0].scale is not None) == (kind == "tflite-int8")
    assert (result.sensor, result.power_reason) == ("none", "no sensor on this device")

    assert len(result.blocks) == job.blocks
    end = 0
    for block in result.blocks:
        assert len(block.latencies_ns) >= 10
        assert min(block.latencies_ns) > 0
        assert block.start_ns >= end, "blocks follow each other on one clock"
        end = block.start_ns + sum(block.latencies_ns)
    timed_ns = sum(sum(b.latencies_ns) for b in result.blocks)
    span_ns = result.blocks[-1].start_ns + sum(result.blocks[-1].latencies_ns) - result.blocks[0].start_ns
    assert 0 < timed_ns <= span_ns
    assert span_ns >= 0.99 * job.min_s * 1e9
    assert result.warmup_ns and sum(result.warmup_ns) <= 5e9
    assert result.load_ns and result.first_inference_ns and result.peak_rss_bytes and result.peak_rss_bytes > 10 << 20
    assert [c.phase for c in result.conditions] == ["before", "warm", "during", "after"]
    assert result.conditions[0].monotonic_ns < result.blocks[0].start_ns < result.conditions[2].monotonic_ns
    assert end < result.conditions[3].monotonic_ns


@pytest.mark.parametrize("kind", ["onnx-nchw", "tflite-float"])
def test_a_bare_file_is_measured_with_random_inputs(board: Board, tmp_path: Path, kind: str) -> None:
    result = _ok(board, _job(board, tmp_path, kind, images=None, mean=(), std=(), score=False))
    assert result.predictions is None
    assert all(b.latencies_ns for b in result.blocks)


def test_score_images_limits_the_scoring_only(board: Board, tmp_path: Path) -> None:
    result = _ok(board, _job(board, tmp_path, "onnx-nchw", score_images=5))
    assert list(result.predictions or ()) == tiny_models.expected(tiny_models.images())[:5]


def test_images_without_scoring_feed_the_timing(board: Board, tmp_path: Path) -> None:
    result = _ok(board, _job(board, tmp_path, "onnx-nchw", score=False))
    assert result.predictions is None


def test_a_slow_model_still_gets_ten_inferences_a_block(board: Board, tmp_path: Path) -> None:
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "slow.onnx", repeat=1500))
    job = _job(board, tmp_path, "onnx-nchw", artifact=blob, warmup_s=0, min_s=0.003, score=False)
    result = _ok(board, job)
    assert [len(b.latencies_ns) for b in result.blocks] == [10] * 3
    assert min(b.latencies_ns[0] for b in result.blocks) > 0.1 * job.min_s * 1e9
    assert len(result.warmup_ns) == 1


def test_uint8_input_without_a_scale_gets_raw_pixels(board: Board, tmp_path: Path) -> None:
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "raw.onnx", shape=(1, 8, 8, 3), dtype="UINT8"))
    result = _ok(board, _job(board, tmp_path, "onnx-nhwc", artifact=blob))
    pixels = tiny_models.images().astype(float).mean(axis=(1, 2))
    assert list(result.predictions or ()) == [tuple(o) for o in np.argsort(-pixels, axis=1, kind="stable").tolist()]
    assert any("raw pixels" in w for w in result.warnings)


def test_a_fixed_batch_is_told(board: Board, tmp_path: Path) -> None:
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "batch.onnx", shape=(4, 3, 8, 8)))
    job = _job(board, tmp_path, "onnx-nchw", artifact=blob, images=None, mean=(), std=(), score=False)
    assert any("batches of 4" in w for w in _ok(board, job).warnings)


@pytest.mark.parametrize(
    ("kind", "write"), [("onnx-nchw", tiny_models.write_onnx_sum), ("tflite-float", tiny_models.write_tflite_sum)]
)
def test_a_model_of_two_inputs_is_measured_but_takes_no_images(
    board: Board, tmp_path: Path, kind: str, write: Callable[[Path], Path]
) -> None:
    blob = board.put_blob(write(tmp_path / "sum"))
    result = _ok(board, _job(board, tmp_path, kind, artifact=blob, images=None, mean=(), std=(), score=False))
    assert result.engine is not None
    assert [t.name for t in result.engine.inputs] == ["a", "b"]
    refused = _measure(board, _job(board, tmp_path, kind, artifact=blob, job_id="images"))
    assert "2 inputs (a, b): images fit one" in (refused.reason or "")


def test_outputs_that_are_not_numbers_are_told(board: Board, tmp_path: Path) -> None:
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "nan.onnx", last="Sqrt"))
    result = _ok(board, _job(board, tmp_path, "onnx-nchw", artifact=blob))
    dark = [bool(((pixels / 255).mean(axis=(0, 1)) < tiny_models.MEAN).any()) for pixels in tiny_models.images()]
    assert sum(dark) > 0
    assert f"the output of {sum(dark)} of {len(dark)} images holds NaN" in result.warnings


@pytest.mark.skipif(sys.platform != "linux", reason="pinning is Linux's")
def test_pinned_to_a_cpu(board: Board, tmp_path: Path) -> None:
    usable = min(os.sched_getaffinity(0))  # a container may not have the CPU 0
    assert _ok(board, _job(board, tmp_path, "onnx-nchw", cpus=(usable,), threads=2)).engine is not None


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("onnx-nchw", {"providers": ("CUDAExecutionProvider",)}, "has no CUDAExecutionProvider"),
        ("onnx-nchw", {"cpus": (4096,)}, "cannot pin to the CPUs 4096"),
        ("onnx-nchw", {"sensor": "nonne"}, "unknown sensor 'nonne' (did you mean none?): this agent has "),
        ("onnx-nchw", {"sensor_options": {"address": 64}}, "sensor none takes no options"),
        ("onnx-nchw", {"mean": (0.5,), "std": (0.5,)}, "images of 3 channels need as many"),
        ("tflite-float", {"engine": "onnxruntime"}, "INVALID_PROTOBUF"),
        ("onnx-nchw", {"engine": "litert"}, "ValueError"),
    ],
)
def test_what_cannot_be_done_says_why(
    board: Board, tmp_path: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    result = _measure(board, _job(board, tmp_path, kind, **changes))
    assert result.status == "failed"
    assert said in (result.reason or "")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 9, 8, 3), np.uint8), "takes neither (1, 3, 9, 8) nor (1, 9, 8, 3)"),
        (np.zeros((2, 8, 8, 3), np.float32), "must be uint8 (N, H, W, C), not float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), "must be uint8 (N, H, W, C)"),
        (np.array([{"a": 1}], dtype=object), "not a .npy file"),
    ],
)
def test_wrong_images_say_why(board: Board, tmp_path: Path, array: np.ndarray, said: str) -> None:
    job = _job(board, tmp_path, "onnx-nchw")
    np.save(tmp_path / "wrong.npy", array, allow_pickle=True)
    result = _measure(board, dataclasses.replace(job, images=board.put_blob(tmp_path / "wrong.npy")))
    assert result.status == "failed"
    assert said in (result.reason or "")


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "gone"])
def test_a_damaged_file_is_not_measured(board: Board, tmp_path: Path, damage: str) -> None:
    job = _job(board, tmp_path, "onnx-nchw")
    file = board.root / "blobs" / job.artifact.sha256
    data = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(data[:-1] if damage == "cut short" else data[:-1] + bytes([data[-1] ^ 1]))
    result = _measure(board, job)
    assert result.status == "failed"
    assert ("is missing" if damage == "gone" else "is damaged on the board") in (result.reason or "")
