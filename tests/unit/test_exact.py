"""Exact planners, bounds and the gap on problems whose optimum is known by arithmetic.

Mutants these tests kill: one copy per value; the limit is exclusive; an unsolved program counts as proven; the bound is
that of one moment only; a report without its problem is compared with nothing; tags do not bind the optimum; the gap is
not that of the step.
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from remat_pass.bounds import lower_bound
from remat_pass.errors import InfeasibleBudgetError, RematError
from remat_pass.exact import brute_force, least_peak_bytes
from remat_pass.gap import OptimalityGap, bound_by_wishes, gap_to_optimum, optimality_gap
from remat_pass.milp import solve_milp
from remat_pass.plan_file import check_plan
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import plan_ns, plan_of
from remat_pass.solver import fastest_within, frontier
from remat_pass.stages import game_of
from tests.support.problems import MIB, US, Draft, backward, chain, diamond, names, residual_chain, step


def best_us(problem: RematProblem, mib: int, *, copies: bool = True) -> int | None:
    exact = brute_force(problem, mib * MIB, copies=copies)
    return None if exact.recompute_ns is None else exact.recompute_ns // US


def assert_both(problem: RematProblem, mib: int, recompute_ns: int | None) -> None:
    for exact in (brute_force(problem, mib * MIB, copies=True), solve_milp(problem, mib * MIB, time_limit_s=5)):
        assert (exact.recompute_ns, exact.proven) == (recompute_ns, True)


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_a_chain_in_three_units_runs_every_layer_again_for_each_one_behind_it(layers: int) -> None:
    """The last value, a tangent and a gradient: layer k is computed from the input, k = layers-1 ... 1."""
    assert best_us(chain(layers), 3) == layers * (layers - 1) // 2
    assert best_us(chain(layers), 2) is None


@pytest.mark.parametrize(("mib", "us"), [(10, 0), (9, 1), (8, 2), (7, 3), (6, 4), (5, 5)])
def test_a_chain_with_one_copy_trades_a_value_for_a_run(mib: int, us: int) -> None:
    """Eight values, a tangent and a gradient are 10 MiB."""
    assert best_us(chain(8), mib) == best_us(chain(8), mib, copies=False) == us


def test_below_the_floor_of_one_copy_there_are_copies() -> None:
    assert best_us(chain(8), 4, copies=False) is None
    exact = brute_force(chain(8), 4 * MIB, copies=True)
    assert (exact.peak_bytes, exact.recompute_ns, exact.proven) == (4 * MIB, 9 * US, True)
    assert exact.plan is not None
    assert max(exact.plan.recomputed().values()) == 2


@pytest.mark.parametrize("layers", [1, 2, 8])
def test_the_least_peak_of_a_chain_does_not_depend_on_its_length(layers: int) -> None:
    assert least_peak_bytes(chain(layers)) == 3 * MIB


def test_forward_outputs_live_until_forward_returns() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("early", "x", mib=4)
    draft.op("late", "x", workspace_bytes=4 * MIB)
    draft.tangent("t")
    draft.backward("d", "t early")
    problem = draft.build(outputs="early late", gradients="d")
    # Both outputs and the workspace of the second: recomputing the first does not make room for it.
    for mib, ns in ((9, 0), (8, None)):
        assert_both(problem, mib, ns)
    assert least_peak_bytes(problem) == 9 * MIB


def test_the_linear_program_solves_what_brute_force_cannot() -> None:
    problem = chain(24)
    exact = solve_milp(problem, 20 * MIB, time_limit_s=20)
    assert (exact.recompute_ns, exact.lower_bound_ns, exact.proven) == (6 * US, 6 * US, True)
    assert exact.plan is not None
    assert check_plan(problem, exact.plan) is None
    with pytest.raises(ValueError, match=r"24 values are too many for brute force"):
        brute_force(problem, 20 * MIB, copies=True)
    with pytest.raises(ValueError, match=r"24 decisions are too many for brute force"):
        brute_force(problem, 20 * MIB, copies=False)


def test_a_program_cut_short_has_a_bracket() -> None:
    exact = solve_milp(chain(40), 8 * MIB, time_limit_s=0.2)
    assert not exact.proven
    assert exact.lower_bound_ns is not None
    assert exact.recompute_ns is None or exact.lower_bound_ns < exact.recompute_ns


def test_where_nothing_fits_that_is_proven() -> None:
    for exact in (brute_force(chain(4), 2 * MIB, copies=True), solve_milp(chain(4), 2 * MIB, time_limit_s=5)):
        assert (exact.plan, exact.recompute_ns, exact.lower_bound_ns, exact.proven) == (None, None, None, True)
    with pytest.raises(InfeasibleBudgetError, match=r"takes about 1048576 bytes more") as caught:
        lower_bound(chain(4), 2 * MIB)
    assert caught.value.least_peak_bytes == 3 * MIB


def test_fused_storages_are_not_modelled() -> None:
    with pytest.raises(ValueError, match=r"fuses=False"):
        solve_milp(chain(4, fuses=True), 4 * MIB, time_limit_s=5)


def test_an_op_that_returns_what_it_read_is_refused() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("b", "a", mib=0, holds=(1,))
    draft.tangent("t")
    draft.backward("db", "t b")
    with pytest.raises(ValueError, match=r"b \(extern\) is not free to compute and shares the storage"):
        game_of(draft.build(outputs="b", gradients="db"))


def test_views_and_what_is_free_to_save_are_no_decisions() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("scalar", "a", mib=0)
    draft.view("v", "a")
    draft.op("b", "v")
    draft.tangent("t")
    draft.backward("db", "t v scalar")
    draft.backward("dx", "db")
    problem = draft.build(outputs="b scalar", gradients="dx")
    game = game_of(problem)
    assert [problem.values[item.value].name for item in game.items] == ["a"]
    assert [[problem.values[s.value].name for s in stage.steps] for stage in game.stages] == [["db", "dx"]]
    exact = brute_force(problem, 3 * MIB, copies=True)
    assert exact.plan is not None
    assert backward(problem, exact.plan) == "v' db dx"


def three_steps(
    *,
    tangent: int = 1,
    sizes: tuple[int, int] = (1, 1),
    work: tuple[int, int] = (0, 0),
    a: int = 0,
    b: int,
    b_work: int,
) -> RematProblem:
    """d1, d2, d3 of which d3 alone reads b, which has to be recomputed: from a, which has to be saved, or from x.

    Figures in MiB: of the tangent, of d1 and d2 and their workspaces, of a (0: there is none), of b and its workspace.
    """
    draft = Draft()
    draft.input("x")
    if a:
        draft.op("a", "x", mib=a, cannot_recompute="a collective")
    draft.op("b", "a" if a else "x", mib=b, workspace_bytes=b_work * MIB, cannot_save="not a tensor")
    draft.op("out", "b", mib=0)
    draft.tangent("t", mib=tangent)
    draft.backward("d1", "t", mib=sizes[0], workspace_bytes=work[0] * MIB)
    draft.backward("d2", "d1", mib=sizes[1], workspace_bytes=work[1] * MIB)
    draft.backward("d3", "d2 b")
    return draft.build(outputs="out", gradients="d3")


@pytest.mark.parametrize(
    ("problem", "mib"),
    [
        # b takes 7 to run. d1 takes 11 without it, 4 are left then, 5 after d2: run it between the two.
        (three_steps(sizes=(4, 5), work=(6, 0), b=1, b_work=6), 11),
        # b takes 7 beside a, and makes a superfluous before d2, which needs 10. The tangent is large: behind d1.
        (three_steps(tangent=4, work=(0, 8), a=4, b=1, b_work=6), 12),
        # b takes 7 to run, and only 1 is left behind d2, which needs 10.
        (three_steps(tangent=4, sizes=(5, 1), work=(0, 4), b=1, b_work=6), 10),
        # b is 4, and d2 needs 7: behind it.
        (three_steps(work=(0, 5), b=4, b_work=0), 7),
    ],
)
def test_no_sweep_is_merged_away_that_some_limit_needs(problem: RematProblem, mib: int) -> None:
    assert least_peak_bytes(problem) == mib * MIB
    merged, split = (brute_force(problem, mib * MIB, copies=True, every_gap=gaps) for gaps in (False, True))
    assert merged.recompute_ns == split.recompute_ns == US
    assert brute_force(problem, mib * MIB - 1, copies=True, every_gap=True).plan is None
    # b may be alive at d2 although it cannot be saved: a need not be.
    assert lower_bound(problem, mib * MIB) <= US


def test_a_view_is_computed_again_where_its_base_is() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=4)
    draft.view("v", "a")
    draft.op("out", "v", mib=0)
    draft.tangent("t")
    draft.backward("d1", "t v")
    draft.backward("d2", "d1", workspace_bytes=6 * MIB)
    draft.backward("d3", "d2 v")
    problem = draft.build(outputs="out", gradients="d3")
    # d2 takes 8 MiB: what d1 read of the saved a is computed again for d3.
    exact = brute_force(problem, 8 * MIB, copies=True)
    assert exact.plan is not None
    assert (backward(problem, exact.plan), exact.recompute_ns) == ("v' d1 d2 a' v'' d3", US)


def test_what_is_free_to_run_but_holds_nothing_outlives_what_it_reads() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=4, cannot_recompute="a collective")
    draft.op("length", "a", mib=0, us=0, cannot_save="only integers can be handed over")
    draft.op("out", "length", mib=0)
    draft.tangent("t")
    draft.backward("d1", "t length")
    draft.backward("d2", "d1", workspace_bytes=5 * MIB)
    draft.backward("d3", "d2 length")
    # d2 takes 7 MiB; a is gone by then.
    assert_both(draft.build(outputs="out", gradients="d3"), 7, 0)


def test_views_of_gradients_keep_their_base() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x", mib=0)
    draft.tangent("t")
    draft.backward("d1", "t", mib=4)
    draft.view("v", "d1", needs_tangent=True)
    draft.backward("d2", "t", workspace_bytes=3 * MIB)
    draft.backward("d3", "d2 v")
    # At d2: t, d1 through v, d2 and its workspace.
    problem = draft.build(outputs="out", gradients="d3")
    assert_both(problem, 9, 0)
    assert_both(problem, 8, None)


def test_a_second_run_of_what_only_backward_needs_counts() -> None:
    """A value that moves from forward to backward is free once."""
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.op("mask", "x", us=5)
    draft.tangent("t")
    draft.backward("d1", "t mask")
    draft.backward("d2", "d1 mask")
    problem = draft.build(outputs="out", gradients="d2")
    forward = (step(problem, "out", "x"),)
    once = (step(problem, "mask'", "x"), step(problem, "d1", "t", "mask'"))
    again = (*once, step(problem, "mask''", "x"), step(problem, "d2", "d1", "mask''"))
    assert plan_ns(problem, RematPlan(forward, (*once, step(problem, "d2", "d1", "mask'")))) == 0
    assert plan_ns(problem, RematPlan(forward, again)) == 5 * US


def test_a_draw_is_repeated_once_and_its_state_takes_bytes() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.random("drawn", "a", mib=4, state_mib=1)
    draft.op("out", "drawn")
    draft.tangent("t")
    draft.backward("d1", "t out", workspace_bytes=5 * MIB)
    draft.backward("d2", "d1 drawn")
    once = draft.build(outputs="out", gradients="d2")
    draft.backward("d3", "d2", workspace_bytes=5 * MIB)
    draft.backward("d4", "d3 drawn")
    twice = draft.build(outputs="out", gradients="d4")
    # At d1: t, out, d1 and its workspace are 8 MiB, the value drawn 4 more or the state it is drawn from again 1 more.
    # At d3: d2, d3 and its workspace are 7 MiB, the value drawn 4 more (and a is saved); there is no third draw.
    for problem, mib, us in ((once, 12, 0), (once, 9, 2), (once, 8, None), (twice, 11, 1), (twice, 10, None)):
        expected = None if us is None else us * US
        assert_both(problem, mib, expected)


@pytest.mark.parametrize("mib", range(5, 11))
def test_the_bound_of_a_chain_is_tight(mib: int) -> None:
    assert lower_bound(chain(8), mib * MIB) == (10 - mib) * US


@pytest.mark.parametrize("mib", [20, 24, 28])
def test_the_bound_is_below_the_planner(mib: int) -> None:
    problem = residual_chain(8)
    chosen = fastest_within(frontier(problem), mib * MIB)
    assert chosen is not None
    assert 0 < lower_bound(problem, mib * MIB) <= plan_ns(problem, plan_of(problem, chosen.decisions))


def test_prices_survive_a_graph_of_100_gib() -> None:
    problem = chain(8)
    values = tuple(replace(v, size=replace(v.size, hint=v.size.hint << 14)) for v in problem.values)
    assert lower_bound(replace(problem, values=values), (6 * MIB) << 14) == 4 * US


# The gap.


def report_of(problem: RematProblem | None, **more: object) -> Any:
    """What `optimality_gap` reads of a report."""
    defaults = {"graph_id": "a" * 64, "budget_bytes": 6 * MIB, "margin_permille": 0, "overruled": ()}
    peak = SimpleNamespace(peak_bytes=6 * MIB)
    return SimpleNamespace(**{**defaults, "recompute_ns": 4 * US, "peak": peak, "problem": problem, **more})


def test_the_gap_is_that_of_the_step() -> None:
    gap = optimality_gap(report_of(chain(8), recompute_ns=6 * US))
    assert (gap.optimum_ns, gap.lower_bound_ns, gap.proven, gap.step_ns) == (4 * US, 4 * US, True, 16 * US)
    assert math.isclose(gap.gap, 2 / 20)
    assert str(gap) == "a step is at most 10.0% above the optimum: 0.006 ms of recompute, 0.004 ms at best"


def test_an_optimal_plan_says_so() -> None:
    gap = optimality_gap(report_of(chain(8)))
    assert (gap.gap, str(gap)) == (0.0, "optimal: 0.004 ms of recompute")


def test_a_large_graph_has_a_bracket() -> None:
    gap = gap_to_optimum(residual_chain(60), 5_000 * US, 80 * MIB, time_limit_s=1)
    assert (gap.optimum_ns, gap.proven) == (None, False)
    assert 0 < gap.lower_bound_ns < 5_000 * US
    assert str(gap).endswith(f"recompute in [{gap.lower_bound_ns / 1e6:.3f} ms, 5.000 ms]")


def test_the_limit_is_the_budget_less_the_prediction_error_or_the_plan_itself() -> None:
    problem = chain(8)
    assert optimality_gap(report_of(replace(problem, margin_permille=200), budget_bytes=7 * MIB)).optimum_ns == 4 * US
    assert optimality_gap(report_of(problem, budget_bytes=7 * MIB)).optimum_ns == 3 * US
    assert optimality_gap(report_of(problem, budget_bytes=None)).optimum_ns == 4 * US
    assert optimality_gap(report_of(problem, budget_bytes=2 * MIB)).optimum_ns == 4 * US


def test_a_report_from_a_warm_cache_cannot_be_compared() -> None:
    with pytest.raises(RematError, match=r"aaaaaaaaaaaa came back from a warm cache"):
        optimality_gap(report_of(None))


def test_tags_bind_the_optimum_unless_they_were_overruled() -> None:
    problem = diamond()
    values = list(problem.values)
    values[problem.index["right"]] = replace(values[problem.index["right"]], wish="recompute")
    tagged = replace(problem, values=tuple(values))
    plan = brute_force(bound_by_wishes(tagged), 6 * MIB, copies=True).plan
    assert plan is not None
    assert names(tagged, plan.saved(tagged)) == "a left"
    wide = SimpleNamespace(peak_bytes=6 * MIB)
    assert optimality_gap(report_of(tagged, recompute_ns=US, peak=wide)).optimum_ns == US
    assert optimality_gap(report_of(tagged, recompute_ns=US, peak=wide, overruled=("right",))).optimum_ns == 0


def test_a_plan_that_reorders_backward_may_be_below_the_optimum() -> None:
    gap = OptimalityGap(recompute_ns=3, lower_bound_ns=3, optimum_ns=4, step_ns=10)
    assert gap.gap == 0.0
