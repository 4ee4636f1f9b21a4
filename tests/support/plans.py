"""Plans that no planner makes, to show that rewriting holds for all of them."""

import random

from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run
from remat_pass.schedule import decide, plan_of

_MOST_COPIES = 3


def plan_with_copies(problem: RematProblem, keep: frozenset[int], seed: int) -> RematPlan:
    """Recompute what is not kept, by a coin each time for a reader of its own: up to three copies of one value.

    A random value has one copy, which is as often as torch can replay its generator state. The parts of an op stand
    right behind it, where torch puts them.
    """
    values = problem.values
    decisions = decide(problem, keep)
    recomputed, chance = set(decisions.recomputed), random.Random(seed)
    copies: dict[int, int] = {}
    steps: list[Run] = []

    def copy_of(v: int) -> CopyId:
        if v not in recomputed:
            return v, 0
        made = copies.get(v, 0)
        if not made or (made < _MOST_COPIES and not _is_drawn(problem, v) and chance.random() < 0.5):
            make(values[v].reads[0] if is_part_of_recomputed(v) else v)
        return v, copies[v]

    def make(v: int) -> None:
        reads = tuple(copy_of(r) for r in values[v].reads)
        copies[v] = copies.get(v, 0) + 1
        steps.append(Run(v, copies[v], reads))
        for part in problem.readers[v]:
            if values[part].kind is Kind.PART and part in recomputed:
                make_part(part)

    def make_part(v: int) -> None:
        whole = values[v].reads[0]
        copies[v] = copies.get(v, 0) + 1
        steps.append(Run(v, copies[v], ((whole, copies[whole]),)))

    def is_part_of_recomputed(v: int) -> bool:
        return values[v].kind is Kind.PART and values[v].reads[0] in recomputed

    for v in problem.runs_in_backward:
        steps.append(Run(v, 0, tuple(copy_of(r) for r in values[v].reads)))
    for v in problem.gradients:
        if v in recomputed and v not in copies:
            copy_of(v)
    return RematPlan(plan_of(problem, decisions).forward, tuple(steps))


def _is_drawn(problem: RematProblem, v: int) -> bool:
    """Whether it is a random value, or a part of one."""
    value = problem.values[v]
    return value.kind is Kind.RANDOM or (value.kind is Kind.PART and _is_drawn(problem, value.reads[0]))
