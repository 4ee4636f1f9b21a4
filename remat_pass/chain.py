"""Checkpoints and reruns: dynamic programming over forward cut into blocks.

Forward is cut at *waists*, positions that few bytes cross. With what crosses them at hand, a block can be recomputed
by itself, and its *window*, the stretch of backward that reads it, can be run and left behind:

    forward    block 0 │ block 1 │ ... │ block n-1          C(k) crosses behind block k
    backward                             window n-1 ... window 1, window 0

Each block has *options*: what forward saves inside it, from all to nothing. Two questions are answered for
every number of free bytes m at once. With C(s-1) at hand, what does it cost at least to run

    first(s, m)      windows n-1 .. s, if blocks s .. n-1 are yet to run in forward, which is free
        = min over options o of  extra(s, o) + first(s+1, m - saved(s, o) - new(s, s-1))       save inside block s
          min over k > s of      first(k, m - new(k-1, s-1)) + again(s, k-1, m)                 save C(k-1) only
    again(s, t, m)   windows t .. s, if blocks s .. t have to be run again
        = extra(s, nothing saved) if s = t, else
          min over options o of  rerun(s) + extra(s, o) + again(s+1, t, m - saved(s, o) - new(s, s-1))
          min over k of          rerun(s .. k-1) + again(k, t, m - new(k-1, s-1)) + again(s, k-1, m)

where new(k, s) are the bytes of C(k) that are not in C(s), and a choice is possible where m covers what its own window
and its own forward need beside it (`_Figures`). In the second line of `again` blocks s .. k-1 are run a second time:
these plans have several copies of a value, and what is in memory is *forgotten* in between.

The figures are read off one simulated plan per option; they add up exactly where blocks touch each other through C
alone. The plans that come out are proposals: the solver simulates each.

Source: Beaumont et al., "Optimal re-materialization strategies for heterogeneous chains" (Rotor), 2019,
https://arxiv.org/abs/1911.13214, for the recursion; options per block as in Zhao et al., "Rockmate", ICML 2023,
https://arxiv.org/abs/2307.01236. Griewank and Walther's revolve is the case of one option and equal blocks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from remat_pass.liveness import Liveness
from remat_pass.problem import RematProblem
from remat_pass.schedule import Decisions, Program
from remat_pass.search import Proposal, Simulated
from remat_pass.waists import Blocks

_LEVELS = 300
"""Into how many steps, at least, the bytes from nothing to the largest peak are divided."""

_MOST_LEVELS = 600

_HEADROOM = 1.05
"""Bytes are rounded to levels, so that a plan may seem to need a little more than it does."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """Of one option, per block; int64 arrays of shape (blocks,)."""

    peak_bytes: int
    """Of the whole plan."""
    saved: np.ndarray
    """Bytes saved inside the block."""
    extra_ns: np.ndarray
    """Time that its window adds to the step."""
    window: np.ndarray
    """Bytes that must be free for its window, those saved inside included."""
    forward: np.ndarray
    """Bytes that must be free for running the block in forward."""
    gradients: np.ndarray
    """Bytes of gradients and other backward values alive when its window begins."""


def propose(
    problem: RematProblem,
    blocks: Blocks,
    options: list[frozenset[int]],
    count: int,
    judge: Callable[[Proposal], Simulated],
) -> Iterator[Proposal]:
    """The best plans of the recursion, from the fastest to the one of least peak.

    Args:
        problem: The graph.
        blocks: Its forward, cut into blocks.
        options: Sets of values to keep inside of blocks, over the whole graph.
        count: How many plans to propose at most.
        judge: Simulates a plan; called once for every option.
    """
    table = _Table(problem, blocks, options, judge)
    first = table.first[0]
    steps = [m for m in range(1, table.levels + 1) if first[m] < first[m - 1]]
    if len(steps) > count:
        steps = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    for level in reversed(steps):
        yield table.proposal(level)


class _Table:
    """`first` and `again` of the module docstring, over levels of free bytes.

    Costs are arrays of shape (rows, levels + 1): `again[d][s]` is again(s, s + d), `first[s]` a row by itself.
    """

    def __init__(
        self,
        problem: RematProblem,
        blocks: Blocks,
        options: list[frozenset[int]],
        judge: Callable[[Proposal], Simulated],
    ) -> None:
        self.problem, self.blocks, self.count = problem, blocks, blocks.count
        self.waists = [frozenset[int](), *blocks.crossing]
        self.inside = [[(o & members) - blocks.repeated for members in blocks.members] for o in options]
        plans = [Proposal((o | blocks.waists) - blocks.repeated, blocks.forgotten) for o in options]
        figures = [_figures(problem, blocks, judge(plan)) for plan in plans]
        peak_bytes = _HEADROOM * max(f.peak_bytes for f in figures)
        self.unit = self._unit(peak_bytes)
        self.levels = int(peak_bytes / self.unit) + 1
        self.new = np.array([[self._new(a, b) for b in range(self.count + 1)] for a in range(self.count + 1)])
        self.new = np.rint(self.new / self.unit).astype(int)
        # Rows are options, columns blocks.
        self.saved = np.rint(np.array([f.saved for f in figures]) / self.unit).astype(int)
        self.extra_ns = np.array([f.extra_ns for f in figures], dtype=np.float32)
        self.needs = self._in_levels([np.maximum(f.window, f.forward) for f in figures])
        self.forward = self._in_levels([f.forward for f in figures])
        self.gradients = self._in_levels(np.minimum.reduce([f.gradients for f in figures]))
        self.rerun_ns = np.array([_rerun_ns(problem, blocks, k) for k in range(self.count)], dtype=np.float32)
        # The option that saves least inside a block is what a rerun falls back to.
        self.least = self.saved.argmin(axis=0)
        self.again: list[np.ndarray] = []
        self.again_choice: list[np.ndarray] = []
        for length in range(self.count):
            cost, choice = _least(self._again_choices(length))
            self.again.append(cost)
            self.again_choice.append(choice)
        self.first = [np.zeros(self.levels + 1, dtype=np.float32)] * (self.count + 1)
        self.first_choice = [np.zeros(self.levels + 1, dtype=np.int16)] * (self.count + 1)
        for s in reversed(range(self.count)):
            cost, choice = _least(self._first_choices(s))
            self.first[s], self.first_choice[s] = cost[0], choice[0]

    def proposal(self, level: int) -> Proposal:
        """The plan behind `first(0, level)`."""
        keep: set[int] = set()
        forgotten = self.blocks.forgotten
        s = 0
        while s < self.count:
            which = int(self.first_choice[s][level])
            if which >= 0:
                keep |= self.inside[which][s] | self.blocks.crossing[s]
                level -= self.saved[which, s] + self.new[s, s + 1]
                s += 1
            else:
                middle = s - which
                keep |= self.waists[middle]
                self._walk(s, middle - 1, level, s, frozenset(), forgotten)
                level -= self.new[s, middle]
                s = middle
        return Proposal(frozenset(keep), forgotten)

    def _walk(
        self, s: int, t: int, level: int, start: int, held: frozenset[int], forgotten: dict[int, frozenset[int]]
    ) -> None:
        """Write down what windows t .. s forget; `held` is what the blocks from `start` on have to keep for later."""
        if s == t:
            in_blocks = frozenset[int]().union(*self.blocks.members[start : s + 1])
            last = self.blocks.last_reader[s]
            if last >= 0:
                forgotten[last] = forgotten.get(last, frozenset()) | (in_blocks - held)
            return
        which = int(self.again_choice[t - s][s, level])
        is_option = which >= 0
        middle = s + 1 if is_option else s - which
        kept = held | self.waists[middle] | (self.inside[which][s] if is_option else frozenset())
        saved = self.saved[which, s] if is_option else 0
        self._walk(middle, t, level - saved - self.new[s, middle], start, kept, forgotten)
        self._walk(s, middle - 1, level, start, held, forgotten)

    def _first_choices(self, s: int) -> Iterator[tuple[int, np.ndarray]]:
        """Ways to go on from block s and their costs, of shape (1, levels + 1).

        A way is an option, or -j to checkpoint behind the next j blocks.
        """
        for o in range(len(self.inside)):
            rest = _shifted(self.first[s + 1][None], self.saved[o, s : s + 1] + self.new[s, s + 1])
            rest += self.extra_ns[o, s]
            yield o, _where(rest, self.needs[o, s : s + 1])
        reach = np.zeros(1, dtype=np.float32)
        for k in range(s + 1, self.count + 1):
            reach = np.maximum(reach, self.forward[self.least[k - 1], k - 1])
            rest = _shifted(self.first[k][None], self.new[s : s + 1, k])
            rest += self.again[k - 1 - s][s]
            yield s - k, _where(rest, reach)

    def _again_choices(self, length: int) -> Iterator[tuple[int, np.ndarray]]:
        """The same for blocks s .. s + length, for all s at once."""
        s = np.arange(self.count - length)
        if not length:
            cost = np.repeat(self.extra_ns[self.least[s], s][:, None], self.levels + 1, axis=1)
            yield 0, _where(cost, self.needs[self.least[s], s])
            return
        t = s + length
        for o in range(len(self.inside)):
            rest = _shifted(self.again[length - 1][s + 1], self.saved[o, s] + self.new[s, s + 1])
            rest += (self.rerun_ns[s] + self.extra_ns[o, s])[:, None]
            yield o, _where(rest, np.maximum(self.needs[o, s], self.forward[self.least[s], s] + self.gradients[t]))
        rerun, reach = (np.zeros(len(s), dtype=np.float32) for _ in range(2))
        for j in range(1, length + 1):
            rerun = rerun + self.rerun_ns[s + j - 1]
            reach = np.maximum(reach, self.forward[self.least[s + j - 1], s + j - 1] + self.gradients[t])
            later = _shifted(self.again[length - j][s + j], self.new[s, s + j])
            later += self.again[j - 1][s]
            later += rerun[:, None]
            yield -j, _where(later, reach)

    def _in_levels(self, size_bytes: list[np.ndarray] | np.ndarray) -> np.ndarray:
        return (np.array(size_bytes) / self.unit).astype(np.float32)

    def _unit(self, peak_bytes: float) -> float:
        """Bytes of a level: the typical waist is a whole number of them, so that equal blocks add up without error."""
        waists = [self._new(k - 1, k) for k in range(1, self.count)]
        typical = float(np.median([w for w in waists if w] or [1]))
        coarsest, finest = max(1.0, peak_bytes / _LEVELS), max(1.0, peak_bytes / _MOST_LEVELS)
        return max(finest, typical / math.ceil(typical / coarsest))

    def _new(self, a: int, b: int) -> int:
        """Bytes that cross behind block b - 1 but not behind block a - 1."""
        return int(sum(self.problem.size_bytes[v] for v in self.waists[b] - self.waists[a]))


def _figures(problem: RematProblem, blocks: Blocks, simulated: Simulated) -> _Figures:
    """Of the plan that saves all waists and, inside the blocks, the values of an option."""
    program, liveness = simulated.program, simulated.liveness
    block = blocks.block_of[program.steps]
    end = program.forward_end
    crosses = liveness.last_use[:end] >= end
    held = np.where(crosses, liveness.born[:end], 0)
    held_per_block = np.bincount(block[:end], weights=held, minlength=blocks.count).astype(np.int64)
    below = np.concatenate(([0], held_per_block.cumsum()[:-1]))
    in_waist = np.zeros(len(problem.values), dtype=bool)
    in_waist[list(blocks.waists)] = True
    inside = np.where(in_waist[program.steps[:end]], 0, held)
    windows = _windows(blocks, program)
    return _Figures(
        liveness.peak_bytes,
        np.bincount(block[:end], weights=inside, minlength=blocks.count).astype(np.int64),
        _extra_ns(problem, blocks, program, windows, simulated.decisions),
        *_needs(program, liveness, windows, block[:end], held, below),
    )


def _windows(blocks: Blocks, program: Program) -> list[range]:
    """Positions of the window of each block."""
    end = program.forward_end
    last = {v: p for p, v in enumerate(program.values) if p >= end and v in blocks.last_reader}
    windows = [range(0)] * blocks.count
    start = end
    for k in reversed(range(blocks.count)):
        stop = max(start, last.get(blocks.last_reader[k], start - 1) + 1) if k else len(program.values)
        windows[k] = range(start, stop)
        start = stop
    return windows


def _needs(
    program: Program, liveness: Liveness, windows: list[range], block: np.ndarray, held: np.ndarray, below: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Most bytes alive in each window and each block's forward beside what earlier blocks hold; gradients."""
    end, alive = program.forward_end, liveness.alive_bytes
    window, forward, gradients = (np.zeros(len(windows), dtype=np.int64) for _ in range(3))
    for k, positions in enumerate(windows):
        if positions:
            window[k] = alive[positions.start : positions.stop].max() - below[k]
            gradients[k] = alive[positions.start] - held[liveness.last_use[:end] >= positions.start].sum()
        forward[k] = alive[:end][block == k].max(initial=below[k]) - below[k]
    return window, forward, np.maximum(gradients, 0)


