"""`edgecompress profile`: sweeps and the time by operator, on this machine and over SSH."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_agent import wire

from edgecompress import measurement, operators
from edgecompress.board.session import connect
from edgecompress.cli import main
from edgecompress.study import DeviceProfile, MeasureSpec
from tests.agent import tiny_models

pytestmark = pytest.mark.heavy
QUICK = ["--min-s", "0.1", "--warmup-s", "0.02", "--blocks", "2"]


@pytest.fixture
def device(tmp_path: Path) -> str:
    file = tmp_path / "here.yaml"
    file.write_text(f"name: here\nworkdir: {tmp_path / 'workdir'}\n")
    return str(file)


def test_a_sweep_is_a_row_for_every_configuration(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", repeat=20)
    sweep = ["profile", str(file), "--device", device, "--threads", "1,2", "--batch", "1,8", *QUICK]
    assert main([*sweep, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["measurements"]
    assert [(m["threads"], m["batch"]) for m in found] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    for m in found:
        result = wire.from_json(wire.Result, m["result"])
        timed = [ns for block in result.blocks for ns in block.latencies_ns]
        assert m["summary"]["throughput_per_s"] == pytest.approx(m["batch"] * len(timed) * 1e9 / sum(timed))
        assert m["summary"]["load_ms"] > 0 and m["summary"]["first_inference_ms"] > 0
        assert m["summary"]["peak_rss_bytes"] > 10 << 20
        assert result.engine is not None and result.engine.threads == m["threads"]
        assert m["operator_times"] is m["operator_times_reason"] is None


def test_a_configuration_that_cannot_be_leaves_the_others(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", shape=(1, 3, 8, 8))
    assert main(["profile", str(file), "--device", device, "--batch", "1,4", *QUICK]) == 1
    out, err = capsys.readouterr()
    assert "failed" in out and "Throughput" in out
    assert "takes no batch of 4, its first dimension is fixed" in err and "Traceback" not in err


def test_one_configuration_that_cannot_be_is_a_failed_step(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", shape=(1, 3, 8, 8))
    assert main(["profile", str(file), "--device", device, "--batch", "4", *QUICK]) == 1
    assert "takes no batch of 4" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_operators_are_shown_beside_the_whole(
    tmp_path: Path, device: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"model.{suffix}"
    if suffix == "onnx":
        tiny_models.write_onnx(file, repeat=12)
    else:
        tiny_models.write_tflite_chain(file)
    assert main(["profile", str(file), "--device", device, "--profile-ops", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Time by operator, threads 1, batch 1" in out
    assert "of an inference that nobody profiles" in " ".join(out.split())
    assert ("the 3 others" if suffix == "onnx" else "FULLY_CONNECTED") in out or suffix == "onnx"


@pytest.mark.sshd
def test_the_cut_graph_travels_over_ssh(ssh_profile: Callable[..., DeviceProfile], tmp_path: Path) -> None:
    file = tiny_models.write_tflite_chain(tmp_path / "chain.tflite")
    profile = ssh_profile()
    measure = MeasureSpec(min_s=0.1, warmup_s=0.02, blocks=2, score_on="none", profile_ops=True)
    job, files = measurement.make_job("ops", file, None, normalisation=((), ()), profile=profile, measure=measure)
    with connect(profile) as session:
        result = operators.measure(session, job, files, file)
    assert result.status == "ok" and result.operators is not None, result.operators_reason
    assert [(o.layer, o.macs) for o in result.operators.operators] == [("w0", 4096), (None, 0), ("w1", 4096), (None, 0)]
    assert result.operators.output_difference == 0


def test_why_a_graph_cannot_be_cut_is_told_and_the_measurement_stands(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from ai_edge_litert import schema_py_generated as schema

    file = tiny_models.write_tflite_chain(tmp_path / "state.tflite")
    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    state = schema.TensorT()  # LiteRT keeps it from one inference to the next, although nothing here reads it
    state.name, state.shape, state.type, state.buffer, state.isVariable = b"state", [1, 4], 0, 0, True
    model.subgraphs[0].tensors.append(state)
    tiny_models.pack(model, file)
    assert main(["profile", str(file), "--device", device, "--profile-ops", "--json", *QUICK]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert found["status"] == "ok" and found["summary"]["latency_ms_p50"] > 0
    assert found["operator_times"] is None
    assert "the graph cannot be cut: it keeps a state" in found["operator_times_reason"]
