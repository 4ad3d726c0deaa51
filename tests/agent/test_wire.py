"""The records that cross: round trips, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import wire
from hypothesis import given
from hypothesis import strategies as st

BLOB = wire.Blob("model.onnx", "0" * 64, 10)
JOB = wire.Job("j-1", BLOB, "litert", images=wire.Blob("x.npy", "1" * 64, 3), mean=(0.5,), std=(0.25,), cpus=(0, 2))
CONDITIONS = wire.Conditions(
    "before", 12, "Raspberry Pi 4", None, 4, "aarch64", "6.1", None, "3.11.2", ("ondemand",), (600.0, 1500.0),
    {"cpu": 48.8}, "0x0", {"oc1_event_cnt": 0}, 0.1, 1 << 30, 0, None, 1.5, 0.5,
)  # fmt: skip
RESULT = wire.Result(
    "j-1", "a" * 64, "ok",
    engine=wire.EngineInfo(
        "litert", "ai_edge_litert", "2.3.0", "2.0", (), 1,
        (wire.TensorInfo("input", (None, 8, 8, 3), "int8", 0.03, -5),), (wire.TensorInfo("logits", (1, 3), "float32"),),
    ),
    conditions=(CONDITIONS,), warmup_ns=(5, 6), blocks=(wire.Block(3, (1, 2, 3)), wire.Block(9, (4,))),
    predictions=((2, 0, 1), (1, 0, 2)), load_ns=1, first_inference_ns=2, peak_rss_bytes=3,
    power_reason="no sensor on this device", started_unix_s=1.5, warnings=("a warning",),
)  # fmt: skip
SENSOR = wire.SensorInfo("ina219", "INA219 at 0x40", "as-wired", 0.01, 0.002, 0.005, 0.01, notes=("a note",))
TRACE = wire.Trace(
    SENSOR, (1, 2), (-5, 6), {"VDD_IN": (0, -1)}, stale=1, late=2, ended_reason="it died", clock_error_s=0.5
)
WINDOWS = (wire.Window("idle-before", 0, 1, 0), wire.Window("power", 1, 2, 3, 4))
MEASURED = dataclasses.replace(
    RESULT, sensor="ina219", power=wire.Power(TRACE, WINDOWS), power_reason="it died", windows=WINDOWS
)
WITH_POWER = dataclasses.replace(
    JOB, sensor="ina219", sensor_options={"bus": 1}, power=wire.PowerPlan(host_interval_s=0.1)
)
CLOCK = wire.Clock(5, None)
HELLO = wire.Hello(
    "a" * 64, "3.8.1", "aarch64", None, {"litert": wire.EngineFound(None, reason="missing")}, CONDITIONS, True, 5
)
STATUS = wire.Status("lost", log="end")
RECORDS = [BLOB, JOB, WITH_POWER, CONDITIONS, RESULT, MEASURED, HELLO, STATUS, CLOCK]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_round_trip(record: Any) -> None:
    assert wire.decode(type(record), wire.encode(record)) == record
    assert b"\n" not in wire.encode(record)


@given(
    st.builds(
        wire.Result,
        job_id=st.text(), agent_sha256=st.text(), status=st.just("failed"), reason=st.text(min_size=1),
        warmup_ns=st.lists(st.integers(0, 2**62)).map(tuple),
        blocks=st.lists(st.builds(wire.Block, st.integers(), st.lists(st.integers()).map(tuple))).map(tuple),
        predictions=st.none() | st.lists(st.lists(st.integers(0, 999)).map(tuple)).map(tuple),
        warnings=st.lists(st.text()).map(tuple),
        started_unix_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)  # fmt: skip
def test_any_result_survives(result: wire.Result) -> None:
    assert wire.decode(wire.Result, wire.encode(result)) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 1}, "protocol 1, this side speaks 2"),
        ({"protocol": None}, "different versions of edgecompress"),
        ({"extra": 1}, "unknown fields ['extra']"),
        ({"threads": 1.0}, "Job.threads must be an integer"),
        ({"threads": True}, "Job.threads must be an integer"),
        ({"threads": 0}, "Job.threads must be 1 or more"),
        ({"engine": "tvm"}, "one of onnxruntime, litert"),
        ({"job_id": "../../etc"}, "Job.job_id must be"),
        ({"job_id": "a\n"}, "Job.job_id must be"),
        ({"artifact": {"name": "m", "sha256": "../x", "bytes": 1}}, "Blob.sha256"),
        ({"artifact": None}, "Job.artifact must be an object"),
        ({"mean": "0.5"}, "Job.mean must be a list"),
        ({"mean": [0.5, "x"]}, "Job.mean[1] must be a finite number"),
        ({"std": [0.0]}, "Job.std must be positive"),
        ({"std": []}, "as many values as mean"),
        ({"min_s": 10**400}, "Job.min_s must be a finite number"),
        ({"images": None}, "Job.score must be False"),
        ({"cpus": []}, "Job.cpus"),
        ({"sensor": "../x"}, "Job.sensor"),
    ],
)
def test_wrong_jobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.from_json(wire.Job, {**wire.to_json(JOB), **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        (wire.PowerPlan(), {"window_s": 0}, "PowerPlan.window_s"),
        (wire.PowerPlan(), {"windows": 0}, "PowerPlan.windows"),
        (wire.PowerPlan(), {"min_samples": -1}, "PowerPlan.min_samples"),
        (wire.PowerPlan(), {"max_window_s": 1.0}, "PowerPlan.max_window_s"),
        (wire.PowerPlan(), {"host_interval_s": 0.0}, "PowerPlan.host_interval_s"),
        (SENSOR, {"scope": "house"}, "SensorInfo.scope"),
        (SENSOR, {"interval_s": 0.0}, "SensorInfo.interval_s"),
        (SENSOR, {"gain_error": -0.1}, "SensorInfo.gain_error"),
        (TRACE, {"power_uw": [1]}, "Trace.power_uw must be 2 values"),
        (TRACE, {"rails_mw": {"A": [1]}}, "Trace.rails_mw.A must be 2 values"),
        (TRACE, {"t_ns": [1, 2.5]}, "Trace.t_ns[1] must be an integer"),
        (TRACE, {"late": -1}, "Trace.late"),
        (WINDOWS[0], {"kind": "pause"}, "Window.kind"),
        (WINDOWS[1], {"end_ns": 0}, "Window.end_ns"),
        (WINDOWS[1], {"inferences": -1}, "Window.inferences"),
    ],
)
def test_wrong_power_is_refused(record: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.from_json(type(record), {**wire.to_json(record), **change})
    assert message in str(caught.value)


def test_missing_field_is_named() -> None:
    value = wire.to_json(JOB)
    del value["artifact"], value["protocol"]
    with pytest.raises(wire.WireError, match="protocol None"):
        wire.from_json(wire.Job, value)
    with pytest.raises(wire.WireError, match=r"missing fields \['artifact'\]"):
        wire.from_json(wire.Job, {**value, "protocol": wire.PROTOCOL})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"min_s": 1e999}', b"NaN"])
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(wire.Job, data)


def test_a_long_wrong_value_is_not_repeated_at_length() -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.from_json(wire.Job, {**wire.to_json(JOB), "engine": "x" * 100_000})
    assert len(str(caught.value)) < 300


def test_a_failed_result_needs_its_reason() -> None:
    with pytest.raises(wire.WireError, match="reason"):
        dataclasses.replace(RESULT, status="failed")


def test_every_interpreter_reads_the_same(python: str, agent: Path) -> None:
    """The annotations are evaluated at run time: on the oldest Python too."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from edgecompress_agent import wire\n"
        "for line in sys.stdin:\n"
        "    kind, _, data = line.partition(' ')\n"
        "    print(wire.encode(wire.decode(getattr(wire, kind), data.encode())).decode())\n"
    )
    sent = "".join(f"{type(r).__name__} {wire.encode(r).decode()}\n" for r in RECORDS)
    done = subprocess.run([python, "-I", "-c", code, str(agent)], input=sent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wire.to_json(r) for r in RECORDS]
