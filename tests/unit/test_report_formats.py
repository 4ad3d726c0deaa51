"""The written reports: complete, harmless whatever a device said, and the same figures in every format."""

from __future__ import annotations

import ast
import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_case as case
from edgecompress_agent import wire
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import report
from edgecompress.errors import UserError
from edgecompress.records import Failure, to_json
from edgecompress.report import as_csv, as_md, fields, plots, rows, terminal, view, wording
from edgecompress.rundir import RunDir

pytestmark = pytest.mark.slow

HOSTILE = (
    '=HYPERLINK("http://evil.example","x")',
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "| a | b |\n# Heading\n- item",
    "[click](javascript:alert(1)) ![i](http://evil.example/i.png) `code` **bold**",
    "\x1b[2J\x1b]0;owned\x07 gone \u202e reversed",
    "]]></svg><script>alert(2)</script>",
    "{{ 7*7 }} {% raw %}",
    "[red]markup[/red]",
    "half a character: \ud800",
)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return rows.document(case.report_input())


@pytest.fixture(scope="module")
def html(document: dict[str, Any]) -> str:
    return report.render(document, "html")


@functools.cache
def hostile_document(text: str) -> dict[str, Any]:
    """Everything that comes from outside says `text`: the agent's answers, failures, notes, names of data and devices."""
    made = case.report_input()
    first = case.conditions(
        "before", 0, cpu_model=text, governors=(text,), temperatures_c={text: 99.0}, kernel=text, os=text
    )
    engine = case.result("baseline", "onnx-fp32").engine
    assert engine
    answered = case.measurement(
        "baseline", "onnx-fp32", warnings=(text,), conditions=(first, first, first),
        engine=dataclasses.replace(engine, version=text, package=text, providers=(text,)),
    )  # fmt: skip
    measurements = {**made.measurements, ("baseline", "onnx-fp32", "local"): answered}
    measurements["student", "onnx-int8", "local"] = Failure("measurement", text)
    artifact = dataclasses.replace(case.artifact("baseline", "onnx-fp32"), operators={text: 3}, warnings=(text,))
    return rows.document(
        dataclasses.replace(
            made,
            measurements=measurements,
            artifacts={**made.artifacts, ("baseline", "onnx-fp32", None): artifact},
            data={**made.data, "name": text},
            devices={"local": {**made.devices["local"], "board": text}},
            command=f"edgecompress run {text}",
        )
    )


