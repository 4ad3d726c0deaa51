"""From a study and a device profile to the plan of a power pass, and from the passes of several rounds to one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import wire

from edgecompress import rounds
from edgecompress.board.session import scoped
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.measurement import make_job
from edgecompress.study import MeasureSpec, PowerSpec
from edgecompress.studyfile import validate

INFO = wire.SensorInfo("ina219", "an INA219", "board", 0.01, 0.001, 0.005, 0.01)


def _job(profile: dict[str, Any], measure: MeasureSpec, tmp_path: Path) -> wire.Job:
    (tmp_path / "model.onnx").write_bytes(b"x")
    device = DeviceProfile.model_validate({"name": "board", **profile})
    return make_job("j", tmp_path / "model.onnx", None, normalisation=((), ()), profile=device, measure=measure)[0]


def test_a_sensor_and_its_options_reach_the_board(tmp_path: Path) -> None:
    spec = PowerSpec(window_s=2, min_samples=7, windows=3, idle_s=1, settle_s=0.25, max_window_s=9)
    profile = {"sensor": "replay", "sensor_options": {"path": "/x.csv"}}
    job = _job(profile, MeasureSpec(score_on="none", power=spec), tmp_path)
    assert (job.sensor, job.sensor_options) == ("replay", {"path": "/x.csv"})
    assert job.power == wire.PowerPlan(2.0, 7, 3, 1.0, 0.25, 9.0)
    assert wire.decode(wire.Job, wire.encode(job)) == job


def test_power_is_measured_by_default_where_there_is_a_sensor(tmp_path: Path) -> None:
    profile = {"sensor": "replay", "sensor_options": {"path": "/x.csv"}}
    assert _job(profile, MeasureSpec(score_on="none"), tmp_path).power == wire.PowerPlan()
    assert _job({}, MeasureSpec(score_on="none"), tmp_path).power is None
    assert _job(profile, MeasureSpec(score_on="none", power=None), tmp_path).power is None


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"sensor": "tegrastat"}, "unknown sensor 'tegrastat' (did you mean tegrastats?)"),
        ({"sensor": "replay", "sensor_options": {"pth": 1}}, "no option 'pth' (did you mean path?)"),
        ({"sensor_options": {"path": "/x"}}, "sensor none takes no options, not path"),
        ({"meter_at": "host"}, "meter_at: host needs a sensor"),
        ({"meter_at": "desk"}, "meter_at"),
        ({"scope": "whole"}, "scope"),
        ({"battery_wh": 0}, "battery_wh"),
    ],
)
def test_wrong_profiles_are_refused(profile: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(DeviceProfile, {"name": "board", **profile}, where="board.yaml", base=Path())
    assert said in str(caught.value)


def test_the_longest_window_holds_the_shortest() -> None:
    with pytest.raises(UserError) as caught:
        validate(PowerSpec, {"window_s": 200}, where="study.yaml", base=Path())
    assert "max_window_s (120) is less than window_s (200)" in str(caught.value)


def test_rounds_share_the_windows() -> None:
    measure = MeasureSpec(rounds=2, power=PowerSpec(windows=5))
    assert [rounds.share(measure, n).power for n in range(2)] == [PowerSpec(windows=3)] * 2
    assert rounds.share(MeasureSpec(rounds=2, power=None), 0).power is None


def _round(start: int, **changes: Any) -> wire.Result:
    values = {"stale": 1, "overflows": 2, "late": 3, "dropped": 4, **changes}
    trace = wire.Trace(INFO, (start, start + 10), (5, 6), {"A": (1, 2)}, **values)
    windows = (wire.Window("idle-before", start, start + 1, 0), wire.Window("power", start + 1, start + 10, 3, 3))
    return wire.Result("j", "a" * 64, "ok", power=wire.Power(trace, windows), power_reason=trace.ended_reason)


def test_the_passes_of_rounds_become_one() -> None:
    merged = rounds.merge([_round(100), _round(500, ended_reason="unplugged", clock_error_s=0.5)])
    assert merged.power is not None
    trace = merged.power.trace
    assert (trace.t_ns, trace.power_uw, trace.rails_mw) == ((100, 110, 500, 510), (5, 6, 5, 6), {"A": (1, 2, 1, 2)})
    assert (trace.stale, trace.overflows, trace.late, trace.dropped) == (2, 4, 6, 8)
    assert (trace.ended_reason, trace.clock_error_s, merged.power_reason) == ("unplugged", 0.5, "unplugged")
    assert [w.start_ns for w in merged.power.windows] == [100, 101, 500, 501]


def test_a_round_without_power_leaves_the_others() -> None:
    without = wire.Result("j", "a" * 64, "ok", power_reason="no permission")
    merged = rounds.merge([without, _round(500)])
    assert merged.power == _round(500).power and merged.power_reason == "no permission"
    assert rounds.merge([without, without]).power is None


def test_the_profiles_scope_is_for_a_sensor_that_cannot_know() -> None:
    measured = _round(0)
    assert measured.power is not None
    trace = measured.power.trace
    wired = dataclasses.replace(trace, info=dataclasses.replace(INFO, scope="as-wired"))
    as_wired = dataclasses.replace(measured, power=dataclasses.replace(measured.power, trace=wired))
    named = scoped(as_wired, "usb-input")
    assert named.power is not None and named.power.trace.info.scope == "usb-input" and named.warnings == ()
    kept = scoped(measured, "usb-input")
    assert kept.power == measured.power and "scope usb-input" in kept.warnings[0]
    assert scoped(as_wired, None) is as_wired and scoped(measured, "board") is measured
