"""Time by operator, by the real engines through the agent; the cut graph; batches; what cannot be told says why."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_agent import onnxruntime_events, wire
from edgecompress_agent.errors import AgentError

from edgecompress.errors import StepFailed
from edgecompress.export.cut_tflite import cut
from edgecompress.export.operator_costs import costs

from . import tiny_models
from .conftest import Board

pytestmark = pytest.mark.heavy


def _job(board: Board, file: Path, engine: str, **changes: Any) -> wire.Job:
    job = wire.Job(
        "job", board.put_blob(file), engine, warmup_s=0.02, min_s=0.05, blocks=2, score=False, profile_ops=True
    )
    return dataclasses.replace(job, **changes)


def _measure(board: Board, job: wire.Job) -> wire.Result:
    board.put_job(job)
    board.ask("start", job.job_id)
    return board.result(job.job_id)


def _pieces(board: Board, file: Path, tmp_path: Path) -> wire.Blob:
    cut(file, tmp_path / "pieces.zip")
    return board.put_blob(tmp_path / "pieces.zip")


def test_onnxruntime_tells_every_operator(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", repeat=12, shape=(1, 3, 8, 8))
    result = _measure(board, _job(board, file, "onnxruntime"))
    assert result.status == "ok", result.reason
    profile = result.operators
    assert profile is not None, result.operators_reason
    assert (profile.method, profile.resolution_ns) == ("profiler", 1000)
    matmuls = [o for o in profile.operators if o.type in ("MatMul", "Gemm", "FusedMatMul")]
    assert len(matmuls) == 13
    assert all(o.calls == profile.inferences >= 10 for o in profile.operators)
    assert all(o.total_ns % 1000 == 0 for o in profile.operators), "whole microseconds"
    # what the operators took was part of the inferences that were timed around them
    assert 0 < sum(o.total_ns for o in profile.operators) / profile.inferences < 20 * profile.whole_p50_ns
    assert not list(board.directory("job").glob("operators*")), "the profiler's file is removed"


def test_the_cut_graph_of_litert_computes_the_same(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    job = _job(board, file, "litert", pieces=_pieces(board, file, tmp_path))
    profile = _measure(board, job).operators
    assert profile is not None
    assert profile.method == "cut in turn"
    assert [o.type for o in profile.operators] == ["FULLY_CONNECTED", "ADD", "FULLY_CONNECTED", "MEAN"]
    assert profile.output_difference == 0
    assert all(o.calls >= 10 and o.p50_ns > 0 for o in profile.operators)
    found = costs(file, profile.operators, 1)
    assert [macs for _, macs, _ in found] == [64 * 64, 0, 64 * 64, 0]
    assert [layer for layer, _, _ in found] == ["w0", None, "w1", None]
    assert found[0][2] == 4 * 64 * 64 and found[1][2] == 0
    assert profile.operators[1].activation_bytes == 4 * 64 * 3


def test_several_threads_run_each_piece_alone(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    job = _job(board, file, "litert", threads=2, pieces=_pieces(board, file, tmp_path))
    profile = _measure(board, job).operators
    assert profile is not None
    assert (profile.method, profile.output_difference) == ("cut alone", 0)


def test_pieces_of_another_file_are_refused_and_the_measurement_stands(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    other = tiny_models.write_tflite_chain(tmp_path / "other.tflite", seed=7)
    result = _measure(board, _job(board, file, "litert", pieces=_pieces(board, other, tmp_path)))
    assert result.status == "ok" and result.blocks
    assert result.operators is None
    assert "puts out something else than the file" in (result.operators_reason or "")


def test_litert_without_a_cut_graph_says_why(board: Board, tmp_path: Path) -> None:
    result = _measure(board, _job(board, tiny_models.write_tflite(tmp_path / "m.tflite"), "litert"))
    assert result.status == "ok" and result.operators is None
    assert "LiteRT's Python runtime tells no operator's time" in (result.operators_reason or "")


def test_what_keeps_a_state_is_not_cut(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    model.subgraphs[0].tensors[0].isVariable = True
    tiny_models.pack(model, file)
    with pytest.raises(StepFailed, match="keeps a state"):
        cut(file, tmp_path / "pieces.zip")


def test_cutting_is_repeatable(tmp_path: Path) -> None:
    """The job's identity holds the pieces' hash: cut again, a study must find the job that it left on the device."""
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    for name in ("a.zip", "b.zip"):
        cut(file, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(json.loads(archive.read("plan.json"))["pieces"]) == 4


@pytest.mark.parametrize(
    ("engine", "write"),
    [
        ("onnxruntime", tiny_models.write_onnx),
        ("litert", tiny_models.write_tflite_chain),
        ("litert", lambda path: tiny_models.write_tflite(path, int8=True)),
    ],
    ids=["onnx", "tflite", "tflite-int8"],
)
def test_a_batch_is_computed_whole(board: Board, tmp_path: Path, engine: str, write: Callable[[Path], Path]) -> None:
    result = _measure(board, _job(board, write(tmp_path / "model"), engine, batch=5, profile_ops=False))
    assert result.status == "ok", result.reason


def test_a_batch_reaches_the_pieces(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    profile = _measure(board, _job(board, file, "litert", batch=5, pieces=_pieces(board, file, tmp_path))).operators
    assert profile is not None
    assert profile.output_difference is not None and profile.output_difference < 1e-3
    assert profile.operators[1].activation_bytes == 5 * 4 * 64 * 3
    assert costs(file, profile.operators, 5)[0][1] == 5 * 64 * 64


def test_a_fixed_batch_is_refused(board: Board, tmp_path: Path) -> None:
    file = tiny_models.write_onnx(tmp_path / "fixed.onnx", shape=(1, 3, 8, 8))
    result = _measure(board, _job(board, file, "onnxruntime", batch=4))
    assert result.status == "failed"
    assert "takes no batch of 4, its first dimension is fixed" in (result.reason or "")


def _event(name: str, microseconds: int, ts: int = 0, **arguments: str) -> str:
    node = {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "ts": ts}
    return json.dumps({**node, "args": {"op_name": "Conv", "node_index": name, **arguments}}) + ","


RUN = json.dumps({"cat": "Session", "name": "model_run", "dur": 9, "ts": 0, "args": {}}) + ","


def test_events_are_counted_after_the_warm_up_only(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    fence = json.dumps({"cat": "Node", "name": "a_fence_before", "dur": 5, "ts": 0, "args": {"op_name": "Conv"}}) + ","
    lines = ["[", _event("a", 900), RUN]
    for taken in (4, 6, 100):
        lines += [
            fence,
            _event("a", taken, parameter_size="8", activation_size="16", output_size="32"),
            _event("b", 1),
            RUN,
        ]
    file.write_text("\n".join([*lines, _event("a", 900), "]"]))
    inferences, operators = onnxruntime_events.read(file, skip=1)
    assert inferences == 3
    assert [(o.name, o.calls, o.total_ns, o.p50_ns) for o in operators] == [
        ("a", 3, 110_000, 6_000),
        ("b", 3, 3_000, 1_000),
    ]
    assert (operators[0].parameter_bytes, operators[0].activation_bytes, operators[1].activation_bytes) == (8, 48, None)


def test_the_inside_of_a_loop_is_not_counted_twice(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    lines = [_event("before", 3, ts=0), _event("inner", 4, ts=12), _event("inner", 4, ts=17)]
    file.write_text("\n".join([*lines, _event("loop", 15, ts=10, op_name="Loop"), RUN]))
    assert [o.name for o in onnxruntime_events.read(file, skip=0)[1]] == ["before", "loop"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "told of no operator"),
        (RUN, "told of no operator"),
        ('{"cat": "Node"}', "something else than expected"),
        ('{"cat', "something else than expected"),
        (_event("a", 1, provider="CUDAExecutionProvider") + "\n" + RUN, "how long they take to start, not to run"),
    ],
)
def test_events_that_cannot_be_used_say_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "events.json").write_text(text)
    with pytest.raises(AgentError, match=said):
        onnxruntime_events.read(tmp_path / "events.json", skip=0)


def test_the_records_survive_the_wire() -> None:
    operator = wire.OpTime("conv1", "CONV_2D", 30, 900_000, 29_000, 320, 36_864, 73_728, "conv1")
    profile = wire.OpProfile("cut in turn", "the graph cut", 1, 30, 31_000, (operator,), 0.0)
    result = wire.Result("job", "a" * 64, "ok", operators=profile)
    assert wire.decode(wire.Result, wire.encode(result)) == result


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"batch": 2, "images": wire.Blob("x.npy", "c" * 64, 1)}, {"pieces": wire.Blob("p", "c" * 64, 1)}],
)
def test_a_job_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(wire.WireError):
        wire.Job("job", wire.Blob("m", "b" * 64, 1), "litert", score=False, **changes)


def test_measured_outputs_must_be_of_the_batch() -> None:
    from edgecompress_agent import inputs

    inputs.check_batch([np.zeros((4, 3))], 4)
    with pytest.raises(AgentError, match="does not compute a batch"):
        inputs.check_batch([np.zeros((1, 3))], 4)