class Page(HTMLParser):
    """Counts what a page is made of and checks that its tags close."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_formats_are_the_files_of_the_package() -> None:
    assert report.format_names() == ["csv", "html", "json", "md"]


def test_an_unknown_format_names_the_choices(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"unknown report format 'htm'[\s\S]*'html'"):
        report.render(document, "htm")


def test_the_formats_do_no_arithmetic() -> None:
    folder = Path(report.__file__).parent
    for path in [*folder.glob("as_*.py"), folder / "terminal.py"]:
        operators = {
            type(n.op) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.BinOp, ast.AugAssign))
        }
        assert operators <= {ast.Add, ast.BitOr}, f"{path.name} computes"


def test_json_is_the_whole_document(document: dict[str, Any]) -> None:
    assert json.loads(report.render(document, "json")) == document


def test_a_report_made_again_from_results_json_is_the_same(document: dict[str, Any], html: str) -> None:
    assert report.render(json.loads(report.render(document, "json")), "html") == html


def test_csv_holds_every_row_and_its_numbers_stay_numbers(document: dict[str, Any]) -> None:
    read = list(csv.DictReader(io.StringIO(report.render(document, "csv"))))
    assert len(read) == len(document["rows"])
    for line, row in zip(read, document["rows"], strict=True):
        assert line["recipe"] == row["recipe"]
        assert line["latency_ms_p50"] == ("" if row["latency_ms_p50"] is None else repr(row["latency_ms_p50"]))
        if row["vs_baseline"] and row["vs_baseline"]["accuracy_difference"] is not None:
            assert float(line["vs_baseline.accuracy_difference"]) == row["vs_baseline"]["accuracy_difference"]
    named = {f.name for f in fields.ROW if f.unit != "comparison"}
    assert named <= set(read[0])


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_reader_finds_figures_verdicts_reasons_and_method(document: dict[str, Any], form: str) -> None:
    written = report.render(document, form)
    text = " ".join("".join(parsed(written).text).split()) if form == "html" else written.replace("\\", "")
    for expected in (
        "resnet20-cifar10", "weights from the file resnet20-cifar10.safetensors", "not measured: no sensor on this device",
        "no measurable difference", "killed by SIGILL", "Fastest and smallest without a measurable loss of accuracy",
        "no fast kernels on x86", "give no speed", "load average 1.6", "exact McNemar test", "bootstrap over blocks",
        "2000 images of the test part", "magnitude (sparsity 0.8", "Intel(R) Xeon(R) Gold 6342", "onnxruntime 1.32.0",
    ):  # fmt: skip
        assert expected in text, expected
    row = document["rows"][0]
    assert f"{row['latency_ms_p50']:.3f}" in text
    assert f"{100 * row['top1']:.2f} %" in text


def test_markdown_tables_have_as_many_cells_as_columns(document: dict[str, Any]) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", report.render(document, "md"), flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_hostile_text_stays_text_in_html(html: str) -> None:
    good, bad = parsed(html), parsed(report.render(hostile_document(" ".join(HOSTILE)), "html"))
    assert bad.tags.count("script") == good.tags.count("script") == 1
    assert "img" not in bad.tags
    assert not [a for a in bad.attributes if a[1].startswith("on") or "javascript:" in a[2]]
    shown = " ".join("".join(bad.text).split())
    for text in HOSTILE[:-1]:
        assert wording.plain(text) in shown, "it is shown, not dropped"
    assert "half a character: ?" in shown


@pytest.mark.parametrize("form", ["csv", "html", "json", "md"])
def test_whatever_a_device_says_can_be_written_as_utf8(form: str) -> None:
    report.render(hostile_document(" ".join(HOSTILE)), form).encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_markdown(text: str) -> None:
    written = report.render(hostile_document(text), "md")
    assert "<script" not in written
    assert "<img" not in written
    assert not re.search(r"(?<!\\)\]\(", written)
    assert "://" not in written.replace("\\://", "")
    headings = [line for line in written.splitlines() if line.startswith("#")]
    assert not any("Heading" in h for h in headings)
    assert not any(ord(c) < 32 and c != "\n" for c in written)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_csv(text: str) -> None:
    for line in csv.reader(io.StringIO(report.render(hostile_document(text), "csv"))):
        for cell in line:
            number = re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", cell)
            assert number or not cell.startswith(as_csv.FORMULA), cell


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_cannot_move_the_terminals_cursor(text: str) -> None:
    written = terminal.table(hostile_document(text), width=200)
    assert not any(ord(c) < 32 and c != "\n" for c in written)
    assert "\u202e" not in written
    assert "[red]" in written or "[red]" not in text


@given(st.text(max_size=60))
def test_escaped_markdown_has_no_markup_and_loses_nothing(text: str) -> None:
    escaped = as_md.escape(wording.plain(text))
    assert not re.search(r"(?<!\\)(\\\\)*[`*\[\]|~$<>]", escaped)
    back = re.sub(r"\\(.)", r"\1", escaped)
    assert back.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == wording.plain(text)


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    page = parsed(html)
    assert not [t for t in page.tags if t in ("link", "img", "iframe", "object", "embed", "base")]
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith("#"), (tag, name, value)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "only names of XML vocabularies"
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_id_is_unique_and_every_link_has_its_target(html: str) -> None:
    page = parsed(html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    assert targets <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_plots_show_every_measured_variant_as_text_with_the_pages_colours(document: dict[str, Any]) -> None:
    drawn = plots.plots(document)
    assert [p.caption for p in drawn] == ["Accuracy and latency", "Accuracy and size"]
    measured = [r for r in document["rows"] if r["top1"] is not None]
    for plot in drawn:
        root = ElementTree.fromstring(plot.svg)
        texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
        for recipe in case.RECIPES:
            assert 1 <= texts.count(recipe) <= sum(r["recipe"] == recipe for r in measured)
        assert set(case.FORMATS) <= set(texts)
        assert len(list(root.iter("{http://www.w3.org/2000/svg}title"))) == len(measured)
        colours = {c.lower() for c in re.findall(r"#[0-9a-fA-F]{6}\b", plot.svg)}
        assert not colours, "a colour that does not follow the page's light or dark"
        assert set(re.findall(r"var\(--([a-z0-9-]+)\)", plot.svg)) <= set(plots.VARIABLES.values())


def test_labels_of_a_plot_do_not_cover_one_another(document: dict[str, Any]) -> None:
    """Boxes of the recipes' names from their places in the SVG, at the size the font has there."""
    for plot in plots.plots(document):
        boxes = []
        for element in ElementTree.fromstring(plot.svg).iter("{http://www.w3.org/2000/svg}text"):
            if element.text in case.RECIPES:
                place = re.search(r"translate\(([\d.]+) ([\d.]+)\)", element.get("transform") or "")
                x, y = map(float, place.groups() if place else (element.get("x", "0"), element.get("y", "0")))
                width = 5.0 * len(element.text)
                anchor = re.search(r"text-anchor: (\w+)", element.get("style") or "")
                left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor.group(1) if anchor else "start"]
                boxes.append((left, y - 8, left + width, y))
        assert len(boxes) >= 6
        overlaps = [
            (a, b)
            for i, a in enumerate(boxes)
            for b in boxes[i + 1 :]
            if plots._overlap(a, b) > 0.25 * (a[2] - a[0]) * 8
        ]
        assert not overlaps


