"""Pictures of a search: the best reward against evaluations for every strategy, and what is kept of each group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.report import searches
from edgecompress.report import wording as w
from edgecompress.report.plots import FAINT, INK, SERIES, Plot, drawing, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgecompress.report.searches import Found

MOST_NAMES = 40
"""Groups whose names are written under the bars; of more only the numbers are."""


def plots(found: Found) -> list[Plot]:
    """Rewards and policy of one search, or the policy that was given."""
    return [*([_rewards(found)] if found.searched else []), _policy(found)]


def _rewards(found: Found) -> Plot:
    with drawing(f"{found.key}-rewards", (5.6, 4.6)) as (figure, axes):
        strategies = found.search["strategies"]
        last = max(len(s["rewards"]) for s in strategies.values())
        for number, (name, tried) in enumerate(strategies.items()):
            best = searches.best_so_far(tried["rewards"])
            if not best:
                continue
            xs, ys = (list(values) for values in zip(*best, strict=True))
            if xs[-1] < last:  # it had nothing left to try
                xs, ys = [*xs, last], [*ys, ys[-1]]
            axes.plot(
                xs, ys, drawstyle="steps-post", color=SERIES[number % len(SERIES)], label=w.plain(name), linewidth=1.6
            )
        axes.set_xlabel("Evaluations")
        axes.set_ylabel(f"Best reward so far ({w.plain(found.search['reward'])})")
        axes.grid(True, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
        svg = svg_of(figure, f"{found.key}-rewards", [])
    summary = "Line plot of the best reward of each search against its evaluations; the end of each is in the table."
    return Plot(w.plain(f"Reward against evaluations: {found.title}"), summary, svg)


def _policy(found: Found) -> Plot:
    applied = found.applied
    names = list(applied)
    with drawing(f"{found.key}-keep", (max(5.6, 0.17 * len(names) + 1.5), 4.6)) as (figure, axes):
        places = range(len(names))
        axes.bar(places, [100.0] * len(names), color=FAINT, width=0.8, label="before")
        bars: Any = axes.bar(places, [100 * applied[n] for n in names], color=SERIES[0], width=0.8, label="kept")
        for number, bar in enumerate(bars):
            bar.set_gid(f"point-{number}")
        _names(axes, names)
        axes.set_ylabel("Kept (%)")
        axes.set_ylim(0, 100)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        tips = [
            w.plain(f"{n}: {100 * applied[n]:.1f} % kept" + (f", {found.count(n)}" if found.count(n) else ""))
            for n in names
        ]
        svg = svg_of(figure, f"{found.key}-keep", tips)
    what = "weights of each layer" if found.granularity == "weights" else "channels of each group"
    return Plot(
        w.plain(f"Kept of the {what}: {found.title}"),
        f"Bars of {len(names)} fractions, in the order of the network.",
        svg,
    )


def _names(axes: Axes, names: list[str]) -> None:
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), [w.plain(n) for n in names], rotation=90, fontsize=8, color=INK)
    else:
        axes.set_xlabel("Group, in the order of the network")
