"""The planner: from a problem to the frontier of peak against recompute time, and from a budget to a plan.

    1. sweep     one min cut per price of memory (`mincut`), plain and with checkpoints forced into the saved set: what
                 crosses the narrow waists of the forward graph, all of them or every k-th, or the narrowest positions
                 that divide it into k segments
    2. judge     every candidate by the peak of its own schedule (`schedule`, `liveness`), never by a sum of bytes
    3. mix       two neighbours on the frontier at a position of the joint graph: one's decisions before it, the
                 other's after it; identical layers, which flip together in a sweep, are told apart here
    4. choose    the fastest candidate whose peak fits

Waists matter because a cut is blind to how long a recomputed value lives. At a high price nothing on the residual path
is saved, all layers are recomputed as one live block, and the peak jumps back to that of saving everything. A waist is
a position of the forward graph that few bytes cross; with what crosses it saved, what lies between two waists can be
recomputed and dropped by itself.

The candidates do not depend on the budget, so a smaller budget chooses from a subset: the peak never rises when the
budget falls. Ties are broken by peak, then by order of generation; nothing iterates over a set.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from remat_pass.liveness import simulate
from remat_pass.mincut import cheapest_saved_set
from remat_pass.problem import RematProblem
from remat_pass.schedule import Decisions, added_ns, decide, lay_out, repeats

_PRICES = 16
_WAIST_STRIDES = (1, 2, 3, 4, 6, 8)
_SEGMENTS = (2, 3, 4, 6, 8, 12, 16)
_WAIST_RISE = 1.25
"""A waist is a valley of the crossing bytes that both sides leave by at least this factor."""
_MIX_ROUNDS = 3
_MIX_POSITIONS = 24
_STEPS_TO_SIMULATE = 2_000_000
"""Effort of mixing: candidates times graph size. Keeps planning in seconds for graphs of any size."""
_WIDE = 1.5
"""A waist this much wider than its neighbour lies inside a layer."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to plan a graph, judged by simulation."""

    keep: frozenset[int]
    decisions: Decisions
    peak_bytes: int
    recompute_ns: int


def frontier(
    problem: RematProblem, *, extra: Iterable[frozenset[int]] = (), honour_wishes: bool = True
) -> tuple[Candidate, ...]:
    """The planner's best trade-offs.

    Args:
        problem: The graph to plan.
        extra: Further sets of values to keep that are to be judged too (the plan of another partitioner).
        honour_wishes: Whether the user's tags bind.

    Returns:
        Candidates by falling peak and rising recompute time, the fastest first, none dominated by another.
    """
    judge = _Judge(problem, honour_wishes)
    for keep in (_everything(problem), *extra, *_sweep(problem, honour_wishes)):
        judge.add(keep)
    for _ in range(_MIX_ROUNDS):
        for keep in list(_mixes(problem, judge.frontier())):
            judge.add(keep)
    return judge.frontier()


def fastest_within(candidates: tuple[Candidate, ...], limit_bytes: int) -> Candidate | None:
    """The fastest candidate whose simulated peak is at most the limit, or None."""
    return next((c for c in candidates if c.peak_bytes <= limit_bytes), None)


def evaluate(problem: RematProblem, keep: frozenset[int]) -> Candidate:
    """Judge one set of values to keep."""
    decisions = decide(problem, keep)
    program = lay_out(problem, decisions)
    peak_bytes = simulate(problem, program).peak_bytes
    return Candidate(keep, decisions, peak_bytes, added_ns(problem, decisions.saved, repeats(program)))