def test_one_point_alone_and_none_at_all_can_be_drawn() -> None:
    made = case.report_input()
    one = {k: v for k, v in made.measurements.items() if k == ("baseline", "onnx-fp32", "local")}
    assert len(plots.plots(rows.document(dataclasses.replace(made, measurements=one)))) == 2
    empty = rows.document(dataclasses.replace(made, measurements={}))
    assert plots.plots(empty) == []
    assert "not measured yet" in report.render(empty, "html")


def test_two_devices_have_a_column_two_plots_each_and_are_named(document: dict[str, Any]) -> None:
    made = case.report_input()
    both = dataclasses.replace(
        made,
        devices={**made.devices, "pi": {**made.devices["local"], "name": "pi"}},
        measurements={
            **made.measurements,
            **{(r, f, "pi"): case.measurement(r, f) for r in case.RECIPES for f in case.FORMATS},
        },
    )
    document = rows.document(both)
    assert [p.caption for p in plots.plots(document)][2:] == ["Accuracy and latency on pi", "Accuracy and size on pi"]
    assert "Device" in [c.heading for c in view.make(document).results.columns]
    html = report.render(document, "html")
    assert "student / tflite-int8 on pi" in html
    ids = [value for _, name, value in parsed(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_terminal_shows_the_table_the_failures_and_the_summary(document: dict[str, Any]) -> None:
    written = terminal.table(document, width=170)
    lines = written.splitlines()
    assert max(len(line) for line in lines) <= 170
    assert sum(line.startswith("magnitude-80 ") for line in lines) == 4
    assert any("student / onnx-int8: measurement: the worker was killed by SIGILL" in line for line in lines)
    assert "Energy: not measured: no sensor on this device." in written
    assert "\x1b[" in terminal.table(document, width=170, color=True)


@pytest.mark.parametrize("width", [100, 120, 240])
@pytest.mark.parametrize("made", [case.report_input, case.energy_input])
def test_names_are_whole_in_the_terminal_and_what_is_left_out_is_said(width: int, made: Callable[[], Any]) -> None:
    document = rows.document(made())
    written = terminal.table(document, width=width)
    assert max(len(line) for line in written.splitlines()) <= width
    assert "…" not in written.partition("Not shown")[0]
    for row in document["rows"]:
        assert any(line.split()[:2] == [row["recipe"], row["format"]] for line in written.splitlines())
    headings = [c.heading for c in view.make(document).results.columns]
    left_out = re.findall(r"Not shown at this width: (.*)\. The report", " ".join(written.split()))
    missing = left_out[0].split(", ") if left_out else []
    assert {"Top-1", "Latency", "File"}.isdisjoint(missing)
    assert width < 240 or not missing
    for heading in headings:
        assert heading in missing or heading.split()[0] in written


def test_a_name_wider_than_the_terminal_goes_on_in_the_next_line() -> None:
    document = rows.document(case.report_input())
    long = "a-recipe-" * 15
    changed = {**document, "rows": [{**r, "recipe": long} for r in document["rows"]]}
    written = terminal.table(changed, width=100)
    assert "…" not in written and written.replace("\n", "").replace(" ", "").count("a-recipe-") >= 15


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1_092_222, "1.09 MB"), (334_119, "334 kB"), (5.53e8, "553 MB")],
)
def test_sizes_are_decimal(value: float | None, expected: str) -> None:
    assert wording.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0123, "0.0123"), (0.857, "0.857"), (12.345, "12.35"), (568.0, "568.0")]
)
def test_latencies_keep_three_significant_digits(value: float, expected: str) -> None:
    assert wording.milliseconds(value) == expected


