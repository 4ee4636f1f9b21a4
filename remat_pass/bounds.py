"""A lower bound on the recompute time of every plan that fits, for graphs of any size.

Take any moment of backward, and a plan whose peak is at most the limit. Let Y be the forward values in memory then, and
R those that backward runs later. Then Y and R are a labelling as `mincut` has them, on the graph that ends in what is
read after that moment:

    every value read later is in Y or in R; every value that one in R is computed from is in Y or in R, or is an input

however often a value is recomputed, and in whatever order: the labels only say whether, not how often or when. The plan
recomputes each value of R at least once, and Y fits beside what backward itself has alive at that moment:

    recompute_ns(R) <= recompute time of the plan        bytes(Y) <= limit - bytes of backward values = room

So for every price p >= 0 of a byte the plan is bounded from below by one minimum cut (`_Dual._cut`):

    recompute time  >=  recompute_ns(R) + p * (bytes(Y) - room)
                    >=  min over all labellings of  recompute_ns + p * bytes  -  p * room  =:  L(p)

L is concave and piecewise linear, each labelling being a line in p; its maximum is found by intersecting the lines of a
labelling that takes too many bytes and of one that fits, until no cut lies below the intersection (`_Dual.maximum`).

The moments: the arrival of the tangents, when Y is what is saved (`_at_arrival`; writing it has its price too), and
steps of backward at which much is alive (`_at_step`), where what the step itself reads is in Y. The bound is the
largest over all of them. It is tight where saving is all or nothing; it knows nothing of what is alive while a value is
recomputed. With a lowering that fuses only the first moment holds, since values in between may not exist in memory.

Source: Lagrangian relaxation as in Geoffrion, "Lagrangean relaxation for integer programming", 1974.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from remat_pass.errors import InfeasibleBudgetError
from remat_pass.fixed_bytes import BackwardBytes, backward_bytes
from remat_pass.mincut import cheapest_saved_set
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import decide

_STEPS = 8
"""Steps of backward that are tried, one from each of as many equal segments."""
_MOST_CUTS = 40
_CUT_PRECISION = 2.0**-29
"""`mincut` rounds each capacity by at most this part of their sum."""


def lower_bound(problem: RematProblem, limit_bytes: int) -> int:
    """No plan whose peak is at most the limit adds less than this many nanoseconds; copies and any order included.

    Args:
        problem: The graph.
        limit_bytes: Most bytes alive at any step.

    Raises:
        InfeasibleBudgetError: What must be alive at one moment exceeds the limit, so that no plan fits.
    """
    return max(dual.maximum() for dual in _moments(problem, limit_bytes))


def _moments(problem: RematProblem, limit_bytes: int) -> Iterator["_Dual"]:
    fixed = backward_bytes(problem)
    yield _at_arrival(problem, fixed, limit_bytes)
    if not problem.fuses:
        for p in _busy_steps(problem, fixed):
            yield _at_step(problem, fixed, p, limit_bytes)


def _busy_steps(problem: RematProblem, fixed: BackwardBytes) -> list[int]:
    """The first position at which most is alive for certain, in each of some equal segments of backward."""
    first, end = len(problem.tangents), len(fixed.order)

    def certain_bytes(p: int) -> int:
        reads = problem.values[fixed.order[p]].reads
        return fixed.during[p] + sum(problem.values[b].size.hint for b in _bases(problem, reads))

    edges = [first + (end - first) * k // _STEPS for k in range(_STEPS + 1)]
    segments = [range(a, b) for a, b in pairwise(edges) if a < b]
    return [max(segment, key=lambda p: (certain_bytes(p), -p)) for segment in segments]


def _bases(problem: RematProblem, reads: tuple[int, ...]) -> frozenset[int]:
    """The forward values, inputs left out, whose storages are alive when the given values are read."""
    values, pending, bases = problem.values, list(reads), set()
    while pending:
        v = pending.pop()
        if not (values[v].needs_tangent or values[v].is_input or v in bases):
            bases.add(v)
            pending += values[v].holds
    return frozenset(bases)


def _at_arrival(problem: RematProblem, fixed: BackwardBytes, limit_bytes: int) -> "_Dual":
    return _Dual(problem, frozenset(), limit_bytes - (fixed.arrival if fixed.order else 0), limit_bytes)


def _at_step(problem: RematProblem, fixed: BackwardBytes, p: int, limit_bytes: int) -> "_Dual":
    """What may be alive at a step need not have been saved, so nothing is unsavable but views and tuples."""
    before = set(fixed.order[: p + 1])
    reads = problem.values[fixed.order[p]].reads
    values = list(problem.values)
    for v, value in enumerate(values):
        if v in before:
            values[v] = replace(value, reads=())
        elif not value.needs_tangent:
            values[v] = replace(value, save_ns=0, cannot_save=_cannot_be_alive(problem, v))
    later = replace(problem, values=tuple(values))
    present = frozenset(b for b in _bases(problem, reads) if values[b].cannot_save is None)
    room = limit_bytes - fixed.during[p] - sum(values[b].size.hint for b in present)
    return _Dual(later, present, room, limit_bytes)


def _cannot_be_alive(problem: RematProblem, v: int) -> str | None:
    """Why a value can be taken not to outlive its readers of the moment: what it stands for is alive instead."""
    value = problem.values[v]
    if any(problem.values[r].kind is Kind.PART for r in problem.readers[v]):
        return "its parts run right behind it"
    if value.kind is Kind.VIEW and not value.recompute_ns and set(value.reads) == set(value.holds):
        return "its base is alive, and computing it again is free"
    return None


@dataclass(frozen=True, slots=True)
class _Line:
    """What one labelling contributes to the dual: recompute_ns + p * (bytes - room)."""

    recompute_ns: int
    over_bytes: int

    def at(self, price: float) -> float:
        return self.recompute_ns + price * self.over_bytes


@dataclass(frozen=True)
class _Dual:
    """The function L of the module docstring at one moment."""

    problem: RematProblem
    present: frozenset[int]
    """Values that are alive in any case; their bytes are not in the room."""
    room: int
    limit_bytes: int

    def maximum(self) -> int:
        """The largest L(p), rounded up: times are whole nanoseconds."""
        highest = 1.0 + sum(v.recompute_ns + v.save_ns for v in self.problem.values if not v.needs_tangent)
        over, under = self._cut(0.0), self._cut(highest)
        if over.over_bytes <= 0:
            return self._certain(over, 0.0)
        if under.over_bytes > 0:
            return self._without_room(under, highest)
        best = 0
        for _ in range(_MOST_CUTS):
            price = (under.recompute_ns - over.recompute_ns) / (over.over_bytes - under.over_bytes)
            line = self._cut(price)
            least = min(line, over, key=lambda known: known.at(price))
            best = max(best, self._certain(least, price))
            if line.at(price) >= over.at(price) * (1 - 1e-9):
                break
            over, under = (line, under) if line.over_bytes > 0 else (over, line)
        return best

    def _without_room(self, least: _Line, price: float) -> int:
        """Even the labelling of fewest bytes takes too many, unless that is an error of rounding."""
        if least.over_bytes <= self._slack(1.0):
            return self._certain(least, price)
        raise InfeasibleBudgetError(
            f"no plan fits {self.limit_bytes} bytes: what must be alive at one moment of backward takes about "
            f"{least.over_bytes} bytes more. Raise the limit.",
            budget_bytes=self.limit_bytes,
            least_peak_bytes=self.limit_bytes + least.over_bytes,
        )

    def _cut(self, price: float) -> _Line:
        """The labelling of a minimum cut."""
        values = self.problem.values
        keep = cheapest_saved_set(self.problem, price, forced=self.present, honour_wishes=False)
        decisions = decide(self.problem, keep | self.present)
        saved = [values[v] for v in decisions.saved if not (values[v].is_input or v in self.present)]
        repeated = (values[v].recompute_ns for v in decisions.recomputed if self.problem.runs_in_forward[v])
        return _Line(sum(repeated) + sum(v.save_ns for v in saved), sum(v.size.hint for v in saved) - self.room)

    def _certain(self, line: _Line, price: float) -> int:
        """What is certain of the bound at a price, given that its cut is minimal in rounded capacities only."""
        return max(0, math.ceil(line.at(price) - self._slack(price) - 1e-6))

    def _slack(self, price: float) -> float:
        forward = [v for v in self.problem.values if not v.needs_tangent]
        capacities = sum(v.recompute_ns + v.save_ns + price * v.size.hint for v in forward)
        return 2 * len(forward) * max(capacities * _CUT_PRECISION, 1e-6)
