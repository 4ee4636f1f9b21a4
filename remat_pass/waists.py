"""Where forward can be cut: what crosses its steps, and blocks between narrow ones.

A *waist* is a position of the forward graph that few bytes cross. With what crosses it saved, what lies between two
waists can be recomputed and dropped by itself. A cut in the sense of `mincut` does not see this: it is blind to how
long a recomputed value lives, and where nothing on the residual path is saved all layers are recomputed as one live
block whose peak is that of saving everything (pytorch#197838).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from remat_pass.problem import Kind, RematProblem

_RISE = 1.25
"""A waist is a valley of the crossing bytes that both sides leave by at least this factor."""

_WIDE = 1.5
"""A waist this much wider than those on both sides of it lies inside a layer."""

_SHARED = 0.15
"""A value alive for a larger part of forward is no obstacle to a cut: it crosses most of them anyway."""

_SHORT = 32
"""Steps of forward that are no long time in the smallest of graphs."""

_CHEAP = 0.01
"""Share of the forward time up to which computing a shared value from the inputs is called cheap."""


@dataclass(frozen=True)
class Blocks:
    """Forward cut into consecutive blocks."""

    crossing: tuple[frozenset[int], ...]
    """What later blocks read of block k and those before it; nothing for the last."""
    members: tuple[frozenset[int], ...]
    """The forward values of each block, inputs left out."""
    block_of: np.ndarray
    """Block of every value; 0 for inputs and backward values. Shape (values,), int64."""
    last_reader: tuple[int, ...]
    """The backward value after which nothing reads the inside of block k or of later ones; falling with k.

    -1 where backward reads nothing of them.
    """
    repeated: frozenset[int] = frozenset()
    """Values that every window computes anew."""

    @cached_property
    def waists(self) -> frozenset[int]:
        """All that crosses some waist."""
        return frozenset[int]().union(*self.crossing)

    @property
    def forgotten(self) -> dict[int, frozenset[int]]:
        """After which backward value the repeated ones are dropped."""
        readers = (v for v in self.last_reader if v >= 0)
        return dict.fromkeys(readers, self.repeated) if self.repeated else {}

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.members)


@dataclass(frozen=True)
class Forward:
    """The steps of forward and what crosses them."""

    steps: tuple[int, ...]
    """Values that forward runs, in order."""
    last_read: np.ndarray
    """For every value the last forward value that needs its storage, through views too; -1 if none. Shape (values,)."""
    crossing_bytes: np.ndarray
    """Bytes of savable values alive behind each step, without those alive most of the time, such as an attention mask;
    shape (steps,), int64."""
    local: frozenset[int]
    """The values that `crossing_bytes` counts."""
    shared: frozenset[int]
    """Those alive most of the time."""


def measure_forward(problem: RematProblem) -> Forward:
    """Find what crosses each step of forward. Linear in the graph."""
    values = problem.values
    steps = tuple(i for i in problem.forward_values if problem.runs_in_forward[i] and i not in problem.inputs)
    last_read = [-1] * len(values)
    for i in reversed(steps):
        for read in values[i].reads:
            # A view keeps its base alive: the base crosses as long as the view does.
            use = max(i, last_read[i]) if read in values[i].holds else i
            last_read[read] = max(last_read[read], use)
    position = {v: p for p, v in enumerate(steps)}
    change = np.zeros(len(steps) + 1, dtype=np.int64)
    local, shared = [], []
    for p, v in enumerate(steps):
        if not _savable(problem, v) or last_read[v] <= v:
            continue
        end = position[last_read[v]]
        if end - p <= max(_SHARED * len(steps), _SHORT):
            local.append(v)
            # A part is there as soon as its op has run.
            change[position[values[v].reads[0]] if values[v].kind is Kind.PART else p] += values[v].size.hint
            change[end] -= values[v].size.hint
        else:
            shared.append(v)
    return Forward(steps, np.array(last_read), change.cumsum()[:-1], frozenset(local), frozenset(shared))


def crossings(problem: RematProblem, forward: Forward, steps: list[int]) -> list[frozenset[int]]:
    """For each of the steps, which are in order, the savable values computed by then that later ones read."""
    alive: list[int] = []
    found, start = [], 0
    for p in steps:
        at = forward.steps[p]
        alive += [v for v in forward.steps[start : p + 1] if _savable(problem, v)]
        alive = [v for v in alive if forward.last_read[v] > at]
        found.append(frozenset(alive))
        start = p + 1
    return found


def cheap_to_repeat(problem: RematProblem, forward: Forward) -> frozenset[int]:
    """Shared values that take next to no time to compute from the inputs, such as masks, and all on the way there."""
    limit_ns = _CHEAP * sum(problem.values[v].recompute_ns for v in forward.steps)
    return frozenset().union(*(_origin(problem, v, limit_ns) for v in forward.shared))


def _origin(problem: RematProblem, v: int, limit_ns: float) -> set[int]:
    """A value and all it is computed from, inputs left out; nothing if that takes longer or must not be repeated."""
    total, pending, origin = 0.0, [v], {v}
    while pending:
        value = problem.values[pending.pop()]
        total += value.recompute_ns
        if value.cannot_recompute or total > limit_ns:
            return set()
        new = [r for r in value.reads if r not in origin and r not in problem.inputs]
        origin.update(new)
        pending += new
    return origin


def narrow_waists(problem: RematProblem, forward: Forward) -> list[int]:
    """Steps behind which few bytes cross, in order.

    They are the valleys of the crossing bytes; of neighbours that the same largest value crosses only the narrowest,
    and none between much narrower ones, at most two away on either side.
    """
    sizes = forward.crossing_bytes.tolist()
    steps: list[int] = []
    largest = -1
    valleys = [p for p in _valleys(sizes) if sizes[p]]
    for p, crossing in zip(valleys, crossings(problem, forward, valleys), strict=True):
        shared = max(crossing & forward.local, key=lambda v: (problem.size_bytes[v], -v))
        if steps and shared == largest:
            steps[-1] = min(steps[-1], p, key=lambda q: sizes[q])
        else:
            steps.append(p)
        largest = shared
    return [p for k, p in enumerate(steps) if not _is_wide(sizes, p, steps[max(0, k - 2) : k], steps[k + 1 : k + 3])]


def narrowest(forward: Forward, count: int) -> list[int]:
    """The narrowest step of each of `count` windows of equal length, in order; the earliest of equally narrow ones."""
    sizes = forward.crossing_bytes
    edges = np.linspace(0, len(sizes), count + 1).astype(int)
    chosen = [a + int(sizes[a:b].argmin()) for a, b in pairwise(edges.tolist()) if b > a]
    return [p for p in dict.fromkeys(chosen) if sizes[p] and p < len(sizes) - 1]


def thin_out(forward: Forward, steps: list[int], count: int) -> list[int]:
    """At most `count` of the steps: of each run of neighbours the narrowest."""
    if len(steps) <= count:
        return steps
    sizes = forward.crossing_bytes
    groups = np.array_split(np.array(steps), count)
    return [int(group[sizes[group].argmin()]) for group in groups]


def cut_into_blocks(
    problem: RematProblem, forward: Forward, cuts: list[int], repeated: frozenset[int] = frozenset()
) -> Blocks:
    """Blocks that end behind the given steps, and one more.

    Args:
        problem: The graph.
        forward: What crosses its steps.
        cuts: The steps, in order.
        repeated: Values that are not to be saved at waists but computed anew in every window.
    """
    bounds = np.array([forward.steps[p] for p in cuts], dtype=np.int64)
    block_of = np.searchsorted(bounds, np.arange(len(problem.values)))
    members: list[list[int]] = [[] for _ in range(len(cuts) + 1)]
    for v, value in enumerate(problem.values):
        if value.needs_tangent or value.is_input:
            block_of[v] = 0
            continue
        if not problem.runs_in_forward[v]:  # it belongs to what it is computed from, wherever it was traced
            block_of[v] = max((block_of[r] for r in value.reads), default=0)
        members[block_of[v]].append(v)
    crossing = (*(c - repeated for c in crossings(problem, forward, cuts)), frozenset[int]())
    inside = tuple(frozenset(m) for m in members)
    return Blocks(crossing, inside, block_of, _last_readers(problem, block_of, crossing, repeated), repeated)


def _valleys(sizes: list[int]) -> list[int]:
    """Positions of the lowest sizes between rises by `_RISE` or more, in order."""
    found: list[int] = []
    low, high, falling = 0, 0, True
    for p, size in enumerate(sizes):
        if falling:
            if size <= sizes[low]:
                low = p
            elif size > sizes[low] * _RISE:
                found.append(low)
                falling, high = False, p
        elif size >= sizes[high]:
            high = p
        elif size * _RISE < sizes[high]:
            falling, low = True, p
    return found


def _is_wide(sizes: list[int], p: int, before: list[int], behind: list[int]) -> bool:
    """Whether much fewer bytes cross on both sides of step p: on one side alone it may be the start of forward."""
    return all(any(sizes[p] > _WIDE * sizes[q] for q in beside) for beside in (before, behind))


def _last_readers(
    problem: RematProblem, block_of: np.ndarray, crossing: tuple[frozenset[int], ...], repeated: frozenset[int]
) -> tuple[int, ...]:
    """A waist is read in the window of the block behind it, the last one that it does not cross."""
    window_of = block_of.copy()
    for k, waist in enumerate(crossing[:-1]):
        window_of[list(waist)] = k + 1
    order = problem.runs_in_backward
    last = [-1] * len(crossing)
    for p, i in enumerate(order):
        for read in problem.values[i].reads:
            if not problem.values[read].needs_tangent and read not in problem.inputs and read not in repeated:
                last[window_of[read]] = p
    for k in reversed(range(len(last) - 1)):
        last[k] = max(last[k], last[k + 1])
    return tuple(order[p] if p >= 0 else -1 for p in last)


def _savable(problem: RematProblem, v: int) -> bool:
    value = problem.values[v]
    return value.cannot_save is None and value.size.hint > 0
