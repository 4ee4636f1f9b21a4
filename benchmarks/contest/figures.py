"""Figures: one SVG per model, a panel per setting, a step function per contestant: peak across, slowdown upwards.

A curve at a peak shows the least time at which its contestant needs no more than that, so lower left is better. Text
stays text, and nothing in a file depends on when it was made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # before pyplot: no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.contest.curve import Point, frontier, points
from benchmarks.contest.results import WRONG, Row
from benchmarks.contest.tasks import OURS

# Told apart by the colour-blind: Okabe and Ito, https://jfly.uni-koeln.de/color/
_COLORS = {
    "remat": "#0072B2",
    "knob": "#D55E00",
    "checkpoint": "#009E73",
    "sac": "#CC79A7",
    "hf": "#56B4E9",
    "eager": "#7F7F7F",
    "inductor": "#000000",
    "jax": "#E69F00",
}
_MARKERS = "osD^vP*X"
_WRONG_COLOR = "#B00000"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "frontier",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(rows: Sequence[Row], allocator: str, title: str, path: Path) -> bool:
    """Draw a model, one panel per setting; False, and no file, if nothing in it is a point."""
    settings = list(dict.fromkeys(point.row.setting for point in points(rows, allocator)))
    if not settings:
        return False
    numbers = _numbers_in_family(rows)
    columns = min(2, len(settings))
    lines = -(-len(settings) // columns)
    with plt.rc_context(_STYLE):
        figure, panels = plt.subplots(
            lines, columns, figsize=(1.4 + 4.6 * columns, 3.6 * lines), layout="constrained", squeeze=False
        )
        for panel in panels.flat[len(settings) :]:
            panel.set_axis_off()
        for panel, setting in zip(panels.flat, settings, strict=False):
            own = [row for row in rows if row.setting == setting]
            wrong = [row for row in own if row.state == WRONG and row.peak_bytes]
            _draw(panel, points(own, allocator), wrong, allocator, numbers)
            panel.set_title(f"{setting.precision}, {setting.target}", loc="left", fontsize=9)
        named = {
            label: handle
            for panel in panels.flat
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(named.values(), named.keys(), loc="outside right center", frameon=False, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.savefig(
            path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160
        )
        plt.close(figure)
    return True


def _numbers_in_family(rows: Sequence[Row]) -> dict[str, int]:
    """Tells contestants of one family, and so of one colour, apart; the same in every panel."""
    families: dict[str, list[str]] = {}
    for row in rows:
        names = families.setdefault(row.family, [])
        if row.contestant not in names:
            names.append(row.contestant)
    return {name: number for names in families.values() for number, name in enumerate(names)}


def _draw(axes: Axes, found: Sequence[Point], wrong: Sequence[Row], allocator: str, numbers: Mapping[str, int]) -> None:
    right = 1.04 * max([p.peak_bytes for p in found] + [row.peak_bytes or 0 for row in wrong]) / 1e6
    for name in dict.fromkeys(p.row.contestant for p in found):
        _draw_contestant(axes, name, [p for p in found if p.row.contestant == name], right, numbers[name])
    _draw_wrong(axes, wrong, allocator)
    axes.set_xlim(0, right)
    axes.set_xlabel("peak of forward and backward, MB (gradients included)")
    modelled = any(p.row.modelled for p in found)
    axes.set_ylabel("modelled time" if modelled else "step time")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f}%" if value else "inductor")
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_contestant(axes: Axes, name: str, own: Sequence[Point], right: float, number: int) -> None:
    """Its points, and its step function to the right edge if it has several."""
    family = own[0].row.family
    color, ours = _COLORS.get(family, "#666666"), family == OURS
    marker = _MARKERS[number % len(_MARKERS)]
    style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4.5 if ours else 4}
    best = frontier(own)
    axes.plot(
        [p.peak_bytes / 1e6 for p in own],
        [100 * p.slowdown for p in own],
        linestyle="none",
        label=name,
        zorder=3,
        **style,
    )
    if len(own) > 1:
        x = [*(p.peak_bytes / 1e6 for p in best), right]
        y = [*(100 * p.slowdown for p in best), 100 * best[-1].slowdown]
        dash = ("-", "--", ":", "-.")[number % 4]
        axes.plot(x, y, drawstyle="steps-post", linestyle=dash, linewidth=2.2 if ours else 1.2, color=color, zorder=2)


def _draw_wrong(axes: Axes, wrong: Sequence[Row], allocator: str) -> None:
    """Where they would be, crossed out in red."""
    places = [
        (row.peak_bytes / 1e6, 100 * (row.times[allocator].ratio - 1))
        for row in wrong
        if row.peak_bytes and allocator in row.times and row.times[allocator].ratio is not None
    ]
    if places:
        x, y = zip(*places, strict=True)
        axes.plot(x, y, linestyle="none", marker="x", color=_WRONG_COLOR, label="wrong gradients", zorder=4)
