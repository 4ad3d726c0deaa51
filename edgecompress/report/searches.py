"""The searches of methods (AMC): what each strategy found under the same budget, what it tried, and what the policy keeps.

A search is a step's note `search`, a policy that was given its note `policy`; a recipe has one section for each however many
variants there are of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgecompress.report import wording as w
from edgecompress.report.tables import Cell, Column, Table

LONG_NOTES = ("search", "on_device")
"""Notes of a step that have a section of their own here."""
_OF_A_POLICY = {"search", "widths", "kept_weights"}
"""Notes, one of which a step with a policy of groups or layers has."""


@dataclass(frozen=True)
class Found:
    """One search, or one policy that was given. title and key: unique in a report; notes: of its step."""

    key: str
    title: str
    notes: dict[str, Any]

    @property
    def searched(self) -> bool:
        return "search" in self.notes

    @property
    def granularity(self) -> str:
        return "weights" if "kept_weights" in self.notes else "channels"

    @property
    def applied(self) -> dict[str, float]:
        """Group or layer → fraction kept."""
        found: dict[str, float] = self.notes["policy"]
        return found

    def count(self, name: str) -> str:
        """Units of a group or layer, such as "8 of 16"; empty where that is not recorded."""
        kept = self.notes.get("kept_weights" if self.granularity == "weights" else "widths", {}).get(name)
        return f"{kept[0]:,} of {kept[1]:,}" if kept else ""

    @property
    def search(self) -> dict[str, Any]:
        found: dict[str, Any] = self.notes["search"]
        return found


def of(document: dict[str, Any]) -> Iterator[Found]:
    """Every search of a results.json document, each recipe's once."""
    for number, recipe in enumerate(document["study"]["recipes"]):
        row = next((r for r in document["rows"] if r["recipe"] == recipe and r["step_results"]), None)
        for place, step in enumerate(row["step_results"] if row else [], 1):
            if "policy" in step["notes"] and step["notes"].keys() & _OF_A_POLICY:
                title = w.plain(f"{recipe}, step {place}: {step['method']}")
                yield Found(f"search-{number}-{place}", title, step["notes"])


def table(found: Found) -> Table:
    """What every strategy came to. Rewards are of validation images, before any fine-tuning. Of a given policy: what it keeps."""
    if not found.searched:
        return _policy_table(found)
    rows = []
    for name, tried in found.search["strategies"].items():
        best = tried["best"]
        reward = None if best is None else best["reward"]
        rows.append(
            (
                Cell(w.plain(name)),
                Cell(w.NONE if reward is None else w.signed(f"{reward:.4g}"), sort=reward),
                Cell(w.percent(None if best is None else best["top1"]), sort=None if best is None else best["top1"]),
                Cell(w.percent(None if best is None else best["budget_used"]), sort=None if best is None else best["budget_used"]),
                Cell(f"{tried['evaluations']:,}", f"{tried['different']:,} different", sort=tried["evaluations"]),
                Cell(w.NONE if best is None else f"{best['evaluation']:,}", sort=None if best is None else best["evaluation"]),
                Cell(w.seconds(tried["seconds"]), sort=tried["seconds"]),
            )
        )  # fmt: skip
    columns = (
        Column("Search", numeric=False),
        Column("Best reward"),
        Column("Top-1", "validation"),
        Column("Of the whole", "budget's cost"),
        Column("Evaluations"),
        Column("Best at"),
        Column("Time"),
    )
    return Table(found.key, f"Search: {found.title}", " ".join(sentences(found)), columns, tuple(rows))


def _policy_table(found: Found) -> Table:
    rows = tuple(
        (
            Cell(w.plain(name)),
            Cell(w.percent(keep), sort=keep),
            Cell(w.plain(found.count(name)) or w.NONE),
        )
        for name, keep in found.applied.items()
    )
    columns = (
        Column("Layer" if found.granularity == "weights" else "Group", numeric=False),
        Column("Kept"),
        Column("Weights" if found.granularity == "weights" else "Channels"),
    )
    unnamed = found.notes.get("not_named")
    said = "Nothing was searched: the policy was given."
    if unnamed:
        said += f" It does not name {w.value_text(unnamed)}, which stayed whole."
    return Table(found.key, f"Policy: {found.title}", w.plain(said), columns, rows)


def sentences(found: Found) -> list[str]:
    """What was searched under which budget, how fast, and what is to be known of it."""
    search, notes = found.search, found.notes
    budget = (
        "no budget" if search["budget"] is None else f"a budget of {search['budget']} {w.value_text(search['share'])}"
    )
    said = [
        f"Reward {search['reward']} on {search['scored_on']}, before fine-tuning, under {budget}; the applied policy is that of "
        f"{notes.get('applied', 'amc')}."
    ]
    if search["policies_per_second"]:
        said.append(
            f"{search['policies_scored']:,} different policies were scored, {search['policies_per_second']:.3g} in a second."
        )
    if search.get("pass_share") is not None:
        said.append(
            f"{w.percent(search['pass_share'])} of that time is the networks' pass over the images, the rest the cut and the fit."
        )
    if notes.get("better_than_amc"):
        said.append(f"A better policy than amc's was found by {w.value_text(notes['better_than_amc'])}.")
    device = notes.get("on_device")
    if device:
        said.append(_of_device(device))
    return [w.plain(s) for s in said]


def _of_device(device: dict[str, Any]) -> str:
    measured = [s for s in device["whole_networks"] if s["evaluation"] == 0]
    errors = ", ".join(w.signed(f"{100 * s['error']:+.1f} %") for s in measured)
    text = (
        f"The {device['of']} comes from {len(device['layers'])} layers measured alone; on {len(measured)} whole networks "
        f"before the search their sum was off by {errors}."
    )
    if device.get("slope") is not None:
        text += (
            f" With {len(device['whole_networks'])} whole networks measured in all, a network was taken to save "
            f"{device['slope']:.3f} of what its layers save."
        )
    if device["measured"] is not None:
        text += f" The applied policy's network was measured at {w.percent(device['measured'])} of the whole one's."
    return text


def best_so_far(rewards: list[float | None]) -> list[tuple[int, float]]:
    """(evaluation from 1, best reward up to it), where it rises, and at the end."""
    found: list[tuple[int, float]] = []
    for number, reward in enumerate(rewards, 1):
        if reward is not None and (not found or reward > found[-1][1]):
            found.append((number, reward))
    if found and found[-1][0] < len(rewards):
        found.append((len(rewards), found[-1][1]))
    return found
