"""The rows: what is computed, what is compared with what, what is warned of, and what a failed variant leaves."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_case as case
from edgecompress_agent import wire

from edgecompress import stats
from edgecompress.records import Artifact, Failure, Measurement
from edgecompress.report import fields, findings, render, rows

DOCS = Path(__file__).resolve().parents[2] / "docs" / "results-format.md"
Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return rows.document(case.report_input())


@pytest.fixture(scope="module")
def by_name(document: dict[str, Any]) -> Rows:
    return {(r["recipe"], r["format"]): r for r in document["rows"]}


def only(recipe: str, form: str, **changes: Any) -> dict[str, Any]:
    """The row of one variant when its measurement is another one."""
    report = case.report_input()
    measurements = {**report.measurements, (recipe, form, "local"): case.measurement(recipe, form, **changes)}
    made = rows.rows(dataclasses.replace(report, measurements=measurements))
    return next(r for r in made if (r["recipe"], r["format"]) == (recipe, form))


def test_there_is_a_row_for_every_variant_with_every_field_in_order(document: dict[str, Any]) -> None:
    assert [(r["recipe"], r["format"]) for r in document["rows"]] == [
        (r, f) for r in case.RECIPES for f in case.FORMATS
    ]
    for row in document["rows"]:
        assert list(row) == [f.name for f in fields.ROW]
        for field in fields.ROW:
            if field.unit == "comparison" and row[field.name]:
                assert list(row[field.name]) == [f.name for f in fields.COMPARISON]
    assert list(document) == [f.name for f in fields.DOCUMENT]


def test_the_figures_are_those_of_the_records(by_name: Rows) -> None:
    row = by_name["magnitude-80", "onnx-fp32"]
    raw = [ns / 1e6 for b in case.result("magnitude-80", "onnx-fp32").blocks for ns in b.latencies_ns]
    assert row["latency_ms_p50"] == sorted(raw)[len(raw) // 2 - 1]
    assert (row["latency_ms_min"], row["latency_ms_max"]) == (min(raw), max(raw))
    assert row["latency_samples"] == len(raw) == 600
    assert row["latency_ms_low"] <= row["latency_ms_p50"] <= row["latency_ms_high"] <= row["latency_ms_p99"]
    string = case.correct("magnitude-80", "onnx-fp32")
    assert row["top1"] == string.count("1") / case.IMAGES
    assert (row["top1_low"], row["top1_high"]) == stats.wilson(string.count("1"), case.IMAGES)
    assert (row["zero_fraction"], row["file_bytes"]) == (pytest.approx(0.8, abs=1e-3), 1_092_222)
    assert row["train_seconds"] == 88.0
    assert row["steps"] == case.RECIPES["magnitude-80"]


def test_a_baseline_with_weights_from_a_file_says_so_and_claims_no_training(by_name: Rows) -> None:
    row = by_name["baseline", "onnx-fp32"]
    assert row["weights"] == "resnet20-cifar10.safetensors"
    assert row["train_seconds"] is None
    assert "resnet20-cifar10.safetensors" in row["train_reason"]


def test_energy_is_never_zero_but_not_measured_with_its_reason(document: dict[str, Any]) -> None:
    for row in document["rows"]:
        assert row["energy_mj"] is row["energy_mj_low"] is row["energy_mj_high"] is row["idle_w"] is None
        assert row["energy_reason"] == "not measured: no sensor on this device"


def test_a_failed_variant_is_a_row_with_its_reason_and_what_is_known_of_it(by_name: Rows) -> None:
    row = by_name["student", "onnx-int8"]
    assert row["status"] == "failed"
    assert "SIGILL" in row["reason"]
    assert row["reason"].startswith("measurement: ")
    assert row["file_bytes"] > 0
    assert row["params"] == 68_458
    assert row["latency_ms_p50"] is row["top1"] is row["pareto_latency"] is None
    assert "SIGILL" in row["vs_baseline"]["reason"]
    assert row["vs_baseline"]["size_ratio"] == pytest.approx(3.7, rel=1e-3)


@pytest.mark.parametrize("stage", ["models", "artifacts", "measurements"])
def test_a_failure_of_any_stage_becomes_rows_and_leaves_the_others(stage: str) -> None:
    report = case.report_input()
    failed = {
        "models": {"student": Failure("model", "loss became NaN in epoch 3")},
        "artifacts": {("student", "tflite-int8", None): Failure("artifact", "layer conv1 is still float")},
        "measurements": {("student", "tflite-int8", "local"): Failure("measurement", "deadline of 1800 s")},
    }[stage]
    made = rows.rows(dataclasses.replace(report, **{stage: {**getattr(report, stage), **failed}}))
    reason = next(iter(failed.values())).reason
    row = next(r for r in made if (r["recipe"], r["format"]) == ("student", "tflite-int8"))
    assert (row["status"], reason in row["reason"], reason in row["accuracy_reason"]) == ("failed", True, True)
    assert sum(r["status"] == "ok" for r in made) == (8 if stage == "models" else 10)


def test_what_was_not_reached_yet_is_not_called_failed() -> None:
    report = case.report_input()
    made = rows.rows(dataclasses.replace(report, measurements=dict.fromkeys(report.measurements)))
    assert {r["status"] for r in made} == {"not-measured"}
    assert {r["pareto_size"] for r in made} == {None}


@pytest.mark.parametrize(
    "broken",
    [
        {"protocol": 99},
        {"blocks": []},
        {"blocks": [{"start_ns": 0, "latencies_ns": [0]}] * 2},
        {"blocks": [{"start_ns": 0, "latencies_ns": []}] * 2},
        {"blocks": "many"},
        {"status": "failed", "reason": "deadline"},
    ],
)
def test_an_answer_that_cannot_be_is_a_failed_row_and_no_crash(broken: dict[str, Any]) -> None:
    report, good = case.report_input(), case.measurement("student", "tflite-int8")
    bad = Measurement("local", good.job, {**good.result, **broken}, good.accuracy, 1.0)
    made = rows.rows(
        dataclasses.replace(report, measurements={**report.measurements, ("student", "tflite-int8", "local"): bad})
    )
    row = next(r for r in made if (r["recipe"], r["format"]) == ("student", "tflite-int8"))
    assert row["status"] == "failed"
    assert row["reason"].startswith("measurement: ")
    assert row["latency_ms_p50"] is row["top1"] is None


def test_recipes_are_compared_with_the_baseline_of_the_same_format(by_name: Rows) -> None:
    row, base = by_name["student", "tflite-fp32"], by_name["baseline", "tflite-fp32"]
    against = row["vs_baseline"]
    assert against["with"] == "baseline / tflite-fp32"
    assert against["speedup"] == pytest.approx(base["latency_ms_p50"] / row["latency_ms_p50"])
    assert against["speedup_low"] < 2.3 < against["speedup_high"] + 0.05
    assert against["speed_verdict"] == "faster"
    assert against["accuracy_difference"] == pytest.approx(row["top1"] - base["top1"])
    test = stats.mcnemar(case.correct("baseline", "tflite-fp32"), case.correct("student", "tflite-fp32"))
    assert (against["accuracy_p"], against["accuracy_lost"]) == (test.p, test.lost)
    assert against["accuracy_verdict"] == "lower"
    assert base["vs_baseline"] is None


def test_verdicts_use_p_values_corrected_for_their_number(by_name: Rows) -> None:
    """magnitude-80 in int8 would be `lower` on its own p value; among all comparisons of the table it is not shown."""
    against = by_name["magnitude-80", "onnx-int8"]["vs_baseline"]
    assert against["accuracy_p"] < 0.05 < against["accuracy_p_adjusted"]
    assert against["accuracy_verdict"] == "no measurable difference"


def test_sparsity_alone_is_no_measurable_speed_and_a_note_says_why(by_name: Rows) -> None:
    row = by_name["magnitude-80", "tflite-fp32"]
    assert row["vs_baseline"]["speed_verdict"] == "no measurable difference"
    assert any("80 % of the weights are exactly zero" in n and "give no speed" in n for n in row["notes"])
    assert not any("exactly zero" in n for n in by_name["baseline", "tflite-fp32"]["notes"])


def test_what_an_artifact_says_against_misreading_is_among_the_notes() -> None:
    report = case.report_input()
    key = next(k for k in report.artifacts if k[:2] == ("baseline", "tflite-int8"))
    made = report.artifacts[key]
    assert isinstance(made, Artifact)
    said = "simulated: 4-bit values in an 8-bit file"
    artifacts = {**report.artifacts, key: dataclasses.replace(made, notes=(said,))}
    document = rows.document(dataclasses.replace(report, artifacts=artifacts))
    (row,) = [r for r in document["rows"] if (r["recipe"], r["format"]) == key[:2]]
    assert row["notes"] == [said] and said not in row["warnings"]


def test_slow_int8_comes_with_reasons_that_are_facts_of_this_file_and_device(by_name: Rows) -> None:
    (note,) = by_name["baseline", "onnx-int8"]["notes"]
    assert by_name["baseline", "onnx-int8"]["vs_float"]["speed_verdict"] == "slower"
    assert "no fast kernels on x86" in note
    assert "143 operators that convert" in note
    assert by_name["baseline", "tflite-int8"]["vs_float"]["speed_verdict"] == "faster"
    assert by_name["baseline", "tflite-int8"]["notes"] == []


@pytest.mark.parametrize(
    ("machine", "cpu", "activations", "expected"),
    [
        ("aarch64", "Cortex-A72", "int8", "no int8 dot-product"),
        ("aarch64", "Cortex-A76", "uint8", "made for int8"),
        ("x86_64", "Xeon", "uint8", "no cause is visible"),
    ],
)
def test_other_devices_have_other_reasons(machine: str, cpu: str, activations: str, expected: str) -> None:
    artifact = dataclasses.replace(
        case.artifact("baseline", "onnx-int8"), activation_type=activations, operators={"Conv": 1}
    )
    first = case.conditions("before", 0, machine=machine, cpu_model=cpu)
    note = findings.why_int8_is_not_faster(artifact, case.result("baseline", "onnx-int8"), 20.0, first)
    assert expected in note
    assert "x86" not in note


@pytest.mark.parametrize(
    ("machine", "cpu", "instructions", "expected"),
    [
        ("x86_64", "Xeon", ("avx2",), "no VNNI instructions:"),
        ("x86_64", "Atom", (), "no VNNI instructions, nor AVX2:"),
        ("x86_64", "Xeon", ("avx512_vnni", "avx2"), "no cause is visible"),
        ("aarch64", "a core without a name", (), "no int8 dot-product instructions (asimddp)"),
        ("aarch64", "Cortex-A72", ("asimddp",), "no cause is visible"),
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "uint8-reduced"])
def test_what_the_cpu_lacks_for_int8_is_by_what_it_says_of_itself(
    machine: str, cpu: str, instructions: tuple[str, ...], expected: str, kind: str
) -> None:
    first = case.conditions("before", 0, machine=machine, cpu_model=cpu, int8_instructions=instructions)
    activations = kind if machine == "x86_64" else "int8"
    artifact = dataclasses.replace(
        case.artifact("baseline", "onnx-int8"), activation_type=activations, operators={"Conv": 1}
    )
    assert expected in findings.why_int8_is_not_faster(artifact, case.result("baseline", "onnx-int8"), 20.0, first)


def test_reduced_uint8_is_uint8_on_arm_too() -> None:
    first = case.conditions("before", 0, machine="aarch64", cpu_model="Cortex-A76", int8_instructions=("asimddp",))
    artifact = dataclasses.replace(case.artifact("baseline", "onnx-int8"), activation_type="uint8-reduced")
    note = findings.why_int8_is_not_faster(artifact, case.result("baseline", "onnx-int8"), 20.0, first)
    assert "activations are uint8-reduced, while ONNX Runtime's ARM kernels are made for int8" in note


def test_without_a_baseline_recipe_the_comparison_says_why_it_is_missing() -> None:
    report = case.report_input()
    study = {**report.study, "recipes": {"student": case.RECIPES["student"]}}
    document = rows.document(dataclasses.replace(report, study=study))
    assert all("no recipe without steps" in r["vs_baseline"]["reason"] for r in document["rows"])
    assert document["rows"][3]["vs_float"]["speed_verdict"] == "faster"
    assert document["best"][0]["fastest"] is None
    assert "no recipe without steps" in document["best"][0]["reason"]


def test_accuracies_on_other_images_are_not_compared() -> None:
    report = case.report_input()
    measured = case.measurement("student", "tflite-fp32")
    assert measured.accuracy
    fewer = dataclasses.replace(
        measured, accuracy=dataclasses.replace(measured.accuracy, images=500, correct=measured.accuracy.correct[:500])
    )
    made = rows.rows(
        dataclasses.replace(report, measurements={**report.measurements, ("student", "tflite-fp32", "local"): fewer})
    )
    row = next(r for r in made if (r["recipe"], r["format"]) == ("student", "tflite-fp32"))
    assert row["vs_baseline"]["accuracy_p"] is row["vs_baseline"]["accuracy_verdict"] is None
    assert "other images" in row["vs_baseline"]["reason"]
    assert row["vs_baseline"]["speed_verdict"] == "faster"
    assert any("500 images only" in w for w in row["warnings"])


@pytest.mark.parametrize(
    ("flag", "cost"),
    [("pareto_latency", "latency_ms_p50"), ("pareto_size", "file_bytes"), ("pareto_packed", "packed_bytes")],
)
def test_the_front_is_exactly_the_rows_that_no_other_beats(document: dict[str, Any], flag: str, cost: str) -> None:
    made = [r for r in document["rows"] if r["top1"] is not None]
    for row in made:
        better = [
            o
            for o in made
            if o["top1"] >= row["top1"] and o[cost] <= row[cost] and (o["top1"], o[cost]) != (row["top1"], row[cost])
        ]
        assert row[flag] is (not better)
    assert any(r[flag] for r in made)


def test_the_best_variant_lost_no_measurable_accuracy(document: dict[str, Any]) -> None:
    (best,) = document["best"]
    chosen = document["rows"][best["fastest"]]
    assert chosen["vs_reference"]["accuracy_verdict"] == "no measurable difference"
    rivals = [r for r in document["rows"] if r["latency_ms_p50"] and r["latency_ms_p50"] < chosen["latency_ms_p50"]]
    assert rivals
    assert all(r["vs_reference"]["accuracy_verdict"] == "lower" for r in rivals)


def test_a_busy_device_is_warned_of_in_every_row_and_once_for_the_device(document: dict[str, Any]) -> None:
    (found,) = document["findings"]
    assert any("load average 1.6" in w for w in found["warnings"])
    assert found["facts"]["cpu_model"].startswith("Intel")
    assert found["facts"]["engines"] == ["litert 2.3.0", "onnxruntime 1.32.0"]


CALM: dict[str, Any] = {"load_1m": 0.1, "governors": ("performance",) * 4}
TROUBLES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"governors": ("ondemand",)}, {"governors": ("ondemand",)}, "governor ondemand"),
    ({}, {"cpu_mhz": (1500.0, 1500.0)}, "clock changed by -46 %"),
    ({}, {"throttled": "0x50004"}, "throttled during the measurement: throttled"),
    ({"throttled": "0x50000"}, {"throttled": "0x50001"}, "under-voltage"),
    ({"throttle_counts": {"core0": 3}}, {"throttle_counts": {"core0": 10}}, "7 thermal throttle events"),
    ({}, {"temperatures_c": {"cpu-thermal": 84.2}}, "reached 84 °C"),
    (
        {"temperatures_c": {"gpu": 50.0, "cpu": 44.0}},
        {"temperatures_c": {"gpu": 51.0, "cpu": 58.6}},
        "cpu from 44 to 59 °C",
    ),
    ({"swap_used_bytes": 0}, {"swap_used_bytes": 90_000_000}, "swapped out 90 MB"),
    ({"power_mode": "MAXN"}, {"power_mode": "10W"}, "power mode changed from MAXN to 10W"),
    ({"load_1m": 3.0}, {}, "was busy: load average 3"),
    ({"boot_id": "a"}, {"boot_id": "b"}, "was restarted between two rounds"),
]


@pytest.mark.parametrize(("before", "after", "expected"), TROUBLES)
def test_conditions_that_spoil_a_measurement_are_warned_of(
    before: dict[str, Any], after: dict[str, Any], expected: str
) -> None:
    calm = case.conditions("before", 0, **CALM)
    states = (dataclasses.replace(calm, **before), dataclasses.replace(calm, **before, phase="warm"),
              dataclasses.replace(calm, **{**before, **after}, phase="after"))  # fmt: skip
    assert any(expected in w for w in findings.condition_warnings(states))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"cpu_mhz": (600.0, 1200.0)}, "the fastest CPU ran at 1500 MHz here, 1200 there"),
        ({"temperatures_c": {"cpu": 66.0}}, "the device had 45 °C here, 66 °C there"),
        ({"cpu_mhz": (1450.0,), "temperatures_c": {"cpu": 54.0}}, ""),
        ({"cpu_mhz": None, "temperatures_c": None}, ""),
    ],
)
def test_clocks_and_temperatures_of_two_variants_are_compared(there: dict[str, Any], expected: str) -> None:
    warm = case.conditions("warm", 0, **CALM, cpu_mhz=(1500.0, 1000.0), temperatures_c={"cpu": 45.0})
    own, other = (
        case.result("baseline", "onnx-fp32", conditions=(dataclasses.replace(warm, phase="before"), c))
        for c in (warm, dataclasses.replace(warm, **there))
    )
    found = findings.difference_warnings(own, other, own.conditions[0], other.conditions[0])
    assert [expected in w for w in found] == ([True] if expected else [])


def test_a_calm_device_and_old_throttle_bits_give_no_warning() -> None:
    calm = case.conditions(
        "before", 0, **CALM, throttled="0x50000", temperatures_c={"cpu": 45.0}, throttle_counts={"core0": 3}
    )
    assert findings.condition_warnings((calm, calm, calm)) == []


def test_few_samples_few_blocks_and_unsteady_blocks_are_warned_of() -> None:
    def one_warning(blocks: list[list[float]]) -> str:
        return " | ".join(findings.latency_warnings(blocks))

    assert "only 20 timed inferences" in one_warning([[1.0] * 10] * 2)
    assert "only 2 blocks" in one_warning([[1.0] * 1000] * 2)
    assert "20 % apart (1 to 1.2 ms)" in one_warning([[1.0] * 1000] * 4 + [[1.2] * 1000])
    assert "slowest 5 of 500" in one_warning([[1.0] * 100] * 5)
    assert findings.latency_warnings([[1.0] * 1000] * 5) == []


def test_another_engine_version_or_kernel_is_warned_of() -> None:
    engine = case.result("student", "onnx-fp32").engine
    assert engine
    row = only(
        "student", "onnx-fp32", engine=dataclasses.replace(engine, version="1.19.2"),
        conditions=(case.conditions("before", 0, kernel="5.10"),) * 3,
    )  # fmt: skip
    assert (
        "against baseline / onnx-fp32: compared across engine versions: onnxruntime 1.19.2 here, onnxruntime 1.32.0 there"
        in row["warnings"]
    )
    assert any("kernel was 5.10 here, 6.1.0-28-amd64 there" in w for w in row["warnings"])


def test_warnings_of_agent_and_export_arrive() -> None:
    assert "the clock stepped" in only("baseline", "onnx-fp32", warnings=("the clock stepped",))["warnings"]


def test_int8_files_are_found_by_the_activation_type_of_the_devices_profile() -> None:
    report = case.report_input()
    other = dataclasses.replace(case.artifact("baseline", "onnx-int8"), activation_type="uint8", file_bytes=333_890)
    made = rows.rows(
        dataclasses.replace(
            report,
            artifacts={**report.artifacts, ("baseline", "onnx-int8", "uint8"): other},
            devices={**report.devices, "pc": {**report.devices["local"], "name": "pc", "int8_activations": "uint8"}},
            measurements={
                **report.measurements,
                ("baseline", "onnx-int8", "pc"): case.measurement("baseline", "onnx-int8"),
            },
        )
    )
    sizes = {
        r["device"]: (r["file_bytes"], r["activation_type"])
        for r in made
        if (r["recipe"], r["format"]) == ("baseline", "onnx-int8")
    }
    assert sizes == {"local": (334_119, "int8"), "pc": (333_890, "uint8")}
    pc = next(r for r in made if r["device"] == "pc" and r["format"] == "onnx-int8" and r["recipe"] == "baseline")
    assert "not measured yet" in pc["vs_float"]["reason"], "devices are not compared with one another"


def test_how_a_device_is_reached_is_not_in_the_report() -> None:
    report = case.report_input()
    profile = {**report.devices["local"], "transport": "ssh", "host": "10.9.8.7", "user": "erika", "port": 2222,
               "identity_file": "/home/erika/.ssh/id", "known_hosts": "/home/erika/k", "ssh_config": "/home/erika/c",
               "serial_port": "/dev/serial/by-id/erika", "password_env": "PASSWORD_OF_erika"}  # fmt: skip
    text = json.dumps(rows.document(dataclasses.replace(report, devices={"local": profile})))
    assert "10.9.8.7" not in text
    assert "erika" not in text


def test_numbers_that_json_cannot_write_become_null() -> None:
    report = case.report_input()
    parity = dataclasses.replace(case.artifact("baseline", "onnx-fp32").parity, max_abs_diff=float("inf"))
    broken = dataclasses.replace(case.artifact("baseline", "onnx-fp32"), parity=parity)
    document = rows.document(
        dataclasses.replace(report, artifacts={**report.artifacts, ("baseline", "onnx-fp32", None): broken})
    )
    assert document["rows"][0]["parity"]["max_abs_diff"] is None
    json.dumps(document, allow_nan=False)


def test_the_same_records_give_the_same_document() -> None:
    assert rows.document(case.report_input()) == rows.document(case.report_input())


def test_latency_summary_is_the_latency_of_a_row(by_name: Rows) -> None:
    summary = rows.latency_summary(wire.to_json(case.result("baseline", "onnx-fp32")))
    row = by_name["baseline", "onnx-fp32"]
    assert summary["latency_ms_p50"] == row["latency_ms_p50"]
    assert set(summary) <= set(row)


@pytest.mark.parametrize("table", [fields.ROW, fields.COMPARISON, fields.DOCUMENT])
def test_the_documentation_of_the_format_is_that_of_the_code(table: tuple[fields.Field, ...]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    lines = [f"| `{f.name}` | {f.unit} | {f.meaning} |" for f in table]
    assert "\n".join(lines) in text
    assert re.search(rf"schema_version.*\b{fields.SCHEMA_VERSION}\b", text)


def test_the_board_of_a_pool_is_named_and_two_boards_are_not_compared_without_a_warning() -> None:
    report = case.report_input()
    boards = {"baseline": "pi-a", "student": "pi-b"}
    measured = {
        key: dataclasses.replace(m, member=boards.get(key[0], "pi-a")) if isinstance(m, Measurement) else m
        for key, m in report.measurements.items()
    }
    profile = {"name": "pi-a", "host": "10.0.0.7", "user": "pi", "known_hosts": "/home/me/known", "sensor": "none"}
    pool = {**report.devices["local"], "pool": [profile]}
    document = rows.document(dataclasses.replace(report, measurements=measured, devices={"local": pool}))
    made = {(r["recipe"], r["format"]): r for r in document["rows"]}
    other = next(name for name in case.RECIPES if boards.get(name) == "pi-b")
    said = "compared across boards: pi-b here, pi-a there, and how much they differ is in no interval"
    assert any(said in text for text in made[other, "onnx-fp32"]["warnings"])
    assert not any("across boards" in text for text in made["baseline", "onnx-int8"]["warnings"])
    assert "10.0.0.7" not in json.dumps(document) and "/home/me" not in json.dumps(document)
    assert "local (pi-b)" in render(document, "html") and "local (pi-b)" in render(document, "md").replace("\\", "")
    (found,) = document["findings"]
    assert any(text.startswith("pi-b (") for text in found["facts"]["members"])