def _extra_ns(
    problem: RematProblem, blocks: Blocks, program: Program, windows: list[range], decisions: Decisions
) -> np.ndarray:
    """Time of what each window runs again, and of what each block writes only to be saved."""
    repeated_ns = np.array(
        [
            problem.values[v].recompute_ns if copy and problem.runs_in_forward[v] else 0
            for v, copy in zip(program.values, program.copies, strict=True)
        ]
    )
    extra = np.array([repeated_ns[w.start : w.stop].sum() for w in windows], dtype=np.int64)
    for v in decisions.saved:
        extra[blocks.block_of[v]] += problem.values[v].save_ns
    return extra


def _rerun_ns(problem: RematProblem, blocks: Blocks, k: int) -> int:
    """Time to compute what crosses behind block k from what crosses before it."""
    needed = set(blocks.crossing[k]) & blocks.members[k]
    total = 0
    for v in sorted(blocks.members[k], reverse=True):
        if v in needed:
            total += problem.values[v].recompute_ns
            needed.update(problem.values[v].reads)
    return total


def _least(choices: Iterator[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The least of all costs, and the first way to reach it."""
    way, best = next(choices)
    chosen = np.full(best.shape, way, dtype=np.int16)
    for way, cost in choices:
        better = cost < best
        np.copyto(best, cost, where=better)
        np.copyto(chosen, way, where=better)
    return best, chosen


def _shifted(costs: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """What a choice costs with that many fewer levels free, for each row."""
    width = costs.shape[1]
    shifted = np.full(costs.shape, np.inf, dtype=costs.dtype)
    different = set(levels.tolist())  # most waists are equally wide, so there are few
    for level in different:
        rows = levels == level if len(different) > 1 else slice(None)
        shifted[rows, level:] = costs[rows, : max(0, width - level)]
    return shifted


def _where(costs: np.ndarray, needs: np.ndarray) -> np.ndarray:
    """Costs where that many levels are free, else infinite, for each row; overwrites `costs`."""
    np.copyto(costs, np.inf, where=np.arange(costs.shape[1], dtype=np.float32) < needs[:, None])
    return costs
