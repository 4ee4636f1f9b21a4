"""Exact plans for small graphs: the oracle of the planner's tests and of its published gap.

`brute_force` looks at every plan of one of two spaces, for at most a dozen decisions or so:

    copies=False   what the planner chose from before it knew copies: every set of values to keep, each of the others
                   recomputed once, as late as its first reader allows (`schedule.plan_of`); judged by simulation
    copies=True    every plan of the shape that `stages` describes: in front of every backward value any forward value
                   may run again, so that every reader may have a copy of its own

The second space is searched by dynamic programming over sets. `cost[K]` is the least time in which the items of the
set K, and no others, can be in memory at one moment; one pass over the moments of the step updates all 2^n entries:

    run x     cost[K + x] = min(cost[K + x], cost[K] + recompute_ns(x))   if K holds what x reads
                                                                          and K + x fits while x runs       `_Table.run`
    drop x    cost[K - x] = min(cost[K - x], cost[K])       tried right behind every read of x            `_Table.drop`
    step      cost[K] = ∞ unless K holds what the step reads and fits beside it                           `_Table.pass_`

`milp.solve_milp` finds the same optimum for larger graphs.
"""

import time
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from remat_pass.liveness import simulate
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import decide, plan_ns, plan_of, program_of
from remat_pass.stage_plan import plan_retaining
from remat_pass.stages import Game, Item, Stage, game_of

_MOST_DECISIONS = 12
_MOST_ITEMS = 20
"""2^20 sets take 8 MiB and some milliseconds per update."""
_NEVER = np.iinfo(np.int64).max // 2


@dataclass(frozen=True, slots=True)
class Exact:
    """The outcome of an exact search under a limit."""

    plan: RematPlan | None
    """None if no plan fits, or none was found in time."""
    peak_bytes: int | None
    """Simulated peak of the plan."""
    recompute_ns: int | None
    """What the plan adds to a step that saves everything (`plan_ns`)."""
    lower_bound_ns: int | None
    """No plan of the space that fits adds less; None if no plan fits."""
    proven: bool
    """Whether the plan is optimal in its space, or shown not to exist."""
    seconds: float


def brute_force(
    problem: RematProblem, limit_bytes: int, *, copies: bool, sweeps: int = 1, every_gap: bool = False
) -> Exact:
    """The fastest of all plans whose simulated peak is at most the limit.

    Args:
        problem: The graph; with copies its lowering must not fuse.
        limit_bytes: Most bytes alive at any step.
        copies: Which of the two spaces of the module docstring.
        sweeps: How often each value may run within one stage.
        every_gap: Whether every backward value is a stage of its own (`stages`).

    Raises:
        ValueError: There are too many decisions.
    """
    begin = time.perf_counter()
    if copies:
        plan = _least_retained(problem, game_of(problem, sweeps=sweeps, every_gap=every_gap), limit_bytes)
    else:
        plan = _least_kept(problem, limit_bytes)
    exact = judged(problem, plan, seconds=time.perf_counter() - begin)
    assert exact.peak_bytes is None or exact.peak_bytes <= limit_bytes, "the search and the simulation disagree"
    return exact


def least_peak_bytes(problem: RematProblem) -> int:
    """The smallest limit that some plan with copies fits, by bisection over `brute_force`.

    Raises:
        ValueError: There are too many decisions.
    """
    anything = plan_of(problem, decide(problem, problem.read_in_backward))
    low, high = 0, simulate(problem, program_of(problem, anything)).peak_bytes
    while low < high:
        middle = (low + high) // 2
        peak_bytes = brute_force(problem, middle, copies=True).peak_bytes
        low, high = (middle + 1, high) if peak_bytes is None else (low, peak_bytes)
    return high


def judged(problem: RematProblem, plan: RematPlan | None, *, seconds: float) -> Exact:
    """An optimal plan, or None as the proof that there is none, with the figures of its simulation."""
    if plan is None:
        return Exact(None, None, None, None, True, seconds)
    added = plan_ns(problem, plan)
    return Exact(plan, simulate(problem, program_of(problem, plan)).peak_bytes, added, added, True, seconds)


def _least_kept(problem: RematProblem, limit_bytes: int) -> RematPlan | None:
    """The best plan over all subsets of what can be both saved and recomputed."""
    free = [
        v
        for v in problem.forward_values
        if not (problem.values[v].is_input or problem.values[v].cannot_save or problem.values[v].cannot_recompute)
    ]
    decisive = set(decide(problem, frozenset()).recomputed)
    free = [v for v in free if v in decisive]
    if len(free) > _MOST_DECISIONS:
        raise ValueError(f"{len(free)} decisions are too many for brute force; {_MOST_DECISIONS} are feasible")
    best: tuple[int, int] | None = None
    best_plan = None
    for keep in chain.from_iterable(combinations(free, n) for n in range(len(free) + 1)):
        plan = plan_of(problem, decide(problem, frozenset(keep)))
        peak_bytes = simulate(problem, program_of(problem, plan)).peak_bytes
        rank = plan_ns(problem, plan), peak_bytes
        if peak_bytes <= limit_bytes and (best is None or rank < best):
            best, best_plan = rank, plan
    return best_plan


def _least_retained(problem: RematProblem, game: Game, limit_bytes: int) -> RematPlan | None:
    """The best plan of the shape that `stages` describes."""
    table = _Table(game, limit_bytes)
    _play_forward(game, table)
    _save(game, table)
    for step in game.entry:
        table.pass_(step.reads, step.size)
    origins = []
    for stage in game.stages:
        table.restart()
        _play_stage(game, table, stage)
        origins.append(table.origin.copy())
    if not table.best < _NEVER:
        return None
    retained = []
    at = int(table.cost.argmin())
    for origin in reversed(origins):
        at = int(origin[at])
        retained.append(frozenset(i for i in range(len(game.items)) if at >> i & 1))
    return plan_retaining(problem, game, retained[::-1])


