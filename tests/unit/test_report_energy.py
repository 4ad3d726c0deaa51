"""Energy in the report: its fields, comparisons, trade-offs, and what is said where there is none."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from typing import Any

import pytest
import report_case as case
from edgecompress_agent import wire

from edgecompress import energy, report, stats
from edgecompress.report import plots, rows, terminal, view

pytestmark = pytest.mark.slow

Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return rows.document(case.energy_input())


@pytest.fixture(scope="module")
def by_name(document: dict[str, Any]) -> Rows:
    return by_name_of(document)


def by_name_of(document: dict[str, Any]) -> Rows:
    return {(r["recipe"], r["format"]): r for r in document["rows"]}


def with_power(recipe: str, form: str, trace: wire.Power | None, **changes: Any) -> dict[str, Any]:
    """The study's document when one variant has another power pass."""
    made = case.energy_input()
    answered = case.measurement(recipe, form, sensor="ina219", power=trace, **changes)
    return rows.document(
        dataclasses.replace(made, measurements={**made.measurements, (recipe, form, "local"): answered})
    )


def test_the_figures_are_those_of_the_trace(by_name: Rows) -> None:
    row = by_name["baseline", "onnx-fp32"]
    expected = 5.2 * case.MS["onnx-fp32"]  # W times ms is mJ
    assert row["energy_mj"] == pytest.approx(expected, rel=0.005)
    assert row["energy_mj_low"] < expected < row["energy_mj_high"]
    assert row["energy_dynamic_mj"] == pytest.approx((5.2 - case.IDLE_W) * case.MS["onnx-fp32"], rel=0.01)
    assert row["power_mean_w"] == pytest.approx(5.2, rel=0.005)
    assert row["power_peak_w"] > row["power_mean_w"]
    assert row["idle_w"] == pytest.approx((row["idle_before_w"] + row["idle_after_w"]) / 2)
    assert row["energy_delay_mjs"] == pytest.approx(row["energy_mj"] * case.MS["onnx-fp32"] / 1e3, rel=1e-3)
    assert row["inferences_per_wh"] == pytest.approx(3600e3 / row["energy_mj"])
    assert row["battery_hours"] == pytest.approx(37.0 / row["power_mean_w"]) and row["battery_reason"] is None
    assert (row["energy_windows"], len(row["energy_window_mj"]), row["energy_samples"]) == (5, 5, 720)
    budget = row["energy_budget_mj"]
    half = (budget["windows"] ** 2 + budget["edges"] ** 2) ** 0.5 + sum(
        budget[p] for p in ("gain", "offset", "step", "clock")
    )
    assert row["energy_mj_high"] - row["energy_mj"] == pytest.approx(half)
    assert (row["power_scope"], row["sensor"], row["energy_reason"]) == ("board", "ina219", None)


def test_what_the_sensor_costs_is_told() -> None:
    slow = case.power(1.2 * case.MS["onnx-fp32"], 5.0)
    row = by_name_of(with_power("baseline", "onnx-fp32", slow))["baseline", "onnx-fp32"]
    alone = statistics.median(ns for b in case.result("baseline", "onnx-fp32").blocks for ns in b.latencies_ns)
    assert row["sensor_cost"] == pytest.approx(1.2 * case.MS["onnx-fp32"] * 1e6 / alone, rel=1e-5)
    assert any("with the sensor on, an inference takes" in text for text in row["warnings"])
    plain = by_name_of(with_power("baseline", "onnx-fp32", case.power(case.MS["onnx-fp32"], 5.0)))
    assert not any("sensor on" in text for text in plain["baseline", "onnx-fp32"]["warnings"])
    assert plain["baseline", "onnx-fp32"]["sensor_cost"] == pytest.approx(1, abs=0.02)


def test_variants_are_compared_and_the_meters_gain_cancels(by_name: Rows) -> None:
    row = by_name["baseline", "tflite-int8"]
    against = row["vs_float"]
    assert against["energy_ratio"] == pytest.approx(by_name["baseline", "tflite-fp32"]["energy_mj"] / row["energy_mj"])
    assert against["energy_verdict"] == "less" and against["energy_reason"] is None
    width = against["energy_ratio_high"] / against["energy_ratio_low"] - 1
    assert width < 2 * case.METER.gain_error, "narrower than two independent gains would make it"
    assert by_name["magnitude-80", "onnx-fp32"]["vs_baseline"]["energy_verdict"] == stats.NO_DIFFERENCE


def test_the_front_and_the_best_count_energy(document: dict[str, Any]) -> None:
    scored = [r for r in document["rows"] if r["energy_mj"] is not None and r["top1"] is not None]
    for row in scored:
        beaten = any(
            o["top1"] >= row["top1"] and o["energy_mj"] <= row["energy_mj"]
            and (o["top1"] > row["top1"] or o["energy_mj"] < row["energy_mj"])
            for o in scored
        )  # fmt: skip
        assert row["pareto_energy"] is not beaten
    index = document["best"][0]["least_energy"]
    assert document["rows"][index]["vs_reference"]["energy_verdict"] == "less"


