"""Plans that no planner makes, to show that rewriting holds for all of them."""

import random

from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run
from remat_pass.schedule import decide, plan_of

_MOST_COPIES = 3


def plan_with_copies(problem: RematProblem, keep: frozenset[int], seed: int) -> RematPlan:
    """Recompute what is not kept, by a coin each time for a reader of its own: up to three copies of one value.

    A random value has one copy, which is as often as torch can replay its generator state.
    """
    decisions = decide(problem, keep)
    recomputed, chance = set(decisions.recomputed), random.Random(seed)
    copies: dict[int, int] = {}
    steps: list[Run] = []

    def copy_of(v: int) -> CopyId:
        if v not in recomputed:
            return v, 0
        made = copies.get(v, 0)
        if made and (made >= _MOST_COPIES or _draws(problem, v) or chance.random() < 0.5):
            return v, made
        reads = tuple(copy_of(r) for r in problem.values[v].reads)
        copies[v] = made + 1
        steps.append(Run(v, made + 1, reads))
        return v, made + 1

    for v in problem.runs_in_backward:
        steps.append(Run(v, 0, tuple(copy_of(r) for r in problem.values[v].reads)))
    for v in problem.gradients:
        if v in recomputed and v not in copies:
            copy_of(v)
    return RematPlan(plan_of(problem, decisions).forward, tuple(steps))


def _draws(problem: RematProblem, v: int) -> bool:
    return problem.values[v].kind is Kind.RANDOM
