"""From decisions to an execution order.

A decision is a set of values to *keep*: backward walks from what it reads towards the inputs, stops at inputs and kept
values (these are saved) and recomputes the rest. Any set is feasible: a value that cannot be recomputed is saved
even if it is not in the set, one that cannot be saved is recomputed.

    forward    everything that outputs, effects and saved values need, in joint-graph order or *depth first*
               (`order.run_depth_first`)
    backward   the backward values in joint-graph order; before each, what it, or the reader that it waits for, needs
               and nobody has computed yet, in joint-graph order, the parts of an op right behind it

Lateness is what makes recomputation save memory at all: in joint-graph order every recomputed value would be alive
from the start of backward, and the peak would be that of saving everything.

What is saved or recomputed is there for all its readers unless it is *forgotten* on the way: after a given backward
value it is dropped, and the next reader computes another copy. Forgetting is what brings the peak below what one
recompute of each value can reach. A value may also run *early*, before a given backward value that does not need it:
that frees what it is made of before something large is there.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np

from remat_pass.order import run_depth_first
from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of the values that backward needs and forward can compute, in joint-graph order."""

    saved: tuple[int, ...]
    """Values passed from forward to backward, inputs included."""
    recomputed: tuple[int, ...]
    """Values that backward does not find saved when it first needs them, although they need no tangent."""
    forgotten: Mapping[int, frozenset[int]]
    """After which backward value which of both are dropped, though later ones may read them again.

    What cannot be recomputed stays, and so does a random value that has been drawn again: torch repeats a draw once.
    """
    early: Mapping[int, frozenset[int]]
    """Before which backward value which of them are computed, unless they are there."""
    depth_first: bool
    """Whether forward runs depth first instead of in joint-graph order."""


@dataclass(frozen=True, eq=False)
class Program:
    """A plan laid out on one clock: forward steps, the arrival of the tangents, backward steps.

    Positions count from 0; inputs, which are always there, have none.
    """

    values: list[int]
    copies: np.ndarray
    """Which run of its value a step is: 0 in forward, from 1 on for what backward recomputes; shape (steps,), int64."""
    read: np.ndarray
    """Positions that the steps read, one step's behind the other's; shape (reads,), int64."""
    bounds: np.ndarray
    """Step p reads `read[bounds[p] : bounds[p + 1]]`; shape (steps + 1,), int64."""
    forward_end: int
    """Position of the first step after forward: tangents, then backward."""
    saved: list[int]
    """Positions in forward that backward reads or returns."""
    returned: list[int]
    """Positions of the gradients."""

    @cached_property
    def steps(self) -> np.ndarray:
        """`values` as an array; shape (steps,), int64."""
        return np.array(self.values, dtype=np.int64)

    @cached_property
    def readers(self) -> np.ndarray:
        """Position of the step that reads, for each entry of `read`; shape (reads,), int64."""
        return np.repeat(np.arange(len(self.values)), np.diff(self.bounds))

    @cached_property
    def reads(self) -> list[list[int]]:
        """For every step the positions it reads."""
        read = self.read.tolist()
        return [read[a:b] for a, b in pairwise(self.bounds.tolist())]

    def kept_positions(self, problem: RematProblem) -> list[int]:
        """Positions of what is needed after the kernel that computes it: saved values and results of both programs."""
        return [*self.saved, *self.returned, *self.output_positions(problem)]

    def output_positions(self, problem: RematProblem) -> list[int]:
        """Positions of what forward returns to the caller."""
        outputs = set(problem.forward_outputs)
        return [p for p in range(self.forward_end) if self.values[p] in outputs]


