"""The arithmetic and the words of `profile` and of the time by operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import report_case as case
from edgecompress_agent import wire

from edgecompress.cli.parser import parse
from edgecompress.records import Measurement
from edgecompress.report import energies, profiles, render, rows
from edgecompress.study import MeasureSpec

MS = 1_000_000


def op(name: str, kind: str, p50_ns: int, calls: int = 100, **facts: Any) -> wire.OpTime:
    return wire.OpTime(name, kind, calls, calls * p50_ns, p50_ns, **facts)


def profiled(*operators: wire.OpTime, method: str = "cut in turn", **changes: Any) -> wire.Result:
    difference = 0.0 if method.startswith("cut") else None
    profile = wire.OpProfile(method, "the tool", 1, 100, 2 * MS, operators, difference)
    return case.result("baseline", "tflite-fp32", operators=dataclasses.replace(profile, **changes))


RESULT = profiled(
    op("a", "CONV_2D", MS // 2, macs=10, parameter_bytes=4, activation_bytes=6, layer="conv1"),
    op("b", "ADD", MS // 4, macs=0),
    op("c", "CONV_2D", MS, macs=30),
    op("d", "MEAN", MS // 8, calls=200),
)


def test_times_are_those_of_one_inference_and_shares_of_the_sum() -> None:
    times = profiles.operator_times(RESULT, 2.5)
    assert times is not None
    assert [o["name"] for o in times["operators"]] == ["c", "a", "b", "d"]
    assert [o["ms"] for o in times["operators"]] == [1.0, 0.5, 0.25, 0.25]
    assert times["operators"][3]["calls_per_inference"] == 2
    assert times["sum_ms"] == 2.0
    assert times["sum_to_latency"] == pytest.approx(0.8)
    assert times["pass_to_latency"] == pytest.approx(0.8)
    assert sum(o["share"] for o in times["operators"]) == pytest.approx(1)
    assert [(t["type"], t["operators"], t["share"], t["macs"]) for t in times["by_type"]] == [
        ("CONV_2D", 2, 0.75, 40), ("ADD", 1, 0.125, 0), ("MEAN", 1, 0.125, None),
    ]  # fmt: skip


def test_the_sum_is_always_set_beside_the_whole() -> None:
    times = profiles.operator_times(RESULT, 2.0)
    assert times is not None
    near = " ".join(profiles.sentences(times))
    assert "sum to 2.000 ms, 1.00× the 2.000 ms" in near and "exactly what the whole file puts out" in near
    assert "read the shares" not in near
    far = profiles.sentences({**times, "sum_to_latency": 1.4})
    assert any("read the shares, not the milliseconds" in s for s in far)
    profiler = profiles.operator_times(profiled(op("a", "Conv", MS), method="profiler", resolution_ns=1000), 1.0)
    assert profiler is not None
    told = " ".join(profiles.sentences(profiler))
    assert "While it is profiled, an inference takes 2.000 ms" in told and "whole µs" in told


def test_the_table_has_the_top_ten_and_one_row_for_the_others() -> None:
    many = profiled(*(op(f"n{i}", "CONV_2D", MS * (i + 1), macs=i, parameter_bytes=i) for i in range(14)))
    times = profiles.operator_times(many, 100.0)
    assert times is not None
    table = profiles.operator_table(times, "key", "title")
    assert [row[0].text for row in table.rows] == [f"n{i}" for i in range(13, 3, -1)] + ["the 4 others"]
    assert table.rows[-1][2].text == "10.00" and table.rows[-1][4].text == "6"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_throughput_counts_the_inputs_of_a_batch() -> None:
    job = case.job("onnx-fp32", images=None, score=False, mean=(), std=())
    blocks = (wire.Block(0, (2 * MS, 2 * MS)), wire.Block(9 * MS, (4 * MS,)))
    result = case.result("baseline", "onnx-fp32", blocks=blocks)
    assert profiles.throughput_per_s(job, result) == pytest.approx(3 / 0.008)
    assert profiles.throughput_per_s(dataclasses.replace(job, batch=8), result) == pytest.approx(24 / 0.008)
    assert result.engine is not None
    inputs = (dataclasses.replace(result.engine.inputs[0], shape=(4, 3, 32, 32)),)
    fixed = dataclasses.replace(result, engine=dataclasses.replace(result.engine, inputs=inputs))
    assert profiles.throughput_per_s(job, fixed) == pytest.approx(12 / 0.008)
    with pytest.raises(ValueError, match="no timed inference"):
        profiles.throughput_per_s(job, dataclasses.replace(result, blocks=()))


def test_no_sensor_is_a_reason_and_no_zero() -> None:
    fields, _ = energies.of_result(case.result("baseline", "onnx-fp32"), None, None)
    assert fields["energy_mj"] is None
    assert profiles.energy_text(fields) == "not measured: no sensor on this device"


def test_the_energy_is_told_with_all_that_follows_from_it() -> None:
    result = case.result("baseline", "onnx-fp32", power=case.power(10.0, 5.0), sensor="ina219")
    fields, _ = energies.of_result(result, wire.PowerPlan(), 20.0)
    text = profiles.energy_text(fields)
    for part in (
        "mJ (",
        "per inference, board, ina219",
        "over idle",
        "mean ",
        "peak ",
        "idle ",
        "per Wh",
        "mJ·s",
        " h",
    ):
        assert part in text, text
    without, _ = energies.of_result(result, wire.PowerPlan(), None)
    assert "battery" not in profiles.energy_text(without)


def _document(result: wire.Result, *, asked: bool = True) -> dict[str, Any]:
    report = case.report_input()
    measured = report.measurements["baseline", "tflite-fp32", "local"]
    assert isinstance(measured, Measurement)
    changed = dataclasses.replace(
        measured, result=wire.to_json(result), job={**measured.job, "profile_ops": asked}
    )  # fmt: skip
    return rows.document(
        dataclasses.replace(report, measurements={**report.measurements, ("baseline", "tflite-fp32", "local"): changed})
    )


def _row(document: dict[str, Any]) -> dict[str, Any]:
    return next(r for r in document["rows"] if (r["recipe"], r["format"]) == ("baseline", "tflite-fp32"))


def test_the_report_shows_it_and_says_of_the_others_why_not() -> None:
    document = _document(RESULT)
    row = _row(document)
    assert row["operator_times_reason"] is None
    assert row["operator_times"]["latency_ms_p50"] == row["latency_ms_p50"]
    other = next(r for r in document["rows"] if r["recipe"] == "magnitude-80")
    assert (other["operator_times"], other["operator_times_reason"]) == (None, profiles.NOT_ASKED)
    for form in ("html", "md"):
        text = render(document, form)
        assert "Time by operator" in text and "CONV" in text and "the tool" in text and "conv1" in text


def test_a_reason_reaches_the_report() -> None:
    asked = case.result("baseline", "tflite-fp32", operators_reason="the graph cannot be cut: it keeps a state")
    document = _document(asked)
    assert _row(document)["operator_times_reason"] == "not available: the graph cannot be cut: it keeps a state"
    assert "it keeps a state" in render(document, "html")


def test_what_a_device_calls_its_operators_is_only_text() -> None:
    hostile = profiled(op("<script>alert(1)</script>\x1b[2J", "<b>", MS))
    document = _document(hostile)
    assert "<script>alert(1)" not in render(document, "html")
    assert "\x1b" not in render(document, "md")


@pytest.mark.parametrize("text", ["", "0", "1,1", "1,,2", "a", "-1", "1.5"])
def test_lists_of_numbers_that_are_none_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["profile", "m.onnx", f"--threads={text}"])
    assert stopped.value.code == 2
    assert "as in 1,2,4" in capsys.readouterr().err


def test_a_sweep_is_lists_and_only_the_first_round_of_a_study_times_operators() -> None:
    from edgecompress import rounds

    arguments = parse(["profile", "m.onnx", "--threads", "1,2,4", "--batch", "1,8", "--profile-ops"])
    assert (arguments.threads, arguments.batch, arguments.profile_ops) == ((1, 2, 4), (1, 8), True)
    measure = MeasureSpec(profile_ops=True)
    assert [rounds.share(measure, n).profile_ops for n in range(2)] == [True, False]
