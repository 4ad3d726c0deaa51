"""`edgecompress profile`: sweeps and the time by operator, on this machine and over SSH."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_agent import wire

from edgecompress import measurement, operators
from edgecompress.board.session import connect
from edgecompress.cli import main
from edgecompress.device_profile import DeviceProfile
from edgecompress.study import MeasureSpec
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
    assert main(["profile", str(file), "--device", device, "--batch", "4", "--json", *QUICK]) == 1
    out, err = capsys.readouterr()
    assert "takes no batch of 4" in err
    (found,) = json.loads(out)["measurements"]
    assert found["status"] == "failed" and found["result"]["status"] == "failed"


_PASS = ("window_s=0.3", "windows=3", "min_samples=5", "idle_s=0.3", "settle_s=0")
POWER = [word for setting in _PASS for word in ("--power", setting)]


def _replayed(tmp_path: Path, seconds: float) -> str:
    """A device whose meter is a recording of 2 W, a reading every 10 ms."""
    recording = tmp_path / "meter.csv"
    recording.write_text("seconds,watts\n" + "".join(f"{n / 100:.2f},2\n" for n in range(round(100 * seconds))))
    file = tmp_path / "metered.yaml"
    options = f"sensor: replay\nsensor_options: {{path: {recording}}}\nscope: board\nbattery_wh: 10\n"
    file.write_text(f"name: metered\nworkdir: {tmp_path / 'workdir'}\n{options}")
    return str(file)


def test_energy_has_all_its_figures_and_its_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", repeat=20)
    assert main(["profile", str(file), "--device", _replayed(tmp_path, 20), "--json", *QUICK, *POWER]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    summary = found["summary"]
    assert summary["energy_reason"] is None, summary["energy_reason"]
    assert summary["power_mean_w"] == summary["power_peak_w"] == summary["idle_w"] == pytest.approx(2)
    assert (summary["energy_windows"], summary["power_scope"]) == (3, "board")
    assert summary["energy_mj"] == pytest.approx(3.6e6 / summary["inferences_per_wh"])
    assert (summary["battery_hours"], summary["sensor"]) == (pytest.approx(5), "replay (replayed)")
    assert any("replayed" in text for text in found["warnings"])
    # a busy machine ends a window late
    assert any(re.match(r"windows of [\d.]+ s: shorter", text) for text in found["warnings"]), found["warnings"]


def test_a_sensor_that_dies_leaves_the_rest_and_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", repeat=20)
    assert main(["profile", str(file), "--device", _replayed(tmp_path, 0.5), *QUICK, *POWER]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Energy, threads 1, batch 1: not measured: " in out and "the recording ended after 0.49 s" in out


def test_the_power_pass_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx", repeat=20)
    assert main(["profile", str(file), "--device", _replayed(tmp_path, 5), *QUICK, "--power", "off"]) == 0
    assert "not measured: the job did not ask for power" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [("windows", "'windows' is not key=value"), ("windws=3", "Did you mean 'windows'"), ("windows=0", "power.windows")],
)
def test_a_wrong_power_pass_is_refused(
    tmp_path: Path, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_models.write_onnx(tmp_path / "model.onnx")
    assert main(["profile", str(file), "--power", given]) == 2
    assert said in capsys.readouterr().err


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
