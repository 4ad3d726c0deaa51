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
    sensor_reason="no sensor on this device", started_unix_s=1.5, warnings=("a warning",),
)  # fmt: skip
HELLO = wire.Hello(
    "a" * 64, "3.8.1", "aarch64", None, {"litert": wire.EngineFound(None, reason="missing")}, CONDITIONS, True, 5
)
STATUS = wire.Status("lost", log="end")


@pytest.mark.parametrize("record", [BLOB, JOB, CONDITIONS, RESULT, HELLO, STATUS], ids=lambda r: type(r).__name__)
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
        ({"protocol": 2}, "protocol 2, this side speaks 1"),
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
    records = [BLOB, JOB, CONDITIONS, RESULT, HELLO, STATUS]
    sent = "".join(f"{type(r).__name__} {wire.encode(r).decode()}\n" for r in records)
    done = subprocess.run([python, "-I", "-c", code, str(agent)], input=sent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wire.to_json(r) for r in records]
