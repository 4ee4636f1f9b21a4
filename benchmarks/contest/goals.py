"""The goals of this round, computed from rows: a figure, what it has to be, and whether it is; torch-free."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contest.curve import Point, fastest_within, points
from benchmarks.contest.results import Row
from benchmarks.contest.tasks import ANCHOR, GPU_LOWERING, KNOB, OURS, Setting

_LEAST_PEAK = ("llama", "llama_large", "deep_llama")
_DOMINATED = ("llama", "llama_wide", "llama_large", "gpt2")
_WORTH_COMPARING = {True: 0.001, False: 0.03}
"""Slowdowns of theirs from which ours is compared, modelled and measured: below, a ratio is noise."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal; `met` is None where nothing was measured that decides it."""

    goal: str
    where: str
    figure: str
    met: bool | None


def goals(rows: Sequence[Row], allocator: str) -> list[Goal]:
    """All goals, for each target and precision that has rows."""
    targets = list(dict.fromkeys((row.target, row.precision) for row in rows))
    found = []
    for target, precision in targets:
        curves = {
            setting.model: _curves(rows, setting, allocator)
            for setting in dict.fromkeys(row.setting for row in rows)
            if (setting.target, setting.precision) == (target, precision)
        }
        where = f"{target}, {precision}"
        found += [_least_peak(curves, model, where) for model in _LEAST_PEAK if model in curves]
        found.append(_slowdown(curves, where, modelled=target == GPU_LOWERING))
        if target == GPU_LOWERING:
            found += [
                _saving(curves[model], model, where, times, slowdown)
                for model in _DOMINATED
                if model in curves
                for times, slowdown in ((3, 0.10), (5, 0.20))
            ]
    return found


@dataclass(frozen=True, slots=True)
class Curves:
    """Ours under Inductor, PyTorch's knob, and the anchor."""

    ours: list[Point]
    knob: list[Point]
    anchor: Point | None


def _curves(rows: Sequence[Row], setting: Setting, allocator: str) -> Curves:
    found = points((row for row in rows if row.setting == setting and row.through_inductor), allocator)
    return Curves(
        [p for p in found if p.row.family == OURS],
        [p for p in found if p.row.family == KNOB],
        next((p for p in found if p.row.contestant == ANCHOR), None),
    )


def _least_peak(curves: dict[str, Curves], model: str, where: str) -> Goal:
    goal = "least peak <= 0.6x that of PyTorch's knob"
    ours, knob = (_lowest(c) for c in (curves[model].ours, curves[model].knob))
    if ours is None or knob is None:
        return Goal(goal, f"{model}, {where}", "not measured", None)
    figure = f"{ours.peak_bytes / knob.peak_bytes:.2f}x ({ours.peak_bytes / 1e6:.1f} of {knob.peak_bytes / 1e6:.1f} MB)"
    mine, theirs = ours.row.activation_peak_bytes, knob.row.activation_peak_bytes
    if mine is not None and theirs:
        figure += f"; of activations {mine / theirs:.2f}x ({mine / 1e6:.1f} of {theirs / 1e6:.1f} MB)"
    return Goal(goal, f"{model}, {where}", figure, ours.peak_bytes <= 0.6 * knob.peak_bytes)


def _lowest(curve: list[Point]) -> Point | None:
    return min(curve, key=lambda p: p.peak_bytes, default=None)


def _slowdown(curves: dict[str, Curves], where: str, *, modelled: bool) -> Goal:
    """A point of theirs that we have nothing for counts as infinitely slow."""
    threshold = _WORTH_COMPARING[modelled]
    goal = f"at the knob's peaks, slowdown <= 0.5x its own (median; where its own exceeds {100 * threshold:g}%)"
    ratios, saving = [], []
    for model_curves in curves.values():
        anchor = model_curves.anchor
        for theirs in model_curves.knob:
            if theirs.slowdown > threshold:
                mine = fastest_within(model_curves.ours, theirs.peak_bytes)
                ratios.append(float("inf") if mine is None else mine.slowdown / theirs.slowdown)
                if anchor and theirs.peak_bytes < anchor.peak_bytes:
                    saving.append(ratios[-1])
    if not ratios:
        return Goal(goal, where, "no such point", None)
    median = statistics.median(ratios)
    figure = f"{median:.2f}x over {len(ratios)} points, {ratios.count(float('inf'))} of them below our least peak"
    # The knob's peak may be above that without it: there any plan of ours costs nothing.
    figure += f"; {statistics.median(saving):.2f}x over the {len(saving)} that save memory" if saving else ""
    return Goal(goal, where, figure, median <= 0.5)


def _saving(curves: Curves, model: str, where: str, times: int, slowdown: float) -> Goal:
    goal = f">= {times}x less activation peak at <= {slowdown:.0%} modelled slowdown"
    small = [p.row.activation_peak_bytes for p in curves.ours if p.slowdown <= slowdown]
    least = min((count for count in small if count is not None), default=None)
    base = None if curves.anchor is None else curves.anchor.row.activation_peak_bytes
    if least is None or base is None:
        return Goal(goal, f"{model}, {where}", "not measured", None)
    # What is left may be gradients alone, or less: then there is nothing more to save.
    figure = "infinite" if least <= 0 else f"{base / least:.2f}x"
    return Goal(
        goal, f"{model}, {where}", f"{figure} ({base / 1e6:.1f} to {least / 1e6:.1f} MB)", least * times <= base
    )