def decide(
    problem: RematProblem,
    keep: Collection[int],
    forgotten: Mapping[int, frozenset[int]] | None = None,
    *,
    early: Mapping[int, frozenset[int]] | None = None,
    depth_first: bool = False,
) -> Decisions:
    """Settle what is saved and what is recomputed if the values of `keep` are not to be recomputed."""
    values, inputs = problem.values, problem.inputs
    needed = set(problem.read_in_backward)
    dropped = frozenset[int]()
    if forgotten:
        dropped = problem.forgettable.intersection(chain.from_iterable(forgotten.values()))
    saved, recomputed = [], []
    for i in reversed(problem.forward_values):
        if i not in needed:
            continue
        value = values[i]
        if i in inputs or value.cannot_recompute or (i in keep and not value.cannot_save):
            saved.append(i)
            if i not in dropped:
                continue
        else:
            recomputed.append(i)
        needed.update(value.reads)
    return Decisions(tuple(reversed(saved)), tuple(reversed(recomputed)), forgotten or {}, early or {}, depth_first)


def lay_out(problem: RematProblem, decisions: Decisions) -> Program:
    """The execution order of the module docstring."""
    order = list(_forward(problem, decisions))
    begin = len(order)
    order += problem.tangents
    absent = bytearray(len(problem.values))
    """1 for what has to run before it can be read."""
    for v in decisions.recomputed:
        absent[v] = 1
    there = set[int]()
    if decisions.forgotten:
        # Torch can repeat a draw once: in place of what was saved, or not saved at all.
        there = {*decisions.saved, *(r for r in decisions.recomputed if r not in problem.drawn)} & problem.forgettable
    for v, wanted in problem.backward_steps:
        wanted = (*wanted, *decisions.early.get(v, ()))
        for r in wanted:
            if absent[r]:
                order += _run_origins(problem, wanted, absent)
        order.append(v)
        for u in decisions.forgotten.get(v, ()):
            if u in there:
                absent[u] = 1
                if u in problem.drawn:
                    there.remove(u)
                if problem.values[u].kind is Kind.PART:  # comes with its op, whenever that runs
                    absent[problem.values[u].reads[0]] = 1
    order += _run_origins(problem, problem.gradients, absent)
    return _linked(problem, order, begin)


def _linked(problem: RematProblem, order: list[int], begin: int) -> Program:
    """The program of an order: a step reads the latest run of a value."""
    steps = np.array(order, dtype=np.int64)
    count = len(order)
    latest = np.full(len(problem.values), -1)
    latest[steps] = np.arange(count)  # of several runs the last one stays
    starts, wanted = problem.read_bounds[steps], problem.read_values
    lengths = problem.read_bounds[steps + 1] - starts
    bounds = np.concatenate(([0], lengths.cumsum()))
    wanted = wanted[np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)]
    readers = np.repeat(np.arange(count), lengths)
    read = latest[wanted]
    late = np.flatnonzero(read >= readers)
    if len(late):
        by_value = np.argsort(steps, kind="stable")
        keys = steps[by_value] * count + by_value
        read[late] = by_value[np.searchsorted(keys, wanted[late] * count + readers[late]) - 1]
    returned = latest[list(problem.gradients)]
    returned = returned[returned >= 0]
    passed_on = np.concatenate((read[bounds[begin] :], returned))
    saved = np.unique(passed_on[passed_on < begin])
    copies = _count_copies(problem, steps, begin)
    return Program(order, copies, read, bounds, begin, saved.tolist(), returned.tolist())


def _count_copies(problem: RematProblem, steps: np.ndarray, begin: int) -> np.ndarray:
    """`Program.copies`."""
    copies = np.zeros(len(steps), dtype=np.int64)
    again = begin + np.flatnonzero(problem.is_forward[steps[begin:]])
    by_value = again[np.argsort(steps[again], kind="stable")]
    ranks = np.arange(len(by_value))
    is_first = np.diff(steps[by_value], prepend=-1) != 0
    copies[by_value] = ranks - np.maximum.accumulate(np.where(is_first, ranks, 0)) + 1
    return copies


