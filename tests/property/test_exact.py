"""The exact planners on random problems, against each other and against a search that knows nothing but the simulator.

Mutants these tests kill: a stage reads what was dropped before it; a tuple outlives its parts, or parts run without it;
views do not need their base; outputs die in forward, or live on; generator states cost nothing, or a draw is repeated
twice; tangents arrive late; what cannot be saved is saved, what cannot be recomputed is; the time of saving, or of a
second run of what forward need not run, is free; merging loses plans that recompute between two steps; the bound
rounds up, forgets that views and tuples can be had again, or counts what merely moves.
"""

from collections.abc import Iterator
from itertools import chain as concatenated
from itertools import combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from remat_pass.bounds import lower_bound
from remat_pass.errors import InfeasibleBudgetError
from remat_pass.exact import Exact, brute_force
from remat_pass.liveness import simulate
from remat_pass.milp import solve_milp
from remat_pass.plan_file import check_plan
from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run
from remat_pass.schedule import decide, plan_ns, plan_of, program_of
from remat_pass.solver import fastest_within, frontier
from tests.support.random_problems import problems

brief = settings(max_examples=50, deadline=None, derandomize=True)
few = settings(max_examples=25, deadline=None, derandomize=True)

_MOST_PLANS = 2**12


def subsets(values: list[int]) -> Iterator[tuple[int, ...]]:
    return concatenated.from_iterable(combinations(values, n) for n in range(len(values) + 1))


def every_plan(problem: RematProblem) -> Iterator[RematPlan]:
    """Any values run in forward, and any before each backward value and at the end, in joint-graph order."""
    values = problem.values
    computed = [v for v in problem.forward_values if v not in problem.inputs]
    must = [v for v in computed if problem.runs_in_forward[v]]
    others = [v for v in computed if not problem.runs_in_forward[v]]
    start: dict[int, CopyId] = {v: (v, 0) for v in (*problem.inputs, *problem.tangents)}

    def run(v: int, copy: int, current: dict[int, CopyId], steps: list[Run]) -> bool:
        """Whether what v reads is there, and an op of several outputs ran in the same gap as its part."""
        reads = tuple(current.get(r, (r, -1)) for r in values[v].reads)
        whole = values[v].kind is Kind.PART and copy and all((s.value, s.copy) != reads[0] for s in steps)
        if whole or any(c < 0 for _, c in reads):
            return False
        current[v] = (v, copy)
        steps.append(Run(v, copy, reads))
        return True

    def gaps(k: int, current: dict[int, CopyId], copies: dict[int, int]) -> Iterator[tuple[Run, ...]]:
        """All ways to run the k-th backward value and what comes behind it."""
        for chosen in subsets(computed):
            now, made, steps = dict(current), dict(copies), list[Run]()
            for v in chosen:
                made[v] = made.get(v, 0) + 1
                if not run(v, made[v], now, steps):
                    break
            else:
                if k == len(problem.runs_in_backward):
                    yield tuple(steps)
                elif run(problem.runs_in_backward[k], 0, now, steps):
                    yield from ((*steps, *rest) for rest in gaps(k + 1, now, made))

    for moved in subsets(others):
        current, steps = dict(start), list[Run]()
        if all([run(v, 0, current, steps) for v in sorted((*must, *moved))]):
            savable = {v: c for v, c in current.items() if values[v].needs_tangent or not values[v].cannot_save}
            for backward in gaps(0, savable, {}):
                plan = RematPlan(tuple(steps), backward)
                if check_plan(problem, plan) is None:
                    yield plan


