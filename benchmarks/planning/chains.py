"""Chains of equal layers: how far the least peak is from what Griewank's revolve needs.

A value is one unit of memory and takes one unit of time; the gradient of a layer needs the layer's output. With s
checkpoints and no step run more than r times a chain of l <= C(s + r, s) steps can be reversed, in no fewer than
r * l - C(s + r, r - 1) runs, which lead to the last step (Griewank and Walther, "Algorithm 799: revolve", 2000,
https://doi.org/10.1145/347837.347846). A chain of n layers is l = n + 1 in that count, with the input as a checkpoint
that no peak counts; beside its checkpoints a plan holds three units, for a layer and two gradients or the other way
round.
"""

import math
import time
from collections.abc import Sequence

from benchmarks.contest.goals import Goal
from benchmarks.planning.section import Row, Run, Section, Table, at_most
from remat_pass.solver import frontier
from tests.support.problems import MIB, US, chain

_LENGTHS = (16, 32, 64, 100, 128, 256, 512, 1024)
_TRIAL_LENGTHS = (8, 16)
_WORKING_UNITS = 3
_NAMED = {100: (18, 12)}
"""By length: peaks to reach with one more forward, and with log2 n of them."""


def measure(run: Run) -> list[Row]:
    """One row per length; time is of the processor."""
    rows = []
    for n in _TRIAL_LENGTHS if run.trial else _LENGTHS:
        run.doing(f"a chain of {n}")
        problem = chain(n)
        begin = time.process_time()
        points = [[c.peak_bytes / MIB, c.recompute_ns / US] for c in frontier(problem)]
        rows.append({"n": n, "points": points, "seconds": time.process_time() - begin})
    return rows


def least_units(points: Sequence[Sequence[float]], extra: float) -> float | None:
    """The least peak of the points (peak, extra runs) with at most `extra` of these."""
    return min((peak for peak, runs in points if runs <= extra), default=None)


def revolve_units(n: int, extra: float) -> int:
    """The peak of revolve on a chain of n layers with at most `extra` runs beside the first n."""
    checkpoints = next(s for s in range(1, n + 1) if _fewest_runs(n + 1, s) <= n + extra)
    return checkpoints - 1 + _WORKING_UNITS


def _fewest_runs(steps: int, checkpoints: int) -> int:
    r = next(r for r in range(1, steps) if math.comb(checkpoints + r, checkpoints) >= steps)
    return r * steps - math.comb(checkpoints + r, r - 1)


def tables(rows: Sequence[Row]) -> list[Table]:
    """One row per length."""
    headings = ("n", "peak, 1 forward more", "revolve's", "peak, log2 n forwards more")
    headings += ("2 log2 n + 4", "revolve's", "least peak", "its forwards", "planning s")
    note = "Peaks in units of one value. Revolve is optimal for the runs it takes."
    return [Table("Chains of equal layers", headings, tuple(map(_cells, rows)), note)]


def _cells(row: Row) -> tuple[str, ...]:
    n, points = row["n"], row["points"]
    most = n * math.log2(n)
    peak, runs = min(points)
    return (
        str(n),
        _units(least_units(points, n)),
        str(revolve_units(n, n)),
        _units(least_units(points, most)),
        f"{_goal(n):.1f}",
        str(revolve_units(n, most)),
        _units(peak),
        f"{runs / n:.2f}",
        f"{row['seconds']:.1f}",
    )


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The logarithm for every length, and the two figures of a chain of 100."""
    found = []
    for row in rows:
        n, most = row["n"], row["n"] * math.log2(row["n"])
        least = least_units(row["points"], most)
        found.append(at_most("least peak <= 2 log2 n + 4, <= log2 n forwards more", f"n = {n}", least, _goal(n)))
        if n in _NAMED:
            one, several = _NAMED[n]
            figure = least_units(row["points"], n)
            found.append(at_most(f"peak <= {one}, one forward more", f"n = {n}", figure, one))
            found.append(at_most(f"peak <= {several}, <= log2 n forwards more", f"n = {n}", least, several))
    return found


def _goal(n: int) -> float:
    return 2 * math.log2(n) + 4


def _units(peak: float | None) -> str:
    return "–" if peak is None else f"{peak:g}"


SECTION = Section("chains", "Chains of equal layers", measure, tables, goals)
