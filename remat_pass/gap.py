"""How far the plan of a report is from the best one: exactly on small graphs, as a bracket on others.

    print(remat_pass.optimality_gap(report))
    a step is at most 0.7% above the optimum: 0.443 ms of recompute, 0.412 ms at best

The optimum is that of `exact` and `milp`: any number of copies, the order of both graphs as it is. What those cannot
solve in time leaves the bracket between a lower bound (theirs or that of `bounds`) and the plan at hand. All of it is
in simulated bytes and estimated times, which is what the planner minimises.
"""

import time
from dataclasses import dataclass, replace

from remat_pass.bounds import lower_bound
from remat_pass.errors import RematError
from remat_pass.exact import brute_force
from remat_pass.milp import solve_milp
from remat_pass.problem import RematProblem
from remat_pass.report import RematReport
from remat_pass.stages import game_of

_MOST_ITEMS = 17
"""Brute force takes about a second then, four times as much for every two more."""
_MOST_DECISIONS = 5_000
"""Items times stages beyond which building the linear program alone takes many seconds."""


@dataclass(frozen=True, slots=True)
class OptimalityGap:
    """Times in nanoseconds. What "added" means: beyond a step that saves everything."""

    recompute_ns: int
    """Added by the plan of the report."""
    lower_bound_ns: int
    """No plan that fits adds less; the optimum itself where that is proven."""
    optimum_ns: int | None
    """Added by the best plan, or None if it is not known."""
    step_ns: int
    """Estimated time of a step that saves everything."""

    @property
    def proven(self) -> bool:
        """Whether the optimum is known."""
        return self.optimum_ns is not None

    @property
    def gap(self) -> float:
        """By what share the step is slower than the best one can be, at most; 0.0 if the plan is optimal."""
        return max(0, self.recompute_ns - self.lower_bound_ns) / max(1, self.step_ns + self.lower_bound_ns)

    def __str__(self) -> str:
        ours, best = (f"{ns / 1e6:.3f} ms" for ns in (self.recompute_ns, self.lower_bound_ns))
        if self.proven and self.recompute_ns <= self.lower_bound_ns:
            return f"optimal: {ours} of recompute"
        known = f"{ours} of recompute, {best} at best" if self.proven else f"recompute in [{best}, {ours}]"
        return f"a step is at most {100 * self.gap:.1f}% above the optimum: {known}"


def optimality_gap(report: RematReport, *, time_limit_s: float = 20.0) -> OptimalityGap:
    """Compare the plan of a report with the best plan within the same limit.

    The limit is the budget less the prediction error, or the simulated peak of the plan where that is larger (no
    budget, or one that no plan meets). Checkpointing tags bind the best plan as they bind the report's.

    Args:
        report: Of a graph that this process has planned.
        time_limit_s: How long the optimum is searched for.

    Raises:
        RematError: The report came back from a warm cache, without the problem it was made for.
    """
    if report.problem is None:
        raise RematError(
            f"the report of graph {report.graph_id[:12]} came back from a warm cache, which does not hold what the "
            "planner knew about the graph. Compile it anew, with torch.compiler.config.force_disable_caches = True."
        )
    limit = report.peak.peak_bytes
    if report.budget_bytes is not None:
        limit = max(limit, report.problem.without_margin(report.budget_bytes))
    problem = report.problem if report.overruled else bound_by_wishes(report.problem)
    return gap_to_optimum(problem, report.recompute_ns, limit, time_limit_s=time_limit_s)


def gap_to_optimum(problem: RematProblem, recompute_ns: int, limit_bytes: int, *, time_limit_s: float) -> OptimalityGap:
    """The gap of a plan that adds `recompute_ns` and whose simulated peak is at most the limit."""
    begin = time.perf_counter()
    bound, optimum = lower_bound(problem, limit_bytes), None
    step_ns = sum(v.recompute_ns for v in problem.values)
    if bound < recompute_ns and not problem.fuses:
        game = game_of(problem)
        if len(game.items) + sum(item.rng_bytes > 0 for item in game.items) <= _MOST_ITEMS:
            optimum = brute_force(problem, limit_bytes, copies=True).recompute_ns
        elif len(game.items) * len(game.stages) <= _MOST_DECISIONS:
            left = max(0.1, time_limit_s - (time.perf_counter() - begin))
            exact = solve_milp(problem, limit_bytes, time_limit_s=left)
            bound = max(bound, exact.lower_bound_ns or 0)
            optimum = exact.recompute_ns if exact.proven else None
    elif bound >= recompute_ns:
        optimum = recompute_ns
    # A plan that runs forward depth first may beat the optimum of the given order.
    best = bound if optimum is None else optimum
    return OptimalityGap(recompute_ns, min(best, recompute_ns), optimum, step_ns)


def bound_by_wishes(problem: RematProblem) -> RematProblem:
    """The problem in which what the user tagged cannot be decided otherwise."""
    values = list(problem.values)
    for v, value in enumerate(values):
        if value.wish == "save" and not value.cannot_save and not value.is_input:
            values[v] = replace(value, cannot_recompute=value.cannot_recompute or "tagged by checkpointing")
        elif value.wish == "recompute" and not value.cannot_recompute and not value.is_input:
            values[v] = replace(value, cannot_save=value.cannot_save or "tagged by checkpointing")
    return replace(problem, values=tuple(values))