def plan_of(problem: RematProblem, decisions: Decisions) -> RematPlan:
    """The plan that runs in the order of the module docstring."""
    program = lay_out(problem, decisions)
    in_program, copies = set(program.values), program.copies.tolist()

    def run(p: int) -> Run:
        v, positions = program.values[p], iter(program.reads[p])
        return Run(v, copies[p], tuple(copy(r, positions) for r in problem.values[v].reads))

    def copy(r: int, positions: Iterable[int]) -> CopyId:
        if r not in in_program:
            return r, 0
        p = next(iter(positions))
        return program.values[p], copies[p]

    backward = range(program.forward_end + len(problem.tangents), len(program.values))
    return RematPlan(
        forward=tuple(run(p) for p in range(program.forward_end)), backward=tuple(run(p) for p in backward)
    )


def program_of(problem: RematProblem, plan: RematPlan) -> Program:
    """Lay a plan's own steps out on the clock, copies and order as they are."""
    tangents = [Run(i, 0, ()) for i in problem.tangents]
    steps = [*plan.forward, *tangents, *plan.backward]
    begin = len(plan.forward)
    positions: dict[tuple[int, int], int] = {}
    reads: list[list[int]] = []
    for position, step in enumerate(steps):
        reads.append([positions[copy] for copy in step.reads if copy in positions])
        positions[step.value, step.copy] = position
    latest = {step.value: position for position, step in enumerate(steps)}
    returned = [latest[g] for g in problem.gradients if g in latest]
    saved = sorted({p for p in (*chain.from_iterable(reads[begin:]), *returned) if p < begin})
    return Program(
        [s.value for s in steps],
        np.array([s.copy for s in steps], dtype=np.int64),
        np.array([*chain.from_iterable(reads)], dtype=np.int64),
        np.cumsum([0, *map(len, reads)]),
        begin,
        saved,
        returned,
    )


def added_ns(problem: RematProblem, saved: Iterable[int], repeats: Mapping[int, int]) -> int:
    """Estimated time a plan adds to a step that keeps everything, in nanoseconds.

    Args:
        problem: The graph.
        saved: Values written only because they are saved.
        repeats: How often values are run again.
    """
    values = problem.values
    return sum(values[i].save_ns for i in saved) + sum(values[i].recompute_ns * n for i, n in repeats.items())


def plan_ns(problem: RematProblem, plan: RematPlan) -> int:
    """Time a plan adds to a step that saves everything: every run of a value but the first, and writing what is saved.

    A value that forward need not run is not recomputed by running it in backward, unless it runs there twice.
    """
    return added_ns(problem, plan.saved(problem), plan.recomputed())


def repeats(program: Program) -> dict[int, int]:
    """How often values are run again: all runs but the first, wherever that is."""
    again = np.bincount(program.steps, minlength=1) - 1
    return {v: int(again[v]) for v in np.flatnonzero(again > 0).tolist()}


def _forward(problem: RematProblem, decisions: Decisions) -> tuple[int, ...]:
    """Steps of forward."""
    must = problem.runs_in_forward
    more = tuple(s for s in decisions.saved if not must[s] and s not in problem.inputs)
    known, key = problem.forward_layouts, (more, decisions.depth_first)
    if key not in known:
        needed = _moved_to_forward(problem, more)
        steps = [i for i in problem.forward_values if (must[i] or i in needed) and i not in problem.inputs]
        known[key] = tuple(run_depth_first(problem, steps) if decisions.depth_first else steps)
    return known[key]


def _moved_to_forward(problem: RematProblem, saved: Iterable[int]) -> set[int]:
    """Saved values that forward need not run, and what of that kind they are computed from."""
    needed = set(saved)
    pending = list(needed)
    while pending:
        new = {r for r in problem.values[pending.pop()].reads if r not in needed and not problem.runs_in_forward[r]}
        needed |= new
        pending += new
    return needed


def _run_origins(problem: RematProblem, wanted: Iterable[int], absent: bytearray) -> list[int]:
    """What is absent of the wanted values and of what they are computed from, in joint-graph order; now it is there.

    The parts of an op come right behind it.
    """
    missing = [r for r in dict.fromkeys(wanted) if absent[r]]
    for v in missing:
        absent[v] = 0
    for v in missing:  # grows
        for r in problem.origins[v]:
            if absent[r]:
                absent[r] = 0
                missing.append(r)
    return sorted(missing)
