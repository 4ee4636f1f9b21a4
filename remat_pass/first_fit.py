"""The plan for a budget in the first order of loops that has one.

Inductor can be kept to several orders (`partition.orders_of`), which differ in how far apart loops may be fused. The
first one costs the least time, and a later one is planned where no plan fits before, or only one that is dear.
"""

from collections.abc import Sequence
from dataclasses import replace

from remat_pass.choice import CLOSE, Choice, Effort, Frontiers, IncumbentPlan, Judge, Judgement, choose, simulated_judge
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import plan_of

_Known = dict[tuple[RematPlan, int], Judgement]
"""What is known of plans, by plan and simulated peak."""

_GLANCE = 1 / 8
"""Share of the planning effort without a budget: torch's own partition stays, and only the report has the frontier. On
GPT-2, HF Llama and ResNet the least peak is the same, and compilation takes 0.7 to 2 s less, of 25 to 38."""


def first_believed(
    orders: Sequence[RematProblem], memory_budget: float | int | None, rival: IncumbentPlan, slack_permille: int
) -> tuple[Choice, RematProblem] | None:
    """The choice by simulation, and its order; None where no plan fits. A dear plan is compared with later orders.

    Args:
        orders: The problem in each.
        memory_budget: As for `choose`.
        rival: Torch's own partition.
        slack_permille: As for `choose`.
    """
    share = _GLANCE if memory_budget is None else 1.0
    found: list[tuple[Choice, RematProblem]] = []
    for problem in orders:
        choice = choose(
            problem,
            memory_budget,
            rival,
            effort=Effort.TRIALS,
            slack_permille=slack_permille,
            frontiers=Frontiers(problem, rival, share),
        )
        if choice.fits:
            found.append((choice, problem))
            if not _is_dear(choice, problem):
                break
    return min(found, key=lambda fit: fit[0].candidate.recompute_ns, default=None)


def first_fit(
    orders: Sequence[tuple[RematProblem, Judge]], memory_budget: float | int | None, rival: IncumbentPlan | None
) -> tuple[Choice, RematProblem, Judge]:
    """The choice by judgement, and its order.

    Where a plan fits that is dear, later orders are tried, too, and the fastest plan is taken. Where no plan fits,
    those of low peak are judged, too, beginning with the order that promises the least of all. The user's tags give way
    after that. In the end the choice is that of the least peak, and does not fit.

    Args:
        orders: The problem in each, and who judges plans for it.
        memory_budget: As for `choose`; a fraction is one of the peak in the first order.
        rival: Torch's own partition; None where there is none.
    """
    frontiers = [Frontiers(problem, rival) for problem, _ in orders]
    efforts = [e for e in Effort if e is not Effort.WITHOUT_TAGS or any(v.wish for v in orders[0][0].values)]
    unconstrained: Judgement | None = None
    for effort in efforts:
        promised = {k: f.least(effort).peak_bytes if effort else 0 for k, f in enumerate(frontiers)}
        refused: dict[int, Choice] = {}
        found: list[tuple[Choice, RematProblem, Judge]] = []
        known: _Known = {}  # of this effort, so that the least peak of all is one that was judged in its own order
        for k in sorted(promised, key=promised.__getitem__):
            problem, judge = orders[k]
            # A judged peak may be a little below the simulated one.
            promised_bytes = problem.with_margin(int(promised[k] * CLOSE))
            if any(choice.least_peak_bytes <= promised_bytes for choice in refused.values()):
                continue
            sparing = _sparing(problem, judge, known, memory_budget)
            choice = choose(problem, memory_budget, rival, sparing, effort=effort, frontiers=frontiers[k])
            unconstrained = unconstrained or choice.unconstrained
            memory_budget = choice.budget_bytes
            if choice.fits:
                found.append((choice, problem, judge))
                if effort or not _is_dear(choice, problem):
                    break
            else:
                refused[k] = choice
        if found:
            assert unconstrained is not None
            # What an incumbent's order is like is not asked for its own sake.
            choice, problem, judge = min(found, key=_step_ns) if len(found) > 1 else found[0]
            return replace(choice, unconstrained=unconstrained), problem, judge
    assert unconstrained is not None
    k = min(refused, key=lambda k: refused[k].least_peak_bytes)
    return replace(refused[k], unconstrained=unconstrained), *orders[k]


def _is_dear(choice: Choice, problem: RematProblem) -> bool:
    """Whether a plan takes longer than all of forward once more: near the least peak of an order, plans run away."""
    once_ns = sum(v.recompute_ns for v, runs in zip(problem.values, problem.runs_in_forward, strict=True) if runs)
    return choice.candidate.recompute_ns > once_ns


def _step_ns(found: tuple[Choice, RematProblem, Judge]) -> int:
    choice, problem, judge = found
    return judge(plan_of(problem, choice.candidate.decisions)).step_ns


def _sparing(problem: RematProblem, judge: Judge, known: _Known, memory_budget: float | int | None) -> Judge:
    """The judge, but a plan known to be well above the budget in another order, and simulated alike, is so in this one.

    That names a least peak up to 1% larger (U-Net), in half the time. What is known grows.
    """
    simulated = simulated_judge(problem)
    limit = problem.without_margin(memory_budget) if isinstance(memory_budget, int) else None

    def of_plan(plan: RematPlan) -> Judgement:
        alike = plan, simulated(plan).peak_bytes
        if alike not in known or limit is None or known[alike].peak_bytes * CLOSE <= limit:
            known[alike] = judge(plan)
        return known[alike]

    return of_plan
