"""Accuracy against latency, size and energy, as SVG for a page: its text stays text, its colours are the page's.

matplotlib draws with stand-in colours; they are replaced by CSS variables, so that one picture serves light and dark pages.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.report import wording as w

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{i:02x}" for i in range(1, 9))
VARIABLES = {INK: "ink", FAINT: "line", PAPER: "paper"} | {colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)}
MARKERS = {"onnx-fp32": "o", "onnx-int8": "s", "tflite-fp32": "^", "tflite-int8": "D"}
OTHER_MARKERS = ("P", "X", "v", "*")
LOG_FROM = 8.0
"""Ratio of the largest to the smallest value from which the horizontal axis is logarithmic."""


@dataclass(frozen=True)
class Plot:
    """svg: markup without external references. caption and summary: text."""

    caption: str
    summary: str
    svg: str


@dataclass(frozen=True)
class _Axis:
    field: str
    low: str | None
    high: str | None
    front: str
    label: str
    scale: float
    caption: str


AXES = (
    _Axis(
        "latency_ms_p50", "latency_ms_low", "latency_ms_high", "pareto_latency", "Median latency (ms)", 1.0, "Accuracy and latency"
    ),
    _Axis("file_bytes", None, None, "pareto_size", "File size (kB)", 1e-3, "Accuracy and size"),
    _Axis(
        "energy_mj", "energy_mj_low", "energy_mj_high", "pareto_energy", "Energy per inference (mJ)", 1.0, "Accuracy and energy"
    ),
)  # fmt: skip


def plots(document: dict[str, Any]) -> list[Plot]:
    """Up to three plots per device, of its rows that have both figures; none for a device without any."""
    made = []
    recipes = list(document["study"]["recipes"])
    formats = list(document["study"]["formats"])
    for number, device in enumerate(document["devices"]):
        for axis in AXES:
            rows = [
                r
                for r in document["rows"]
                if r["device"] == device and r["top1"] is not None and r[axis.field] is not None
            ]
            if rows:
                on = f" on {device}" if len(document["devices"]) > 1 else ""
                caption = w.plain(f"{axis.caption}{on}")
                summary = w.plain(
                    f"Scatter plot of {len(rows)} variants; the same figures are in the table of results."
                )
                made.append(Plot(caption, summary, _draw(rows, axis, recipes, formats, f"p{number}-{axis.field}")))
    return made


@contextmanager
def drawing(key: str, size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, in inches, in the page's stand-in colours. key: unique in the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False, "font.size": 11, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": FAINT,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def svg_of(figure: Figure, key: str, tooltips: list[str]) -> str:
    """The figure as markup for the page; the elements point-0, point-1, … (gid) get the tooltips."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), key, tooltips)


def _draw(rows: list[dict[str, Any]], axis: _Axis, recipes: list[str], formats: list[str], key: str) -> str:
    with drawing(key, (5.6, 4.6)) as (figure, axes):
        _scales(axes, rows, axis)
        places = [(r[axis.field] * axis.scale, 100 * r["top1"]) for r in rows]
        _front(axes, rows, places, axis)
        for i, (row, (x, y)) in enumerate(zip(rows, places, strict=True)):
            colour = SERIES[recipes.index(row["recipe"]) % len(SERIES)]
            bars: dict[str, Any] = {"yerr": [[y - 100 * row["top1_low"]], [100 * row["top1_high"] - y]]}
            if axis.low and axis.high:
                bars["xerr"] = [[x - row[axis.low]], [row[axis.high] - x]]
            axes.errorbar(x, y, **bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.55, zorder=2)
            ring = INK if row[axis.front] else PAPER
            marker = _marker(row["format"], formats)
            (point,) = axes.plot(
                x, y, marker=marker, markersize=9, color=colour, markeredgecolor=ring, markeredgewidth=1.2, zorder=3
            )
            point.set_gid(f"point-{i}")
        _legend(axes, [f for f in formats if any(r["format"] == f for r in rows)], formats)
        figure.canvas.draw()  # the layout must stand before labels are placed in its pixels
        _label(axes, rows, places)
        return svg_of(figure, key, [_tooltip(r) for r in rows])


