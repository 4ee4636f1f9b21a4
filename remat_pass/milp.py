"""The optimal plan as a mixed-integer linear program, solved by HiGHS through `scipy.optimize.milp`.

Items i, stages s = 0 (forward), 1 ... S as in `stages`; c_i recompute ns, w_i save ns, m_i bytes. Variables:

    R[s,i]      item i runs in stage s; R[0,i] = 1 where forward must run it
    K[s,i]      item i is retained from stage s-1 into s, s >= 1; K[1,i] means saved. The only integer variables:
                given them, the least R and A are 0 or 1 by themselves
    A[s,i,j]    item i is alive in stage s behind the reader before its j-th one and up to that one

    minimise    sum over i of  c_i * sum over s >= 1 of R[s,i]  +  w_i * K[1,i]
                (an item that forward need not run: c_i * (sum over s >= 0 of R[s,i] - 1))

    subject to                                                                                implemented in
    R[s,i] <= R[s,r] + K[s,r]              for every read r of i                              `_add_presence`
    1 <= R[s,i] + K[s,i]                   for every step of stage s that reads i             `_add_presence`
    K[s+1,i] <= R[s,i] + K[s,i]            retained is what was there                         `_add_presence`
    K[1,i] = 0 if i may not be saved;  R[s,i] = 0 if it may not be recomputed                 `_Variables`
    K[s,i] = 0 if i is a tuple: its parts run right behind it                                 `_Variables`
    sum over s >= 1 of R[s,i] <= 1         a draw is repeated once                            `_add_presence`
    A[s,i,j] >= R[s,reader j], A[s,i,j] >= A[s,i,j+1], A[s,i,last+1] = K[s+1,i]               `_alive`
    fixed bytes + sum over i of m_i * alive[s,u,i] + workspace_u * R[s,u] <= limit            `_add_memory`

with alive[s,u,i] at the moment u of stage s: K[s,i] before i's turn, A[s,i,j] from then up to the j-th reader (1 if
that is a step, or if i is a forward output), and the generator state of a draw as long as a later moment repeats it
(`_states`). That is `liveness.simulate`: a storage dies with the last step that reads it.

The solver works with tolerances. Bytes are counted in their greatest common divisor, and every limit is raised by a
third of a unit, so that plans that fit stay feasible. Should one be found that fits by tolerance alone, the limit is
lowered and the program solved again; what does not fit by simulation is never returned (`solve_milp`).

Source: Jain et al., "Checkmate", MLSys 2020, https://arxiv.org/abs/1910.02653, for stages, R and S (here K). Their
FREE variables are products of the others; A needs none, since liveness only ever falls within a stage.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from remat_pass.exact import Exact, judged
from remat_pass.liveness import simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_ns, program_of
from remat_pass.stage_plan import plan_retaining
from remat_pass.stages import Game, game_of

_SLACK = 1 / 3
"""Of a unit of bytes: above the solver's tolerance, below what an integer could use."""
_TIGHTENINGS = 3
"""How often a plan that fits by tolerance alone is excluded by a lower limit."""
_OPTIMAL, _INFEASIBLE = 0, 2
"""Statuses of `scipy.optimize.milp`."""


def solve_milp(problem: RematProblem, limit_bytes: int, *, time_limit_s: float, sweeps: int = 1) -> Exact:
    """The fastest plan of the shape that `stages` describes whose simulated peak is at most the limit.

    Args:
        problem: The graph; its lowering must not fuse.
        limit_bytes: Most bytes alive at any step.
        time_limit_s: After this many seconds the best plan so far and the bound so far are returned.
        sweeps: How often each value may run in one stage.

    Returns:
        The plan, its simulated figures, and the solver's dual bound.
    """
    begin = time.perf_counter()
    game = game_of(problem, sweeps=sweeps)
    aim, bound = limit_bytes, None
    for _ in range(1 + _TIGHTENINGS):
        left = max(0.1, time_limit_s - (time.perf_counter() - begin))
        program = _program(game, aim)
        result = program.solve(left)
        if result.status == _INFEASIBLE and bound is None:
            return judged(problem, None, seconds=time.perf_counter() - begin)
        if result.bound is not None and bound is None:
            bound = max(0, math.ceil(result.bound + program.constant - 1e-3))
        if result.x is None:
            break
        plan = plan_retaining(problem, game, program.retained(result.x))
        peak_bytes = simulate(problem, program_of(problem, plan)).peak_bytes
        if peak_bytes <= limit_bytes:
            added = plan_ns(problem, plan)
            bound = min(added, bound or 0)
            return Exact(plan, peak_bytes, added, bound, added == bound, time.perf_counter() - begin)
        aim -= peak_bytes - limit_bytes
    return Exact(None, None, None, bound or 0, False, time.perf_counter() - begin)