class _Judge:
    """Candidates seen so far; judges each distinct decision once."""

    def __init__(self, problem: RematProblem, honour_wishes: bool) -> None:
        self.problem = problem
        self.wish_save: frozenset[int] = frozenset()
        self.wish_recompute: frozenset[int] = frozenset()
        if honour_wishes:
            self.wish_save = frozenset(i for i, v in enumerate(problem.values) if v.wish == "save")
            self.wish_recompute = frozenset(i for i, v in enumerate(problem.values) if v.wish == "recompute")
        self.seen: set[tuple[int, ...]] = set()
        self.candidates: list[Candidate] = []

    def add(self, keep: frozenset[int]) -> None:
        keep = (keep | self.wish_save) - self.wish_recompute
        saved = decide(self.problem, keep).saved
        if saved not in self.seen:
            self.seen.add(saved)
            self.candidates.append(evaluate(self.problem, keep))

    def frontier(self) -> tuple[Candidate, ...]:
        best: list[Candidate] = []
        for candidate in sorted(self.candidates, key=lambda c: (c.recompute_ns, c.peak_bytes)):
            if not best or candidate.peak_bytes < best[-1].peak_bytes:
                best.append(candidate)
        return tuple(best)


def _everything(problem: RematProblem) -> frozenset[int]:
    return frozenset(i for i, v in enumerate(problem.values) if problem.runs_in_forward[i] and v.cannot_save is None)


def _sweep(problem: RematProblem, honour_wishes: bool) -> Iterator[frozenset[int]]:
    prices = _prices(problem)
    for forced in dict.fromkeys([frozenset[int](), *_checkpoints(problem)]):
        for price in prices:
            yield forced | cheapest_saved_set(problem, price, forced=forced, honour_wishes=honour_wishes)


def _checkpoints(problem: RematProblem) -> Iterator[frozenset[int]]:
    """Sets of values that cut forward into segments, each of which can be recomputed and dropped by itself."""
    shared, crossing = _crossing(problem)
    waists = narrow_waists(problem)
    for stride in _WAIST_STRIDES:
        if stride <= len(waists):
            yield shared.union(*waists[::stride])
    sizes = [_bytes(problem, crossed) for crossed in crossing]
    for segments in _SEGMENTS:
        length = len(crossing) / segments
        if length >= 2:
            windows = (range(int(length * (k - 0.5)), int(length * (k + 0.5))) for k in range(1, segments))
            yield shared.union(*(crossing[min(window, key=lambda p: (sizes[p], p))] for window in windows))


def _prices(problem: RematProblem) -> list[float]:
    """From "a byte is worth nothing" to "any byte is worth recomputing everything", in nanoseconds per byte."""
    ratios = [
        v.recompute_ns / v.size.hint for v in problem.values if v.recompute_ns and v.size.hint and not v.needs_tangent
    ]
    if not ratios:
        return [0.0]
    total_ns = sum(v.recompute_ns for v in problem.values if not v.needs_tangent)
    largest = max(v.size.hint for v in problem.values)
    low, high = min(ratios) / 4, max(max(ratios), total_ns / largest) * 4
    step = (high / low) ** (1 / (_PRICES - 1))
    return [low * 1e-3, *(low * step**i for i in range(_PRICES))]


def narrow_waists(problem: RematProblem) -> list[tuple[int, ...]]:
    """Sets of values that together separate what is before a position of forward from what is after it.

    Returns:
        One tuple per valley of the bytes that cross a position, in forward order; only values that can be saved, and
        without those that cross most positions. Of neighbouring valleys with the same largest value the narrowest, and
        none beside a much narrower one.
    """
    _, crossing = _crossing(problem)
    waists: list[tuple[int, ...]] = []
    for p in _valleys([_bytes(problem, crossed) for crossed in crossing]):
        if waists and _largest(problem, waists[-1]) == _largest(problem, crossing[p]):
            waists[-1] = min(waists[-1], crossing[p], key=lambda crossed: _bytes(problem, crossed))
        else:
            waists.append(crossing[p])
    while wide := [c for c, *beside in _neighbours(waists) if _is_wide(problem, c, beside)]:
        waists = [c for c in waists if c not in wide]
    return waists


