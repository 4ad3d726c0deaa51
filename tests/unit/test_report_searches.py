"""The report of a search: a table for every strategy, its pictures, and none of its raw lists among the variants' details."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import report_case as case

from edgecompress import report
from edgecompress.records import StepRecord
from edgecompress.report import rows, searches, view

pytestmark = pytest.mark.slow

KEEP = {f"layer{i}.0.conv1": 0.25 * (1 + i % 4) for i in range(5)}
HOSTILE = "<script>alert(1)</script>"


def strategy(rewards: list[float | None], **changes: Any) -> dict[str, Any]:
    best = max(r for r in rewards if r is not None)
    found = {
        "reward": best, "top1": 1 + best, "evaluation": rewards.index(best) + 1, "budget_used": 0.49, "policy": dict(KEEP),
    }  # fmt: skip
    different = len(set(rewards))
    return {
        "evaluations": len(rewards),
        "different": different,
        "seconds": 61.0,
        "rewards": rewards,
        "best": found,
    } | changes


def notes() -> dict[str, Any]:
    search = {
        "reward": "error", "granularity": "channels", "budget": "latency", "share": 0.5, "scored_on": "900 images of val",
        "policies_per_second": 1.25, "pass_share": 0.875, "policies_scored": 9, "scoring_seconds": 7.2, "resumed_at": None,
        "strategies": {
            "amc": strategy([-0.9, -0.5, -0.7, -0.3]),
            "uniform": strategy([-0.6]),
            "greedy": strategy([None, None, -0.4, -0.2]),
            "random": {"evaluations": 2, "different": 2, "seconds": 1.0, "rewards": [None, None], "best": None},
        },
    }  # fmt: skip
    device = {
        "of": "latency", "unit": "ms", "layers": {"relu 1": 0.01, "conv 16>16": 0.1}, "median_error": 0.08, "slope": 0.921,
        "whole_networks": [{"evaluation": 0, "predicted": 0.46, "measured": 0.5, "error": -0.08},
                           {"evaluation": 50, "predicted": 0.46, "measured": 0.498, "error": -0.076}],
        "share": 0.5, "whole": None, "measured": 0.498, "met": True, "identity": {},
    }  # fmt: skip
    return {"search": search, "on_device": device, "better_than_amc": ["greedy"], "policy": {**KEEP, HOSTILE: 0.5}}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made = case.report_input()
    model = made.models["magnitude-80"]
    step = StepRecord("amc", {"latency": 0.5}, 100.0, (), notes())
    return rows.document(
        dataclasses.replace(made, models={**made.models, "magnitude-80": dataclasses.replace(model, steps=(step,))})
    )


def test_each_search_is_a_table_with_every_strategy(document):
    (table,) = view.make(document).searches
    assert [row[0].text for row in table.rows] == ["amc", "uniform", "greedy", "random"]
    amc, _, greedy, random = table.rows
    assert amc[1].text == "−0.3" and amc[2].text == "70.00 %" and amc[5].text == "4"
    assert greedy[4].text == "4" and random[1].text == "–"
    for words in (
        "a budget of latency 0.5",
        "1.25 in a second",
        "87.50 % of that time is the networks' pass",
        "found by greedy",
        "off by −8.0 %",
        "0.921",
        "at 49.80 % of",
    ):
        assert words in table.intro
    assert searches.best_so_far([None, -0.5, -0.7, -0.3, -0.4]) == [(2, -0.5), (4, -0.3), (5, -0.3)]
    assert searches.best_so_far([None]) == []


def test_the_page_draws_rewards_and_what_is_kept(document):
    html = report.render(document, "html")
    assert html.count("Reward against evaluations") == 2  # caption and label
    assert "layer3.0.conv1: 100.0 % kept" in html and "Best reward so far (error)" in html
    assert HOSTILE not in html
    assert "&#39;rewards&#39;" not in html and "relu 1" not in html, "raw lists are for results.json"


def test_markdown_has_the_same_figures(document):
    text = report.render(document, "md")
    assert "## Search: magnitude-80, step 1: amc" in text and "70.00 %" in text and "−0.3" in text


def test_a_study_without_a_search_has_no_section():
    document = rows.document(case.report_input())
    assert view.make(document).searches == () and "Search: " not in report.render(document, "html")


def test_a_policy_that_was_given_is_a_table_and_drawn():
    made = case.report_input()
    notes = {
        "policy": {"conv1": 0.5, HOSTILE: 1.0},
        "widths": {"conv1": [8, 16], HOSTILE: [4, 4]},
        "not_named": [HOSTILE],
    }
    step = StepRecord("amc", {"policy": "half.yaml"}, 1.0, (), notes)
    model = dataclasses.replace(made.models["magnitude-80"], steps=(step,))
    document = rows.document(dataclasses.replace(made, models={**made.models, "magnitude-80": model}))
    (table,) = view.make(document).searches
    assert table.title == "Policy: magnitude-80, step 1: amc" and "which stayed whole" in table.intro
    assert [cell.text for cell in table.rows[0]] == ["conv1", "50.00 %", "8 of 16"]
    html = report.render(document, "html")
    assert "conv1: 50.0 % kept, 8 of 16" in html and "Reward against evaluations" not in html and HOSTILE not in html
    assert "## Policy: magnitude-80" in report.render(document, "md")