def test_every_format_shows_it_with_scope_sensor_and_interval(document: dict[str, Any]) -> None:
    row = document["rows"][0]
    interval = f"{row['energy_mj_low']:.3f} to {row['energy_mj_high']:.3f}"
    for form in ("html", "md"):
        written = report.render(document, form)
        for text in ("board", "INA219A at 0x40", interval, "Needs less", "least energy"):
            assert text in written, (form, text)
    line = next(iter(csv.DictReader(io.StringIO(report.render(document, "csv")))))
    assert float(line["energy_mj"]) == row["energy_mj"] and line["vs_float.energy_verdict"] == ""
    assert json.loads(report.render(document, "json")) == document
    assert [p.caption for p in plots.plots(document)][2:] == ["Accuracy and energy"]
    headings = [c.heading for c in view.make(document).results.columns]
    assert "Energy" in headings and "Needs less" in headings
    assert f"{row['energy_mj']:.3f}" in terminal.table(document, width=120)


def test_without_a_trace_nothing_is_claimed() -> None:
    document = rows.document(case.report_input())
    assert "Energy" not in [c.heading for c in view.make(document).results.columns]
    assert len(plots.plots(document)) == 2
    for row in document["rows"]:
        assert row["energy_mj"] is row["energy_dynamic_mj"] is row["idle_w"] is row["pareto_energy"] is None
        assert row["energy_reason"] == row["battery_reason"] == "not measured: no sensor on this device"
        for kind in ("vs_baseline", "vs_float", "vs_reference"):
            assert row[kind] is None or row[kind]["energy_verdict"] is row[kind]["energy_reason"] is None


def test_a_sensor_that_failed_and_an_invalid_trace_leave_the_rest() -> None:
    absent = with_power("baseline", "onnx-fp32", None, power_reason="no permission on /dev/i2c-1: group i2c")
    row = absent["rows"][0]
    assert row["status"] == "ok" and row["latency_ms_p50"] is not None
    assert row["energy_reason"] == "not measured: no permission on /dev/i2c-1: group i2c"
    assert row["energy_mj"] is None and absent["rows"][1]["energy_mj"] is not None
    assert absent["findings"][0]["facts"]["energy"] is None, "the others were measured"
    assert "is missing for 1 of 11 measured variants" in report.render(absent, "md")
    trace = case.power(0.8, 5.0)
    broken = dataclasses.replace(trace, trace=dataclasses.replace(trace.trace, overflows=3))
    row = with_power("baseline", "onnx-fp32", broken)["rows"][0]
    assert row["energy_mj"] is None and "out of the sensor's range" in row["energy_reason"]
    assert row["vs_float"] is None and row["pareto_energy"] is None
    assert row["sensor_info"]["description"] == case.METER.description


def test_scopes_are_kept_apart() -> None:
    other = case.power(0.8, 5.0, info=dataclasses.replace(case.METER, scope="module"))
    document = with_power("baseline", "onnx-fp32", other)
    compared = next(r for r in document["rows"] if (r["recipe"], r["format"]) == ("magnitude-80", "onnx-fp32"))
    assert compared["vs_baseline"]["energy_verdict"] is compared["vs_baseline"]["energy_ratio"] is None
    assert "different scopes" in compared["vs_baseline"]["energy_reason"]
    assert compared["vs_baseline"]["speed_verdict"] is not None
    assert document["rows"][0]["pareto_energy"] is True, "alone of its scope"
    assert "of scope module" in document["rows"][0]["battery_reason"]


def test_a_replayed_trace_is_labelled_wherever_it_is_shown() -> None:
    document = rows.document(case.energy_input(name="replay", replayed=True))
    assert {r["sensor"] for r in document["rows"] if r["energy_mj"]} == {"replay (replayed)"}
    for form in ("html", "md"):
        written = report.render(document, form)
        assert "replay (replayed)" in written and "recorded trace that was replayed" in written


def test_without_a_battery_there_are_no_hours() -> None:
    row = rows.document(case.energy_input(battery_wh=None))["rows"][0]
    assert row["battery_hours"] is None and "names no battery" in row["battery_reason"]
    wired = rows.document(case.energy_input(scope="as-wired"))["rows"][0]
    assert wired["battery_hours"] is None and "nobody said what the power includes" in wired["battery_reason"]


def test_the_report_agrees_with_the_module(by_name: Rows) -> None:
    trace = case.power(case.MS["tflite-int8"], case.WATTS["tflite-int8"], case.hash_of("baseline", "tflite-int8"))
    summary = energy.summarise(trace)
    assert summary.gross_j and by_name["baseline", "tflite-int8"]["energy_mj"] == 1e3 * summary.gross_j.value


def test_what_a_sensor_says_stays_text() -> None:
    hostile = "<script>alert(1)</script>"
    made = case.energy_input(description=hostile, chosen_because=hostile, notes=(hostile,))
    written = report.render(rows.document(made), "html")
    assert hostile not in written and written.count("<script") == 1