def limits(problem: RematProblem) -> list[int]:
    """From half the peak of saving everything to all of it, in bytes."""
    everything = plan_of(problem, decide(problem, frozenset(range(len(problem.values)))))
    peak = simulate(problem, program_of(problem, everything)).peak_bytes
    return [peak // 2, peak * 2 // 3, peak * 5 // 6, peak]


def assert_holds(problem: RematProblem, exact: Exact, limit: int) -> None:
    """The plan is one, and its figures are those of its simulation."""
    assert exact.proven
    if exact.plan is None:
        return
    assert check_plan(problem, exact.plan) is None
    assert exact.peak_bytes == simulate(problem, program_of(problem, exact.plan)).peak_bytes
    assert exact.peak_bytes <= limit
    assert exact.recompute_ns == exact.lower_bound_ns == plan_ns(problem, exact.plan)


@brief
@given(problems(most=3))
def test_nothing_beats_brute_force(problem: RematProblem) -> None:
    """Not any plan of its shape, judged by the simulator alone."""
    computed = [v for v in problem.forward_values if v not in problem.inputs]
    assume(2 ** (len(computed) * (1 + len(problem.runs_in_backward))) <= _MOST_PLANS)
    points = [(simulate(problem, program_of(problem, p)).peak_bytes, plan_ns(problem, p)) for p in every_plan(problem)]
    peaks = sorted({peak for peak, _ in points})
    for limit in (peaks[0] - 1, *peaks[:4], peaks[-1]):
        exact = brute_force(problem, limit, copies=True, every_gap=True)
        assert_holds(problem, exact, limit)
        assert exact.recompute_ns == min((ns for peak, ns in points if peak <= limit), default=None)


@brief
@given(problems(most=8), st.integers(0, 3))
def test_the_linear_program_finds_what_brute_force_finds(problem: RematProblem, k: int) -> None:
    limit = limits(problem)[k]
    searched, solved = brute_force(problem, limit, copies=True), solve_milp(problem, limit, time_limit_s=20)
    assert_holds(problem, searched, limit)
    assert_holds(problem, solved, limit)
    assert solved.recompute_ns == searched.recompute_ns


@few
@given(problems(most=6))
def test_copies_and_all_subsets_are_no_worse_than_the_planner(problem: RematProblem) -> None:
    candidates = frontier(problem, honour_wishes=False)
    for limit in limits(problem):
        kept = brute_force(problem, limit, copies=False)
        copied = brute_force(problem, limit, copies=True)
        assert_holds(problem, kept, limit)
        chosen = fastest_within(candidates, limit)
        if chosen is not None:
            assert copied.recompute_ns is not None
            assert copied.recompute_ns <= plan_ns(problem, plan_of(problem, chosen.decisions))
        if kept.recompute_ns is not None:
            assert copied.recompute_ns is not None
            assert copied.recompute_ns <= kept.recompute_ns


@few
@given(problems(most=6))
def test_merged_stages_lose_nothing_but_sweeps(problem: RematProblem) -> None:
    sweeps = 1 + len(problem.runs_in_backward)
    for limit in limits(problem):
        merged = brute_force(problem, limit, copies=True)
        split = brute_force(problem, limit, copies=True, every_gap=True)
        swept = brute_force(problem, limit, copies=True, sweeps=sweeps)
        infinity = 1 << 40
        costs = [infinity if e.recompute_ns is None else e.recompute_ns for e in (swept, split, merged)]
        assert costs == sorted(costs)
        for exact in (split, swept):
            assert_holds(problem, exact, limit)


@brief
@given(problems(most=8))
def test_no_plan_is_below_the_bound(problem: RematProblem) -> None:
    for limit in limits(problem):
        exact = brute_force(problem, limit, copies=True, sweeps=2)
        try:
            bound = lower_bound(problem, limit)
        except InfeasibleBudgetError as error:
            assert exact.plan is None
            assert error.least_peak_bytes > limit
        else:
            assert exact.recompute_ns is None or bound <= exact.recompute_ns


@few
@given(problems(most=6, fuses=True))
def test_the_bound_holds_where_the_lowering_fuses(problem: RematProblem) -> None:
    for limit in limits(problem):
        exact = brute_force(problem, limit, copies=False)
        if exact.recompute_ns is not None:
            assert lower_bound(problem, limit) <= exact.recompute_ns