@dataclass
class _Rows:
    """Linear constraints, least <= sum of coefficient * variable <= most, as they are collected."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def add(self, terms: Iterable[tuple[int | None, float]], most: float) -> None:
        """Terms whose variable is None are left out: that variable is 0."""
        for column, coefficient in terms:
            if column is not None and coefficient:
                self.rows.append(len(self.most))
                self.columns.append(column)
                self.coefficients.append(coefficient)
        self.most.append(most)


class _Variables:
    """Columns of the program. What is always 0 has none."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.cost: list[float] = []
        self.integral: list[int] = []
        last = _last_needed(game)
        self.one = self.new(1, 1, 0)
        """A column that is 1."""
        self.runs: dict[tuple[int, int], int] = {}
        self.retained: dict[tuple[int, int], int] = {}
        for i, item in enumerate(game.items):
            must = float(item.runs_in_forward)
            self.runs[0, i] = self.new(must, 1, 0 if must else item.recompute_ns)
            for s in range(1, last[i] + 1):
                if item.can_recompute:
                    self.runs[s, i] = self.new(0, 1, item.recompute_ns)
                if not item.is_tuple and (s > 1 or item.can_save):
                    held = float(i in game.stages[s - 1].held)
                    self.retained[s, i] = self.new(held, 1, item.save_ns if s == 1 else 0, integral=True)

    def new(self, lower: float, upper: float, cost: float, *, integral: bool = False) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.cost.append(cost)
        self.integral.append(int(integral))
        return len(self.cost) - 1

    def run(self, s: int, i: int) -> int | None:
        return self.runs.get((s, i))

    def kept(self, s: int, i: int) -> int | None:
        return self.retained.get((s, i))


@dataclass(frozen=True, slots=True)
class _Result:
    status: int
    x: np.ndarray | None
    bound: float | None


@dataclass(frozen=True)
class _Program:
    variables: _Variables
    rows: _Rows
    constant: int
    """To be added to the objective."""

    def solve(self, time_limit_s: float) -> _Result:
        v, rows = self.variables, self.rows
        shape = (len(rows.most), len(v.cost))
        matrix = csr_array((rows.coefficients, (rows.rows, rows.columns)), shape=shape)
        result = milp(
            np.array(v.cost),
            integrality=np.array(v.integral),
            bounds=Bounds(np.array(v.lower), np.array(v.upper)),
            constraints=LinearConstraint(matrix, -np.inf, np.array(rows.most)),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )
        # Without an integer variable it is a linear program, whose dual bound HiGHS does not fill in.
        return _Result(result.status, result.x, result.fun if result.status == _OPTIMAL else result.mip_dual_bound)

    def retained(self, x: np.ndarray) -> list[frozenset[int]]:
        """The items retained into each stage."""
        sets: list[set[int]] = [set() for _ in self.variables.game.stages]
        for (s, i), column in self.variables.retained.items():
            if x[column] > 0.5:
                sets[s - 1].add(i)
        return [frozenset(s) for s in sets]


def _program(game: Game, limit_bytes: int) -> _Program:
    """All variables and constraints."""
    variables, rows = _Variables(game), _Rows()
    _add_presence(variables, rows)
    _add_memory(variables, rows, limit_bytes)
    return _Program(variables, rows, -game.moved_ns)


def _last_needed(game: Game) -> list[int]:
    """The last stage that reads each item, directly or to run others; 0 if none does."""
    last = [0] * len(game.items)
    for s, stage in enumerate(game.stages, start=1):
        for step in stage.steps:
            for i in step.reads:
                last[i] = s
    for i in reversed(game.sweep):
        item = game.items[i]
        for r in item.reads:
            if item.can_recompute:
                last[r] = max(last[r], last[i])
    return last