def _scales(axes: Axes, rows: list[dict[str, Any]], axis: _Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = [r[axis.field] * axis.scale for r in rows]
    axes.set_xlabel(axis.label)
    axes.set_ylabel("Top-1 accuracy (%)")
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    lows, highs = [100 * r["top1_low"] for r in rows], [100 * r["top1_high"] for r in rows]
    margin = max(0.2, 0.08 * (max(highs) - min(lows)))
    axes.set_ylim(min(lows) - margin, max(highs) + margin)
    if max(values) / min(values) >= LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    else:
        room = 0.18 * (max(values) - min(values)) or 0.3 * max(values)
        axes.set_xlim(max(0.0, min(values) - room), max(values) + room)


def _marker(format: str, formats: list[str]) -> str:
    return MARKERS.get(format) or OTHER_MARKERS[formats.index(format) % len(OTHER_MARKERS)]


def _front(axes: Axes, rows: list[dict[str, Any]], places: list[tuple[float, float]], axis: _Axis) -> None:
    """A stair through the rows that no other beats."""
    front = sorted(place for row, place in zip(rows, places, strict=True) if row[axis.front])
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        axes.plot(xs, ys, drawstyle="steps-post", color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)


def _legend(axes: Axes, shown: list[str], formats: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=_marker(f, formats), linestyle="none", markersize=7, color=INK, label=w.plain(f))
        for f in shown
    ]
    if axes.get_lines() and any(line.get_drawstyle() == "steps-post" for line in axes.get_lines()):
        handles.append(Line2D([], [], linestyle=(0, (4, 3)), color=INK, alpha=0.6, label="best trade-offs"))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)


def _label(axes: Axes, rows: list[dict[str, Any]], places: list[tuple[float, float]]) -> None:
    """Put each recipe's name beside its points where it covers least: other labels, other points, the frame's edge."""
    # Sizes are estimated: the page's font is not matplotlib's.
    frame = axes.get_window_extent()
    pixels = axes.transData.transform(places)
    scale = axes.figure.dpi / 72
    height, character = 11.0 * scale, 5.6 * scale
    taken: list[tuple[float, float, float, float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    labelled: dict[str, list[tuple[float, float]]] = {}
    for i, row in sorted(enumerate(rows), key=lambda item: -pixels[item[0]][1]):
        x, y = pixels[i]
        if any(math.dist(pixels[i], other) < 14 * scale for other in labelled.get(row["recipe"], [])):
            continue  # files of one recipe that lie on one spot share its name
        labelled.setdefault(row["recipe"], []).append((x, y))
        name = w.plain(row["recipe"])
        width = character * len(name)
        candidates = []
        for distance in (8.0, 16.0, 28.0, 42.0, 60.0):
            for angle in (0, 180, 35, -35, 145, -145, 90, -90):
                dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
                left = x + dx - (0 if abs(angle) < 90 else width if abs(angle) > 90 else width / 2)
                box = (left, y + dy - height / 2, left + width, y + dy + height / 2)
                cost = sum(_overlap(box, other) for other in taken)
                outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1)
                outside += max(0.0, frame.y0 - box[1]) + max(0.0, box[3] - frame.y1)
                candidates.append((cost + 20 * outside + 0.6 * distance, distance, dx, dy, angle, box))
        _, distance, dx, dy, angle, box = min(candidates, key=lambda c: c[0])
        taken.append(box)
        axes.annotate(
            name, places[i], xytext=(dx / scale, dy / scale), textcoords="offset points", va="center", fontsize=9.5,
            ha="left" if abs(angle) < 90 else "right" if abs(angle) > 90 else "center", zorder=4,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 5} if distance > 10 else None,
        )  # fmt: skip


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, bottom, right, top) share, in square pixels."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _tooltip(row: dict[str, Any]) -> str:
    energy = "" if row["energy_mj"] is None else f", {w.milliseconds(row['energy_mj'])} mJ"
    return w.plain(
        f"{row['recipe']} / {row['format']}: {w.percent(row['top1'])}, {w.milliseconds(row['latency_ms_p50'])} ms, "
        f"{w.size(row['file_bytes'])}{energy}"
    )


def _for_page(svg: str, key: str, tooltips: list[str]) -> str:
    """The <svg> element alone: own ids, the page's colours and font, a tooltip in each point, sized by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-").replace('href="#', f'href="#{key}-')
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    for i, text in enumerate(tooltips):
        svg = svg.replace(f'<g id="{key}-point-{i}">', f'<g id="{key}-point-{i}"><title>{html.escape(text)}</title>', 1)
    return svg
