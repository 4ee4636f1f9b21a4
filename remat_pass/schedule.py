"""From decisions to an execution order.

A decision is a set of values to *keep*: backward walks from what it reads towards the inputs, stops at inputs and kept
values (these are saved) and recomputes the rest. Any set is feasible: a value that cannot be recomputed is saved
even if it is not in the set, one that cannot be saved is recomputed.

    forward    everything that outputs, effects and saved values need, in joint-graph order
    backward   the backward values in joint-graph order; each recomputed value as late as its first reader allows,
               recomputed values of one reader in joint-graph order, the parts of an op right behind it

Lateness is what makes recomputation save memory at all: in joint-graph order every recomputed value would be alive
from the start of backward, and the peak would be that of saving everything.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from remat_pass.problem import Kind, RematPlan, RematProblem, Run


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of the values that backward needs and forward can compute, in joint-graph order."""

    saved: tuple[int, ...]
    """Values passed from forward to backward, inputs included."""
    recomputed: tuple[int, ...]
    """Values run in backward although they need no tangent."""


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


def decide(problem: RematProblem, keep: Collection[int]) -> Decisions:
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
    return Decisions(tuple(reversed(saved)), tuple(reversed(recomputed)))


def lay_out(problem: RematProblem, decisions: Decisions) -> Program:
    """The execution order of the module docstring."""
    values, recomputed = problem.values, set(decisions.recomputed)
    forward = _forward_values(problem, decisions)
    begin = len(forward)
    positions = {v: p for p, v in enumerate(forward)}
    reads = [[positions[r] for r in values[v].reads if r in positions] for v in forward]
    saved = [positions[s] for s in decisions.saved if s in positions]
    # From here on a recomputed value means its backward copy.
    positions = {s: positions[s] for s in decisions.saved if s in positions}
    order = [*forward, *problem.tangents, *_backward_values(problem, decisions)]
    for position in range(begin, len(order)):
        v = order[position]
        reads.append([positions[r] for r in values[v].reads if r in positions])
        positions[v] = position
    copies = [0] * begin + [int(v in recomputed) for v in order[begin:]]
    returned = [positions[g] for g in problem.gradients if g in positions]
    return Program(order, reads, copies, begin, saved, returned)


def plan_of(problem: RematProblem, decisions: Decisions) -> RematPlan:
    """The plan that runs in the order of the module docstring."""
    recomputed = set(decisions.recomputed)

    def run(v: int, in_backward: bool) -> Run:
        copies = ((r, 1 if in_backward and r in recomputed else 0) for r in problem.values[v].reads)
        return Run(v, 1 if in_backward and v in recomputed else 0, tuple(copies))

    return RematPlan(
        forward=tuple(run(v, False) for v in _forward_values(problem, decisions)),
        backward=tuple(run(v, True) for v in _backward_values(problem, decisions)),
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
        repeats: How often values that forward runs are run again.
    """
    values = problem.values
    return sum(values[i].save_ns for i in saved) + sum(values[i].recompute_ns * n for i, n in repeats.items())


def repeats(program: Program) -> dict[int, int]:
    """How often backward runs values that forward has run."""
    in_forward = set(program.values[: program.forward_end])
    counts: dict[int, int] = {}
    for v, copy in zip(program.values, program.copies, strict=True):
        if copy and v in in_forward:
            counts[v] = counts.get(v, 0) + 1
    return counts


def _forward_values(problem: RematProblem, decisions: Decisions) -> list[int]:
    values, inputs, must = problem.values, problem.inputs, problem.runs_in_forward
    needed = set(decisions.saved)
    steps = []
    for i in reversed(problem.forward_values):
        if (must[i] or i in needed) and i not in inputs:
            steps.append(i)
            if not must[i]:
                needed.update(values[i].reads)
    steps.reverse()
    return steps


def _backward_values(problem: RematProblem, decisions: Decisions) -> list[int]:
    """Backward values in order, before each the recomputed values it is the first to read."""
    values = problem.values
    end = len(values)
    first_reader = dict.fromkeys(decisions.recomputed, end)
    for i in problem.runs_in_backward:
        for read in values[i].reads:
            if first_reader.get(read, -1) > i:
                first_reader[read] = i
    for i in reversed(decisions.recomputed):
        reader = first_reader[i]
        for read in values[i].reads:
            if first_reader.get(read, -1) > reader:
                first_reader[read] = reader
    for i in decisions.recomputed:
        if values[i].kind is Kind.PART:
            first_reader[i] = first_reader.get(values[i].reads[0], first_reader[i])
    before: dict[int, list[int]] = {}
    for i in decisions.recomputed:
        before.setdefault(first_reader[i], []).append(i)
    order: list[int] = []
    for i in problem.runs_in_backward:
        order += before.get(i, ())
        order.append(i)
    return order + before.get(end, [])