class _Table:
    """`cost` of the module docstring, and for every set the one at the start of its stage that it came from."""

    def __init__(self, game: Game, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.drawn = {
            i: len(game.items) + k for k, i in enumerate(i for i, it in enumerate(game.items) if it.rng_bytes)
        }
        """The bit of the generator state of every random item."""
        sizes = [*(item.size for item in game.items), *(game.items[i].rng_bytes for i in self.drawn)]
        if len(sizes) > _MOST_ITEMS:
            raise ValueError(f"{len(sizes)} values are too many for brute force; {_MOST_ITEMS} are feasible")
        self.sets = np.arange(1 << len(sizes))
        self.bytes = self.total(sizes)
        self.cost = np.where(self.sets == 0, 0, _NEVER)
        self.origin = self.sets.copy()
        self.sources: dict[tuple[int, int], np.ndarray] = {}

    @property
    def best(self) -> int:
        return int(self.cost.min())

    def total(self, figures: list[int]) -> np.ndarray:
        """The sum of a figure over each set."""
        return sum(((self.sets >> i & 1) * figure for i, figure in enumerate(figures)), np.zeros_like(self.sets))

    def has(self, items: tuple[int, ...]) -> np.ndarray:
        mask = sum(1 << i for i in items)
        return self.sets & mask == mask

    def restart(self) -> None:
        self.origin = self.sets.copy()

    def require(self, allowed: np.ndarray) -> None:
        self.cost[~allowed] = _NEVER

    def pass_(self, reads: tuple[int, ...], size: int) -> None:
        """A step that reads items beside `size` other bytes."""
        self.require(self.has(reads) & (self.bytes + size <= self.limit_bytes))

    def drop(self, items: tuple[int, ...]) -> None:
        for i in items:
            cost, origin = self.cost.reshape(-1, 2, 1 << i), self.origin.reshape(-1, 2, 1 << i)
            better = cost[:, 1] < cost[:, 0]
            np.copyto(cost[:, 0], cost[:, 1], where=better)
            np.copyto(origin[:, 0], origin[:, 1], where=better)

    def run(self, i: int, item: Item, size: int, *, draws: bool = False, redraws: bool = False) -> None:
        """Run an item, with `size` bytes beside the items and its workspace; a draw may leave its generator's state."""
        state = 1 << self.drawn[i] if draws or redraws else 0
        source = self._can_run(i, item, state if redraws else 0)
        source = source[self.cost[source] < _NEVER]
        room = self.limit_bytes - size - item.workspace
        target = source | 1 << i
        self._reach(source, target & ~state if redraws else target, item.recompute_ns, self.bytes[target] <= room)
        if draws:
            self._reach(source, target | state, item.recompute_ns, self.bytes[target | state] <= room)

    def _can_run(self, i: int, item: Item, state: int) -> np.ndarray:
        """The sets without an item, but with all that it reads."""
        key = i, state
        if key not in self.sources:
            reads = state | sum(1 << r for r in item.reads)
            self.sources[key] = np.flatnonzero(self.sets & (reads | 1 << i) == reads)
        return self.sources[key]

    def _reach(self, source: np.ndarray, target: np.ndarray, added_ns: int, fits: np.ndarray) -> None:
        source, target = source[fits], target[fits]
        cost = self.cost[source] + added_ns
        better = cost < self.cost[target]
        self.cost[target[better]] = cost[better]
        self.origin[target[better]] = self.origin[source[better]]


def _play_forward(game: Game, table: _Table) -> None:
    """Forward runs each item once, and may drop what it does not return as soon as it is read."""
    for step, i in game.forward:
        if i is None:
            table.pass_(step.reads, step.size)
        else:
            item = game.items[i]
            table.run(i, item, step.size, draws=bool(item.rng_bytes))
            if item.runs_in_forward:
                table.require(table.has((i,)))
        own = () if i is None else (i,)
        table.drop(tuple(r for r in (*step.reads, *own) if r not in game.outputs))
    table.drop(tuple(game.outputs))
    table.cost[table.cost < _NEVER] -= sum(it.recompute_ns for it in game.items if it.runs_in_forward)


def _save(game: Game, table: _Table) -> None:
    """What is there now is saved: some may not be, and some costs time."""
    unsavable = tuple(i for i, item in enumerate(game.items) if not item.can_save)
    table.drop(unsavable)
    for i in unsavable:
        table.require(table.sets >> i & 1 == 0)
    reached = table.cost < _NEVER
    table.cost[reached] += table.total([item.save_ns for item in game.items])[reached] - game.moved_ns


def _play_stage(game: Game, table: _Table, stage: Stage) -> None:
    table.require(table.has(tuple(stage.held)))
    tuples = []
    for i in game.sweep:
        item = game.items[i]
        if item.can_recompute and i not in stage.held:
            table.run(i, item, stage.size, redraws=bool(item.rng_bytes))
            table.drop(tuple(r for r in item.reads if r not in stage.held))
            tuples += [i] if item.is_tuple else []
    for i in tuples:
        table.drop((i,))
        table.require(table.sets >> i & 1 == 0)
    for step in stage.steps:
        table.pass_(step.reads, step.size)
        table.drop(step.reads)
