"""From decisions to an execution order.

A decision is a set of values to *keep*: backward walks from what it reads towards the inputs, stops at inputs and kept
values (these are saved) and recomputes the rest. Any set is feasible: a value that cannot be recomputed is saved
even if it is not in the set, one that cannot be saved is recomputed.

    forward    everything that outputs, effects and saved values need, in joint-graph order
    backward   the backward values in joint-graph order; before each, what it needs and nobody has computed yet,
               in joint-graph order, the parts of an op right behind it

Lateness is what makes recomputation save memory at all: in joint-graph order every recomputed value would be alive
from the start of backward, and the peak would be that of saving everything.

A recomputed value is there for all its readers unless it is *forgotten* on the way: after a given backward value it is
dropped, and the next reader computes another copy. Forgetting is what brings the peak below what one recompute of
each value can reach.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of the values that backward needs and forward can compute, in joint-graph order."""

    saved: tuple[int, ...]
    """Values passed from forward to backward, inputs included."""
    recomputed: tuple[int, ...]
    """Values run in backward although they need no tangent."""
    forgotten: Mapping[int, frozenset[int]]
    """After which backward value which recomputed values are dropped, though later ones may read them again.

    Random values stay: torch can repeat a draw once.
    """


@dataclass(frozen=True, slots=True)
class Program:
    """A plan laid out on one clock: forward steps, the arrival of the tangents, backward steps.

    `reads[p]` are the positions read by the step at position p; inputs, which are always there, are left out.
    """

    values: list[int]
    reads: list[list[int]]
    copies: list[int]
    forward_end: int
    """Position of the first step after forward: tangents, then backward."""
    saved: list[int]
    """Positions in forward that backward reads or returns."""
    returned: list[int]
    """Positions of the gradients."""

    def output_positions(self, problem: RematProblem) -> list[int]:
        """Positions of what forward returns to the caller."""
        outputs = set(problem.forward_outputs)
        return [p for p in range(self.forward_end) if self.values[p] in outputs]


def decide(
    problem: RematProblem, keep: Collection[int], forgotten: Mapping[int, frozenset[int]] | None = None
) -> Decisions:
    """Settle what is saved and what is recomputed if the values of `keep` are not to be recomputed."""
    values, inputs = problem.values, problem.inputs
    needed = set(problem.read_in_backward)
    saved, recomputed = [], []
    for i in reversed(problem.forward_values):
        if i not in needed:
            continue
        value = values[i]
        if i in inputs or value.cannot_recompute or (i in keep and not value.cannot_save):
            saved.append(i)
        else:
            recomputed.append(i)
            needed.update(value.reads)
    return Decisions(tuple(reversed(saved)), tuple(reversed(recomputed)), forgotten or {})


def lay_out(problem: RematProblem, decisions: Decisions) -> Program:
    """The execution order of the module docstring."""
    values = problem.values
    order, reads, positions = _forward(problem, decisions)
    begin = len(order)
    saved = [positions[s] for s in decisions.saved if s in positions]
    # From here on a recomputed value means the backward copy that is there, if any.
    positions = {s: positions[s] for s in decisions.saved if s in positions}
    made = dict.fromkeys(decisions.recomputed, 0)
    copies = [0] * begin

    def absent(wanted: Iterable[int]) -> list[int]:
        missing = [r for r in wanted if r in made and r not in positions]
        steps = _with_origins(problem, missing, made, positions) if missing else []
        for v in steps:
            made[v] += 1
        return steps

    def run(steps: Iterable[int]) -> None:
        for v in steps:
            reads.append([positions[r] for r in values[v].reads if r in positions])
            positions[v] = len(order)
            order.append(v)
            copies.append(made.get(v, 0))

    run(problem.tangents)
    for v in problem.runs_in_backward:
        run((*absent(values[v].reads), v))
        for u in decisions.forgotten.get(v, ()):
            if u in made and u not in problem.drawn:
                positions.pop(u, None)
                if values[u].kind is Kind.PART:  # comes with its op, whenever that runs
                    positions.pop(values[u].reads[0], None)
    run(absent(problem.gradients))
    returned = [positions[g] for g in problem.gradients if g in positions]
    return Program(order, reads, copies, begin, saved, returned)


def plan_of(problem: RematProblem, decisions: Decisions) -> RematPlan:
    """The plan that runs in the order of the module docstring."""
    program = lay_out(problem, decisions)
    in_program = set(program.values)

    def run(p: int) -> Run:
        v, positions = program.values[p], iter(program.reads[p])
        return Run(v, program.copies[p], tuple(copy(r, positions) for r in problem.values[v].reads))

    def copy(r: int, positions: Iterable[int]) -> CopyId:
        if r not in in_program:
            return r, 0
        p = next(iter(positions))
        return program.values[p], program.copies[p]

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
    saved = sorted({p for q in range(begin, len(steps)) for p in reads[q] if p < begin})
    returned = [latest[g] for g in problem.gradients if g in latest]
    saved = sorted({*saved, *(p for p in returned if p < begin)})
    return Program([s.value for s in steps], reads, [s.copy for s in steps], begin, saved, returned)


def added_ns(problem: RematProblem, saved: Iterable[int], repeats: Mapping[int, int]) -> int:
    """Estimated time a plan adds to a step that keeps everything, in nanoseconds.

    Args:
        problem: The graph.
        saved: Values written only because they are saved.
        repeats: How often values are run again.
    """
    values = problem.values
    return sum(values[i].save_ns for i in saved) + sum(values[i].recompute_ns * n for i, n in repeats.items())


def repeats(program: Program) -> dict[int, int]:
    """How often values are run again: all runs but the first, wherever that is."""
    return {v: n - 1 for v, n in Counter(program.values).items() if n > 1}


def _forward(problem: RematProblem, decisions: Decisions) -> tuple[list[int], list[list[int]], dict[int, int]]:
    """Steps of forward, what they read, and where each value is; fresh outer lists, shared inner ones."""
    must = problem.runs_in_forward
    more = tuple(s for s in decisions.saved if not must[s] and s not in problem.inputs)
    known = problem.forward_layouts
    if more not in known:
        values, needed = problem.values, _moved_to_forward(problem, more)
        order = [i for i in problem.forward_values if (must[i] or i in needed) and i not in problem.inputs]
        positions = {v: p for p, v in enumerate(order)}
        known[more] = order, [[positions[r] for r in values[v].reads if r in positions] for v in order], positions
    order, reads, positions = known[more]
    return list(order), list(reads), positions


def _moved_to_forward(problem: RematProblem, saved: Iterable[int]) -> set[int]:
    """Saved values that forward need not run, and what of that kind they are computed from."""
    needed = set(saved)
    pending = list(needed)
    while pending:
        new = {r for r in problem.values[pending.pop()].reads if r not in needed and not problem.runs_in_forward[r]}
        needed |= new
        pending += new
    return needed


def _with_origins(
    problem: RematProblem, wanted: list[int], recomputed: Collection[int], present: Collection[int]
) -> list[int]:
    """The wanted values and what they are computed from, as far as it is not there, in joint-graph order."""
    values, parts = problem.values, problem.parts
    missing = set(wanted)
    while wanted:
        v = wanted.pop()
        for r in (*values[v].reads, *parts.get(v, ())):
            if r in recomputed and r not in missing and r not in present:
                missing.add(r)
                wanted.append(r)
    return sorted(missing)
