"""Recordings played back: at their own pace, labelled, and refused when they are none."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import wire
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, open_sensor, replay

pytestmark = pytest.mark.slow

MS = 1_000_000
TRACE = wire.Trace(
    wire.SensorInfo("ina219", "INA219 at 0x40", "board", 0.01, 0.002, 0.005, 0.01, chosen_because="it is there"),
    tuple(10**15 + t * MS for t in (0, 10, 20, 45)), (1000, -2000, 3000, 4000),
    rails_mw={"VDD_IN": (1, -2, 3, 4)},
)  # fmt: skip


def _json(tmp_path: Path, value: Any = TRACE) -> dict[str, Any]:
    file = tmp_path / "trace.json"
    file.write_bytes(wire.encode(value))
    return {"path": str(file)}


def _of_interval(seconds: float) -> dict[str, Any]:
    """TRACE, as a sensor of this interval would have made it."""
    value: dict[str, Any] = wire.to_json(TRACE)
    return {**value, "info": {**value["info"], "interval_s": seconds}}


def _read(sensor: Any, count: int) -> list[Any]:
    return [sensor.read(1.0) for _ in range(count)]


def test_a_trace_comes_back_at_its_own_pace_and_says_that_it_is_one(tmp_path: Path) -> None:
    sensor = open_sensor("replay", _json(tmp_path))
    info = sensor.info
    assert (info.name, info.replayed, info.scope) == ("replay", True, "board")
    assert (info.interval_s, info.resolution_w, info.gain_error, info.offset_error_w) == (0.01, 0.002, 0.005, 0.01)
    assert "INA219 at 0x40" in info.description and "ina219" in info.notes[-1]
    began = time.monotonic_ns()
    samples = _read(sensor, 4)
    assert [s.power_uw for s in samples] == [1000, -2000, 3000, 4000]
    assert [s.rails_mw for s in samples] == [{"VDD_IN": v} for v in (1, -2, 3, 4)]
    assert [s.t_ns - samples[0].t_ns for s in samples] == [0, 10 * MS, 20 * MS, 45 * MS]
    assert began <= samples[0].t_ns and samples[3].t_ns <= time.monotonic_ns()
    with pytest.raises(SensorFault, match=r"the recording ended after 0\.045 s"):
        sensor.read(1.0)


def test_a_loop_goes_on_one_interval_after_its_end(tmp_path: Path) -> None:
    sensor = open_sensor("replay", {**_json(tmp_path), "loop": True})
    samples = _read(sensor, 6)
    assert [s.power_uw for s in samples[4:]] == [1000, -2000]
    assert [s.t_ns - samples[0].t_ns for s in samples[4:]] == [55 * MS, 65 * MS]


def test_a_reader_that_was_away_gets_all_of_it_with_the_stamps_that_were_due(tmp_path: Path) -> None:
    sensor = open_sensor("replay", _json(tmp_path))
    first = sensor.read(1.0)
    time.sleep(0.06)
    assert [s.t_ns - first.t_ns for s in _read(sensor, 3)] == [10 * MS, 20 * MS, 45 * MS]


def test_a_gap_longer_than_the_wait_is_silence(tmp_path: Path) -> None:
    hour = dataclasses.replace(TRACE, t_ns=(0, 10 * MS, 20 * MS, 3_600_000 * MS))
    sensor = open_sensor("replay", _json(tmp_path, hour))
    _read(sensor, 3)
    with pytest.raises(SensorFault, match=r"no value for 0\.001 s"):
        sensor.read(0.001)


def test_a_whole_result_will_do(tmp_path: Path) -> None:
    result = wire.Result("j", "a" * 64, "ok", power=wire.Power(TRACE, ()))
    assert open_sensor("replay", _json(tmp_path, result)).read(1.0).power_uw == 1000


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "meter.csv"
    file.write_text("seconds,watts,usb\n100.00,2.5,1\n100.02,-0.000001,2\n\n100.04,3,0.5\n")
    sensor = open_sensor("replay", {"path": str(file)})
    assert (sensor.info.scope, round(sensor.info.interval_s, 6), sensor.info.replayed) == ("as-wired", 0.02, True)
    samples = _read(sensor, 3)
    assert [s.power_uw for s in samples] == [2_500_000, -1, 3_000_000]
    assert [s.rails_mw for s in samples] == [{"usb": 1000}, {"usb": 2000}, {"usb": 500}]
    assert samples[2].t_ns - samples[0].t_ns == 40 * MS


def test_csv_of_a_spreadsheet_and_with_the_time_of_day(tmp_path: Path) -> None:
    """A byte order mark before the header, and seconds since 1970."""
    file = tmp_path / "meter.csv"
    file.write_bytes(b"\xef\xbb\xbfseconds,watts\r\n1700000000.00,1\r\n1700000000.02,2\r\n1700000000.04,3\r\n")
    samples = _read(open_sensor("replay", {"path": str(file)}), 3)
    assert [s.power_uw for s in samples] == [1_000_000, 2_000_000, 3_000_000]
    assert samples[2].t_ns - samples[0].t_ns == pytest.approx(40 * MS, abs=1000)


def test_what_was_wrong_with_the_recording_is_noted(tmp_path: Path) -> None:
    broken = dataclasses.replace(TRACE, stale=2, overflows=1, ended_reason="the meter was unplugged")
    notes = open_sensor("replay", _json(tmp_path, broken)).info.notes
    assert "of the recorded readings: 1 out of range, 2 repeated, it ended because the meter was unplugged" in notes
    assert not any("recorded readings" in note for note in open_sensor("replay", _json(tmp_path)).info.notes)


@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "directory"])
def test_what_may_have_no_end_is_not_read(tmp_path: Path, what: str) -> None:
    place = tmp_path / what
    if what == "pipe":
        os.mkfifo(place)
    elif what == "directory":
        place.mkdir()
    with pytest.raises(AgentError, match="is not a file"):
        open_sensor("replay", {"path": str(place)})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", "{", "is not one"),
        ("x.json", "[" * 100_000, "is not one"),
        ("x.json", "[]", "Trace must be an object"),
        ("x.json", json.dumps({**wire.to_json(TRACE), "power_uw": [1]}), "power_uw must be 4 values"),
        ("x.json", json.dumps({**wire.to_json(TRACE), "t_ns": [4, 3, 5, 6]}), "each later than the one before"),
        ("x.json", json.dumps({**wire.to_json(TRACE), "t_ns": [], "power_uw": [], "rails_mw": {}}), "two readings"),
        ("x.json", b"\xff\xfe", "cannot be read"),
        ("x.csv", "", "seconds,watts"),
        ("x.csv", "watts,seconds\n1,2\n", "seconds,watts"),
        ("x.csv", "seconds,watts\n1,2\n2,x\n", "line 3 is not 2 numbers"),
        ("x.csv", "seconds,watts\n1,2\n2,nan\n", "line 3 is not 2 numbers"),
        ("x.csv", "seconds,watts\n1,2\n2\n", "line 3 is not 2 numbers"),
        ("x.csv", "seconds,watts\n1,2\n", "fewer than two"),
        ("x.csv", "seconds,watts\n2,2\n1,2\n", "do not grow"),
        ("x.csv", f"seconds,watts\n1,{'2' * 200_000}\n", "is not one: field larger"),
        ("x.csv", "seconds,watts\n1,2\n2,1e7\n", "more than a megawatt: is its unit right?"),
        ("x.csv", "seconds,watts,usb\n1,2,3\n2,1,-1e7\n", "more than a megawatt"),
        ("x.csv", "seconds,watts\n1,2\n2,2\n1e7,2\n", "are its times right?"),
        ("x.csv", "seconds,watts\n1,2\n1.0000001,2\n1.0000002,2\n", "are its times right?"),
        ("x.json", json.dumps(_of_interval(1e300)), "are its times right?"),
        ("x.json", json.dumps(_of_interval(1e-300)), "are its times right?"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AgentError) as caught:
        open_sensor("replay", {"path": str(file)})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs the option path"),
        ({"path": "relative.json"}, "absolute or with ~"),
        ({"path": 3}, "absolute or with ~"),
        ({"path": "/nowhere/at/all.json"}, "cannot be read"),
        ({"path": "/x.json", "loop": "yes"}, "loop must be true or false"),
        ({"pth": "/x.json"}, "no option 'pth' (did you mean path?): it has loop, path"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AgentError) as caught:
        open_sensor("replay", options)
    assert said in str(caught.value)


def test_it_is_never_found_by_itself() -> None:
    assert replay.probe() is None