def save(run_dir: RunDir, without: tuple[str, str] | None = None) -> None:
    """The case as a run directory, through the same functions that a run uses."""
    made = case.report_input()
    variants = []
    for recipe, form, activation_type in made.artifacts:
        artifact = {"key": f"a-{recipe}-{form}", "activation_type": activation_type}
        variants.append(
            {
                "recipe": recipe,
                "format": form,
                "device": "local",
                "measurement": f"m-{recipe}-{form}",
                "artifact": artifact,
            }
        )
    chains = {
        r: [{"key": "model-baseline"}, *([] if r == "baseline" else [{"key": f"model-{r}"}])] for r in case.RECIPES
    }
    run_dir.write_json(
        "plan.json", {"study": made.study, "devices": made.devices, "recipes": chains, "variants": variants}
    )
    run_dir.write_json(
        "run.json",
        {"command": made.command, "created_unix_s": made.created_unix_s, "edgecompress": "0.1.0", **made.host},
    )
    run_dir.write_json("data.json", made.data)
    for recipe, model in made.models.items():
        run_dir.commit("model", f"model-{recipe}", model)
    for (recipe, form, _), file in made.artifacts.items():
        run_dir.commit("artifact", f"a-{recipe}-{form}", file)
    for (recipe, form, _), measured in made.measurements.items():
        if isinstance(measured, Failure):
            run_dir.fail("measurement", f"m-{recipe}-{form}", measured)
        elif (recipe, form) != without:
            run_dir.commit("measurement", f"m-{recipe}-{form}", measured)


def test_a_report_comes_from_the_run_directory_alone(tmp_path: Path, document: dict[str, Any]) -> None:
    run_dir = RunDir(tmp_path)
    save(run_dir)
    collected = report.collect(run_dir)
    assert collected == to_json(document)
    files = report.write_all(collected, run_dir)
    assert sorted(f.name for f in files) == ["report.html", "report.md", "results.csv", "results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == to_json(document)


def test_a_run_that_was_stopped_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    save(run_dir, without=("baseline", "tflite-int8"))
    (tmp_path / "records" / "model" / "model-student.json").unlink()
    statuses = {(r["recipe"], r["format"]): (r["status"], r["reason"]) for r in report.collect(run_dir)["rows"]}
    assert statuses["baseline", "tflite-int8"][0] == "not-measured"
    assert statuses["baseline", "onnx-fp32"] == ("ok", None)
    assert "not done yet" in str(statuses["student", "onnx-fp32"][1])


def test_a_failed_baseline_is_the_reason_of_every_recipe(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    save(run_dir)
    for recipe in case.RECIPES:
        (tmp_path / "records" / "model" / f"model-{recipe}.json").unlink()
    run_dir.fail("model", "model-baseline", Failure("model", "loss became NaN"))
    assert {r["reason"] for r in report.collect(run_dir)["rows"]} == {"model: loss became NaN"}


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        report.collect(RunDir(tmp_path))


def test_the_case_is_what_the_wire_carries() -> None:
    answer = case.result("baseline", "onnx-fp32")
    assert wire.decode(wire.Result, wire.encode(answer)) == answer