def _add_presence(v: _Variables, rows: _Rows) -> None:
    game = v.game
    for (s, i), run in v.runs.items():
        for r in game.items[i].reads:
            rows.add([(run, 1), (v.run(s, r), -1), (v.kept(s, r), -1)], 0)
    for (s, i), kept in v.retained.items():
        rows.add([(kept, 1), (v.run(s - 1, i), -1), (v.kept(s - 1, i), -1)], 0)
        if v.run(s, i) is not None and not any(game.items[r].is_tuple for r in game.items[i].reads):
            rows.add([(kept, 1), (v.run(s, i), 1)], 1)  # no plan is lost, and the relaxation is tighter
    for s, stage in enumerate(game.stages, start=1):
        for i in {i: None for step in stage.steps for i in step.reads}:
            rows.add([(v.run(s, i), -1), (v.kept(s, i), -1)], -1)
    for i, item in enumerate(game.items):
        if item.rng_bytes:
            rows.add([(column, 1) for (s, j), column in v.runs.items() if j == i and s], 1)


@dataclass(frozen=True, slots=True)
class _Moment:
    """Something runs: an item, if that is decided, or a step in any case."""

    item: int | None
    reads: tuple[int, ...]
    size: int
    """Fixed bytes."""


def _moments(game: Game, s: int) -> list[_Moment]:
    """What may run in a stage, in order."""
    if s == 0:
        return [_Moment(i, step.reads, step.size) for step, i in game.forward]
    stage = game.stages[s - 1]
    sweep = [_Moment(i, game.items[i].reads, stage.size) for i in game.sweep]
    return [*sweep, *(_Moment(None, step.reads, step.size) for step in stage.steps)]


def _add_memory(v: _Variables, rows: _Rows, limit_bytes: int) -> None:
    """One row for every moment that can be a peak; an item without bytes cannot."""
    items = v.game.items
    unit = math.gcd(*(b for item in items for b in (item.size, item.workspace, item.rng_bytes))) or 1

    def add(fixed_bytes: int, terms: Iterable[tuple[int | None, int]]) -> None:
        rows.add(((column, b // unit) for column, b in terms), (limit_bytes - fixed_bytes) // unit + _SLACK)

    for s in range(len(v.game.stages) + 1):
        moments = _moments(v.game, s)
        alive = [_alive(v, rows, s, i, moments) for i in range(len(items))]
        for p, moment in enumerate(moments):
            run = None if moment.item is None else v.run(s, moment.item)
            workspace = 0 if moment.item is None else items[moment.item].workspace
            if moment.item is None or (run is not None and (items[moment.item].size or workspace)):
                storages = [(alive[i][p], item.size) for i, item in enumerate(items)]
                add(moment.size, [*storages, *_states(v, s, moments[: p + 1]), (run, workspace)])
    for step in v.game.entry:
        saved = [(v.kept(1, i), item.size) for i, item in enumerate(items)]
        add(step.size, [*saved, *_states(v, 0, _moments(v.game, 0))])


def _alive(v: _Variables, rows: _Rows, s: int, i: int, moments: list[_Moment]) -> list[int | None]:
    """For every moment of a stage the variable that tells whether an item is alive then; None: it never is."""
    own = next(p for p, moment in enumerate(moments) if moment.item == i)
    level = v.one if s == 0 and i in v.game.outputs else v.kept(s + 1, i)
    levels = [v.kept(s, i)] * len(moments)
    for p in reversed(range(own, len(moments))):
        moment = moments[p]
        if i in moment.reads:
            level = _either(v, rows, level, v.one if moment.item is None else v.run(s, moment.item))
        elif p == own and s == 0:
            # Forward may have to run what nobody reads; a later stage never does.
            level = _either(v, rows, level, v.run(s, i))
        levels[p] = level
    return levels


def _either(v: _Variables, rows: _Rows, a: int | None, b: int | None) -> int | None:
    """A variable that is 1 if one of two is."""
    if a is None or b is None:
        return b if a is None else a
    if v.lower[a] or v.lower[b]:
        return v.one
    either = v.new(0, 1, 0)
    rows.add([(a, 1), (either, -1)], 0)
    rows.add([(b, 1), (either, -1)], 0)
    return either


def _states(v: _Variables, s: int, passed: list[_Moment]) -> list[tuple[int | None, int]]:
    """Generator states alive at the last of the passed moments of a stage: those of draws yet to be repeated."""
    before = {moment.item for moment in passed[:-1]} if s else set()
    drawn = {moment.item for moment in passed}
    terms = []
    for i, item in enumerate(v.game.items):
        if item.rng_bytes and (s or i in drawn):
            later = (v.run(t, i) for t in range(max(s, 1), len(v.game.stages) + 1) if t > s or i not in before)
            terms += [(column, item.rng_bytes) for column in later]
    return terms
