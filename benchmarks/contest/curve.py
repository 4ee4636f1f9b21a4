"""The maths of trade-off curves; torch-free.

A contestant's curve is a step function: the least time at which it needs at most so many bytes. Time is *slowdown*, the
ratio to the anchor minus 1; the anchor is `backend="inductor"`, measured in the same group or modelled by the same rig.

    slowdown │ ●                       ours at their point: the fastest of ours that needs no more memory
             │ └──●
             │    └─────●───────
             └────────────────── peak
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.contest.results import MEASURED, Row

PROCESS_NOISE = 0.01
"""Two processes that run the same code differ by up to this share, whatever the number of rounds."""
MODEL_NOISE = 0.001
"""A modelled time is exact, but a roofline knows nothing of differences as small as this share."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured row as a point: bytes, slowdown against the anchor (0.1 is 10% slower), and its noise."""

    row: Row
    peak_bytes: int
    slowdown: float
    noise: float

    @property
    def time(self) -> float:
        """In units of the anchor's."""
        return 1 + self.slowdown


def points(rows: Iterable[Row], allocator: str) -> list[Point]:
    """The rows that are points of a curve."""
    found = []
    for row in rows:
        if row.state != MEASURED or row.peak_bytes is None:
            continue
        if row.modelled is not None:
            ratio, noise = row.modelled.ratio, MODEL_NOISE
        elif allocator in row.times:
            ratio, noise = row.times[allocator].ratio, row.times[allocator].noise + PROCESS_NOISE
        else:
            continue
        if ratio is not None:
            found.append(Point(row, row.peak_bytes, ratio - 1, noise))
    return found


def frontier(found: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in both, from small and slow to large and fast."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.peak_bytes, p.slowdown)):
        if not best or point.slowdown < best[-1].slowdown:
            best.append(point)
    return best


def fastest_within(found: Iterable[Point], peak_bytes: int) -> Point | None:
    """The fastest point that needs at most so many bytes; the smaller one of a tie."""
    return min((p for p in found if p.peak_bytes <= peak_bytes), key=lambda p: (p.slowdown, p.peak_bytes), default=None)


def smallest_within(found: Iterable[Point], slowdown: float) -> Point | None:
    """The smallest point that is at most so slow, within its noise."""
    return min((p for p in found if p.slowdown <= slowdown + p.noise), key=lambda p: p.peak_bytes, default=None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one point of another contestant."""

    theirs: Point
    ours: Point | None
    """Our fastest point that needs no more memory; None if there is none."""
    at_or_below: bool
    why: str

    @property
    def time_points(self) -> float | None:
        """By how many percent of the anchor's time ours is slower; negative if it is faster."""
        return None if self.ours is None else 100 * (self.ours.slowdown - self.theirs.slowdown)


def compare(ours: Sequence[Point], theirs: Point) -> Comparison:
    """Whether our curve is at or below one point of theirs, and if not, why."""
    best = fastest_within(ours, theirs.peak_bytes)
    if best is None:
        least = min((p.peak_bytes for p in ours), default=None)
        if least is None:
            return Comparison(theirs, None, False, "we have no point at all")
        why = f"their peak is below our least, which is {least / theirs.peak_bytes - 1:.1%} more"
        return Comparison(theirs, None, False, why)
    noise = (best.noise**2 + theirs.noise**2) ** 0.5
    if best.slowdown <= theirs.slowdown + noise:
        within = "" if best.slowdown <= theirs.slowdown else f"slower, but within the noise of {noise:.1%}"
        return Comparison(theirs, best, True, within)
    return Comparison(theirs, best, False, _why_slower(ours, theirs, best, noise))


def _why_slower(ours: Sequence[Point], theirs: Point, best: Point, noise: float) -> str:
    why = f"slower beyond the noise of {noise:.1%}" if noise else "slower"
    larger = smallest_within([p for p in ours if p.peak_bytes > theirs.peak_bytes], theirs.slowdown)
    if larger is not None:
        return f"{why}: as fast from {larger.peak_bytes / theirs.peak_bytes - 1:+.1%} of their peak on"
    fastest = min(ours, key=lambda p: p.slowdown)
    return f"{why}: our fastest point of all is at {100 * fastest.slowdown:+.1f}%"


def activation_ratio(ours: Point, theirs: Point) -> float | None:
    """Our activation peak over theirs; None if either is not known or nothing is left of theirs."""
    mine, other = ours.row.activation_peak_bytes, theirs.row.activation_peak_bytes
    return mine / other if mine is not None and other is not None and other > 0 else None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A model in a few numbers; None where no point allows a comparison."""

    time_at_equal_peak: float | None
    """Ours over the best other's, median over the others' points; below 1 is good."""
    peak_at_equal_time: float | None
    """Likewise: the smallest of ours that is as fast, over the smallest of theirs; below 1 is good."""
    activations_at_equal_time: float | None
    """Likewise, with the returned gradients taken off both."""
    area: float | None
    """Their curve minus ours, mean over the peaks that both can have, in percent of the anchor; above 0 is good."""


def numbers(ours: Sequence[Point], others: Sequence[Point]) -> Numbers:
    """The numbers of our curve against the best of all others at each of their points."""
    at_peak, at_time, activations = [], [], []
    for theirs in frontier(others):
        mine = fastest_within(ours, theirs.peak_bytes)
        if mine is not None:
            at_peak.append(mine.time / theirs.time)
        small = smallest_within(ours, theirs.slowdown)
        if small is not None:
            at_time.append(small.peak_bytes / theirs.peak_bytes)
            activations.append(activation_ratio(small, theirs))
    known = [ratio for ratio in activations if ratio is not None]
    medians = (statistics.median(ratios) if ratios else None for ratios in (at_peak, at_time, known))
    return Numbers(*medians, area_between(ours, others))


def area_between(ours: Sequence[Point], others: Sequence[Point]) -> float | None:
    """Mean of (their slowdown - ours) in percent, from where both curves begin to where both have ended falling."""
    curves = [frontier(ours), frontier(others)]
    if not all(curves):
        return None
    low = max(curve[0].peak_bytes for curve in curves)
    high = max(curve[-1].peak_bytes for curve in curves)
    if low >= high:
        return None
    edges = sorted({low, high, *(p.peak_bytes for curve in curves for p in curve if low < p.peak_bytes < high)})
    total = 0.0
    for left, right in pairwise(edges):
        mine, theirs = (fastest_within(curve, left) for curve in curves)
        assert mine is not None and theirs is not None
        total += (theirs.slowdown - mine.slowdown) * (right - left)
    return 100 * total / (high - low)