def _neighbours(waists: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Each waist with those before and behind it."""
    return [[c, *waists[max(0, k - 1) : k], *waists[k + 1 : k + 2]] for k, c in enumerate(waists)]


def _is_wide(problem: RematProblem, crossed: tuple[int, ...], beside: list[tuple[int, ...]]) -> bool:
    return any(_bytes(problem, crossed) > _WIDE * _bytes(problem, other) for other in beside)


def _bytes(problem: RematProblem, crossed: tuple[int, ...]) -> int:
    return sum(problem.values[v].size.hint for v in crossed)


def _largest(problem: RematProblem, crossed: tuple[int, ...]) -> int:
    return max(crossed, key=lambda v: problem.values[v].size.hint)


def _valleys(sizes: list[int]) -> list[int]:
    """Positions of the lowest sizes between rises by `_WAIST_RISE` or more, in order."""
    valleys: list[int] = []
    low, high = 0, 0
    falling = True
    for p, size in enumerate(sizes):
        if falling:
            if size <= sizes[low]:
                low = p
            elif size > sizes[low] * _WAIST_RISE:
                valleys.append(low)
                falling, high = False, p
        elif size >= sizes[high]:
            high = p
        elif size * _WAIST_RISE < sizes[high]:
            falling, low = True, p
    return valleys


def _crossing(problem: RematProblem) -> tuple[frozenset[int], list[tuple[int, ...]]]:
    """What is alive across the steps of forward: savable values computed by then that later forward steps read.

    Returns:
        The values that cross most steps, such as an attention mask, and for every step the others, where there are any.
    """
    values = problem.values
    forward = [i for i in problem.forward_values if problem.runs_in_forward[i] and i not in problem.inputs]
    last_read = [-1] * len(values)
    for i in reversed(forward):
        for read in values[i].reads:
            # A view keeps its base alive: the base crosses as long as the view does.
            use = max(i, last_read[i]) if read in values[i].holds else i
            last_read[read] = max(last_read[read], use)
    crossing: list[list[int]] = []
    count: dict[int, int] = {}
    alive: list[int] = []
    for i in forward:
        savable = values[i].cannot_save is None and values[i].size.hint > 0
        alive = [a for a in (*alive, *([i] if savable else [])) if last_read[a] > i]
        crossing.append(alive)
        for a in alive:
            count[a] = count.get(a, 0) + 1
    shared = frozenset(a for a, steps in count.items() if steps * 4 > len(forward) * 3)
    local = (tuple(a for a in crossed if a not in shared) for crossed in crossing)
    return shared, [crossed for crossed in local if crossed]


def _mixes(problem: RematProblem, candidates: tuple[Candidate, ...]) -> Iterator[frozenset[int]]:
    """Neighbours on the frontier, and neighbours but one, mixed at evenly spaced positions both ways round."""
    forward = [i for i in range(len(problem.values)) if problem.runs_in_forward[i]]
    if len(candidates) < 2 or not forward:
        return
    pairs = [(i, i + d) for d in (1, 2) for i in range(len(candidates) - d)]
    effort = max(1, _STEPS_TO_SIMULATE // (_MIX_ROUNDS * len(problem.values)))
    spread = candidates[0].peak_bytes - candidates[-1].peak_bytes
    # Wide gaps first: where the frontier is already dense, mixing adds nothing a user would notice.
    pairs.sort(key=lambda p: (candidates[p[1]].peak_bytes - candidates[p[0]].peak_bytes, p))
    pairs = [(i, j) for i, j in pairs if candidates[i].peak_bytes - candidates[j].peak_bytes > spread / 100]
    positions = min(_MIX_POSITIONS, max(4, math.ceil(effort / max(1, 2 * len(pairs)))))
    for i, j in pairs[: max(1, effort // (2 * positions))]:
        for k in range(1, positions):
            at = forward[len(forward) * k // positions]
            for first, second in ((candidates[i].keep, candidates[j].keep), (candidates[j].keep, candidates[i].keep)):
                yield frozenset([v for v in first if v < at] + [v for v in second if v >= at])
