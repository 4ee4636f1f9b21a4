"""Random problems against the exact optimum, five budgets each.

They are those of the property tests (`tests.support.random_problems`), with everything that a graph can throw at a
planner: effects, draws, views of views, ops of several outputs, values that may not be saved or not run again, sizes
and times of nought. Budgets and gaps are those of `gaps`. Ten thousand points are too many to store, so the rows are
the goals.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.contest.goals import Goal
from benchmarks.planning import gaps
from benchmarks.planning.section import Row, Run, Section, Table
from remat_pass.order import late_order, reorder
from remat_pass.problem import RematProblem
from tests.support.random_problems import problems

_PROBLEMS = 2000
_TRIAL_PROBLEMS = 10


def measure(run: Run) -> list[Row]:
    """One row per goal."""
    drawn = _draw(_TRIAL_PROBLEMS if run.trial else _PROBLEMS)
    rows: list[Row] = []
    for number, problem in enumerate(drawn, 1):
        if number % 100 == 1:
            run.doing(f"problem {number} of {len(drawn)}")
        rows += gaps.points(f"draw {number}", problem)
    return [asdict(goal) for goal in gaps.goals(rows)]


def _draw(count: int) -> list[RematProblem]:
    """The same ones every time, in late order as planned graphs are."""
    drawn: list[RematProblem] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(problems())
    def draw(problem: RematProblem) -> None:
        # What else is resident adds to every peak, and to none where a program has no steps.
        alone = replace(problem, resident_forward_bytes=0, resident_backward_bytes=0)
        drawn.append(reorder(alone, *late_order(alone)))

    draw()
    return drawn


def tables(_: Sequence[Row]) -> list[Table]:
    """Nothing but the goals."""
    return []


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Those of `gaps`."""
    return [Goal(**row) for row in rows]


SECTION = Section("draws", "Random problems against the exact optimum", measure, tables, goals)
