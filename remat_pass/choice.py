"""From a frontier and a budget to one plan.

Without a budget the fastest plan wins whose peak is not above the incumbent's, torch's own partition; under eager
lowering, which has no incumbent, nothing is recomputed. With a budget the fastest plan wins whose peak, prediction
error included, fits. What the user's checkpointing asks for binds both, and gives way only to a budget that cannot be
met with it.
"""

from dataclasses import dataclass

from remat_pass.breakdown import break_down
from remat_pass.errors import InfeasibleBudgetError
from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_of
from remat_pass.solver import Candidate, evaluate, fastest_within, frontier
from remat_pass.units import format_bytes

_WORTH_CHANGING = 0.01
"""Share of the modelled step by which a plan must beat torch's own before it replaces it without a budget."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate, and what the report says about the others."""

    candidate: Candidate
    budget_bytes: int | None
    unconstrained_peak_bytes: int
    least_peak_bytes: int
    """Smallest budget that is accepted: the least simulated peak plus the prediction error."""
    is_incumbent: bool
    fits: bool
    overruled: tuple[int, ...]
    """Values whose tag the budget made us ignore, in joint-graph order."""


def choose(problem: RematProblem, memory_budget: float | int | None, incumbent_keep: frozenset[int] | None) -> Choice:
    """Pick the plan for a budget.

    Args:
        problem: The graph.
        memory_budget: None, a fraction of the unconstrained peak (float), or bytes (int).
        incumbent_keep: What torch's own partition saves; None where there is no incumbent.
    """
    extra = () if incumbent_keep is None else (incumbent_keep,)
    honouring = frontier(problem, extra=extra)
    unconstrained, is_incumbent = _without_budget(problem, honouring, incumbent_keep)
    tagged = any(v.wish for v in problem.values)
    free = frontier(problem, extra=extra, honour_wishes=False) if tagged else ()
    least = min(c.peak_bytes for c in (*honouring, *free))
    budget_bytes = _in_bytes(memory_budget, unconstrained.peak_bytes)
    if budget_bytes is None:
        chosen: Candidate | None = unconstrained
    else:
        limit = budget_bytes * 1000 // (1000 + problem.margin_permille)
        chosen = fastest_within(honouring, limit) or fastest_within(free, limit)
    fits = chosen is not None
    if chosen is None:
        chosen = min((*free, *honouring), key=lambda c: c.peak_bytes)
    return Choice(
        candidate=chosen,
        budget_bytes=budget_bytes,
        unconstrained_peak_bytes=unconstrained.peak_bytes,
        least_peak_bytes=-(-least * (1000 + problem.margin_permille) // 1000),
        is_incumbent=is_incumbent and budget_bytes is None,
        fits=fits,
        overruled=_overruled(problem, chosen),
    )


def infeasible(problem: RematProblem, choice: Choice) -> InfeasibleBudgetError:
    """The error that says what is reachable and what stands in the way."""
    assert choice.budget_bytes is not None
    peak = break_down(problem, plan_of(problem, choice.candidate.decisions))
    where = f"in {peak.program} at {peak.value}" + (f" ({peak.source})" if peak.source else "")
    fraction = choice.least_peak_bytes / choice.unconstrained_peak_bytes
    or_fraction = f" or {_rounded_up(fraction)}" if _rounded_up(fraction) <= 1 else ""
    margin = f" (prediction error of {problem.margin_permille / 10:g}% included)" if problem.margin_permille else ""
    return InfeasibleBudgetError(
        f"no plan fits {format_bytes(choice.budget_bytes)}: the least reachable peak of this graph is "
        f"{format_bytes(choice.least_peak_bytes)}{margin}, {where}: {peak.describe()}. Gradients that backward returns "
        f"cannot be recomputed away. Raise memory_budget to at least {choice.least_peak_bytes} bytes{or_fraction}, "
        'or pass on_infeasible="warn" for the least-peak plan.',
        budget_bytes=choice.budget_bytes,
        least_peak_bytes=choice.least_peak_bytes,
    )


def _without_budget(
    problem: RematProblem, candidates: tuple[Candidate, ...], incumbent_keep: frozenset[int] | None
) -> tuple[Candidate, bool]:
    """The fastest plan, or the incumbent where it is not clearly beaten at its own peak."""
    if incumbent_keep is None:
        return candidates[0], False
    incumbent = evaluate(problem, incumbent_keep)
    rival = fastest_within(candidates, incumbent.peak_bytes)
    step_ns = 3 * sum(v.recompute_ns for i, v in enumerate(problem.values) if problem.runs_in_forward[i])
    if rival and incumbent.recompute_ns - rival.recompute_ns > _WORTH_CHANGING * step_ns:
        return rival, False
    return incumbent, True


def _in_bytes(memory_budget: float | int | None, unconstrained_bytes: int) -> int | None:
    if memory_budget is None or isinstance(memory_budget, int):
        return memory_budget
    return int(memory_budget * unconstrained_bytes)


def _rounded_up(fraction: float) -> float:
    return -(-fraction * 1000 // 1) / 1000


def _overruled(problem: RematProblem, chosen: Candidate) -> tuple[int, ...]:
    saved, recomputed = set(chosen.decisions.saved), set(chosen.decisions.recomputed)
    return tuple(
        i
        for i, v in enumerate(problem.values)
        if not v.is_free
        and not v.cannot_recompute
        and ((v.wish == "save" and i in recomputed) or (v.wish == "recompute" and i in saved))
    )
