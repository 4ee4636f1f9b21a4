"""From a budget to a plan: with and without budget, with tags, at the edge and below it.

Mutants these tests kill: the prediction error is left out of the budget or of the least peak, or rounded down; tags are
never overruled, or overruled although the budget can be met with them.
"""

import re
from dataclasses import replace

import pytest

from remat_pass.choice import (
    Choice,
    Effort,
    IncumbentPlan,
    Judgement,
    choose,
    infeasible,
    op_by_op_peak,
    simulated_judge,
)
from remat_pass.errors import InfeasibleBudgetError
from remat_pass.problem import RematPlan, RematProblem, Size
from remat_pass.schedule import plan_of
from remat_pass.search import Proposal, evaluate
from remat_pass.solver import frontier
from tests.support.problems import MIB, US, Draft, chain, diamond, keep, names, residual_chain


def peak_mib(choice: Choice) -> float:
    return choice.candidate.peak_bytes / MIB


def two_layers(**more: object) -> RematProblem:
    """14 MiB with everything saved, 10 with a1 recomputed for 40 us."""
    return replace(residual_chain(2), **more)  # type: ignore[arg-type]


def with_wishes(**wishes: str) -> RematProblem:
    problem = two_layers()
    return replace(problem, values=tuple(replace(v, wish=wishes.get(v.name)) for v in problem.values))


def test_without_a_budget_nothing_is_recomputed() -> None:
    choice = choose(two_layers(), None, None)
    assert (peak_mib(choice), choice.candidate.recompute_ns) == (14, 0)
    assert (choice.budget_bytes, choice.fits, choice.is_incumbent, choice.overruled) == (None, True, False, ())
    assert (choice.unconstrained_peak_bytes, choice.least_peak_bytes) == (14 * MIB, 10 * MIB)


def test_a_budget_takes_the_fastest_plan_that_fits() -> None:
    choice = choose(two_layers(), 14 * MIB, None)
    assert (peak_mib(choice), choice.candidate.recompute_ns, choice.fits) == (14, 0, True)
    choice = choose(two_layers(), 14 * MIB - 1, None)
    assert (peak_mib(choice), choice.candidate.recompute_ns, choice.fits) == (10, 40 * US, True)


def test_a_budget_below_the_least_peak_takes_the_plan_of_the_least_peak_and_says_so() -> None:
    choice = choose(two_layers(), 10 * MIB - 1, None)
    assert (peak_mib(choice), choice.fits, choice.budget_bytes) == (10, False, 10 * MIB - 1)


def test_a_fraction_is_one_of_the_unconstrained_peak_rounded_down() -> None:
    assert choose(two_layers(), 1.0, None).budget_bytes == 14 * MIB
    choice = choose(two_layers(), 0.75, None)
    assert (choice.budget_bytes, peak_mib(choice), choice.fits) == (14 * MIB * 3 // 4, 10, True)
    choice = choose(two_layers(), 0.3333333, None)
    assert (choice.budget_bytes, choice.fits) == (4893354, False)  # 4893354.18


def test_the_prediction_error_is_kept_out_of_the_budget() -> None:
    problem = two_layers(margin_permille=40)
    choice = choose(problem, None, None)
    assert choice.unconstrained_peak_bytes == 14 * MIB
    assert choice.least_peak_bytes == 10905191  # 10 MiB * 1.04 = 10905190.4
    assert choose(problem, 10905191, None).fits
    assert not choose(problem, 10905190, None).fits
    assert choose(problem, 15267266, None).candidate.recompute_ns == 40 * US
    assert choose(problem, 15267267, None).candidate.recompute_ns == 0  # 14 MiB * 1.04 = 15267266.56


def test_the_peak_of_each_plan_is_a_budget_that_takes_it() -> None:
    """To the byte: with these numbers interpolation in floats is one byte short."""
    layers = residual_chain(6)
    odd = tuple(replace(v, size=Size(v.size.hint // 1024 + 3) if v.size.hint else v.size) for v in layers.values)
    problem = replace(layers, values=odd)
    candidates = frontier(problem)
    assert len(candidates) > 10
    chosen = [choose(problem, c.peak_bytes, None).candidate for c in candidates]
    assert [(c.peak_bytes, c.recompute_ns) for c in chosen] == [(c.peak_bytes, c.recompute_ns) for c in candidates]


def test_peaks_fall_with_the_budget() -> None:
    problem = residual_chain(4)
    peaks = [choose(problem, percent / 100, None).candidate.peak_bytes for percent in range(100, 0, -7)]
    assert peaks == sorted(peaks, reverse=True)


def test_an_infeasible_budget_names_what_is_reachable_and_what_holds_it_up() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("huge", "t out", mib=640, source="model.py:88")
    problem = draft.build(outputs="out", gradients="huge")
    choice = choose(problem, 256 * MIB, None)
    assert (choice.fits, peak_mib(choice)) == (False, 642)
    error = infeasible(problem, choice)
    assert isinstance(error, InfeasibleBudgetError)
    assert (error.budget_bytes, error.least_peak_bytes) == (256 * MIB, 642 * MIB)
    message = str(error)
    assert message.startswith(
        "no plan fits 256.0 MiB: the least reachable peak of this graph is 642.0 MiB, "
        "in backward at huge (model.py:88): 640.0 MiB gradients, "
    )
    assert "1.0 MiB tangents" in message
    assert "Raise memory_budget to at least 673185792 bytes or 1.0, " in message
    assert message.endswith('or pass on_infeasible="warn" for the least-peak plan.')


def test_the_message_states_the_prediction_error_and_no_fraction_above_one() -> None:
    problem = chain(1, margin_permille=40)  # its only peak is 3 MiB
    message = str(infeasible(problem, choose(problem, MIB, None)))
    assert "peak of this graph is 3.1 MiB (prediction error of 4% included), in backward at b1: " in message
    assert "to at least 3271558 bytes, or pass" in message


@pytest.mark.parametrize("margin_permille", [0, 1, 40, 333])
@pytest.mark.parametrize("layers", range(1, 9))
def test_what_the_error_names_is_accepted(layers: int, margin_permille: int) -> None:
    problem = chain(layers, margin_permille=margin_permille)
    error = infeasible(problem, choose(problem, 1, None))
    assert choose(problem, error.least_peak_bytes, None).fits
    assert not choose(problem, error.least_peak_bytes - 1, None).fits
    fraction = re.search(r" bytes or ([0-9.]+),", str(error))
    if fraction:
        assert choose(problem, float(fraction[1]), None).fits


@pytest.mark.parametrize(("least", "unconstrained"), [(1, 3), (2, 3), (29, 100), (57, 100), (999, 1000), (7, 7)])
def test_the_fraction_that_the_error_names_is_enough_to_the_byte(least: int, unconstrained: int) -> None:
    """29 of 100 bytes are 0.29, but int(0.29 * 100) is 28."""
    problem = chain(1)
    choice = replace(choose(problem, 1, None), least_peak_bytes=least, unconstrained=Judgement(unconstrained, 0))
    fraction = re.search(r" bytes or ([0-9.]+),", str(infeasible(problem, choice)))
    assert fraction
    assert int(float(fraction[1]) * unconstrained) >= least


def incumbent(problem: RematProblem, kept: str, mib: int) -> IncumbentPlan:
    kept_values = keep(problem, kept)
    plan = plan_of(problem, evaluate(problem, Proposal(kept_values)).candidate.decisions)
    return IncumbentPlan(kept_values, Judgement(mib * MIB, simulated_judge(problem)(plan).step_ns))


def test_the_incumbent_stays_where_it_needs_no_more_than_op_by_op_and_no_other_plan_is_judged() -> None:
    problem = two_layers()

    def judge(plan: RematPlan) -> Judgement:
        raise AssertionError("that takes a tenth of the compile time")

    for kept in ("a1 r1 a2", "r1"):
        choice = choose(problem, None, incumbent(problem, kept, 14), judge)
        assert (choice.is_incumbent, choice.unconstrained_peak_bytes) == (True, 14 * MIB)


def test_the_incumbent_stays_where_neither_its_time_nor_its_order_is_beaten() -> None:
    problem = two_layers()
    choice = choose(problem, None, incumbent(problem, "a1 r1 a2", 15))
    assert (choice.is_incumbent, choice.unconstrained_peak_bytes) == (True, 15 * MIB)


def test_what_the_incumbent_saves_is_kept_in_our_order_where_that_peaks_clearly_lower() -> None:
    problem = two_layers()
    choice = choose(problem, None, incumbent(problem, "a1 r1 a2", 16))
    assert (choice.is_incumbent, choice.unconstrained_peak_bytes, choice.candidate.recompute_ns) == (False, 14 * MIB, 0)


def test_a_clearly_faster_rival_of_no_higher_peak_replaces_the_incumbent() -> None:
    problem = two_layers()
    # Saving everything peaks no higher than this one does in its order, and takes no time.
    choice = choose(problem, None, incumbent(problem, "r1", 15))
    assert (choice.is_incumbent, choice.candidate.recompute_ns, peak_mib(choice)) == (False, 0, 14)


def test_a_rival_that_needs_more_memory_does_not_replace_the_incumbent() -> None:
    problem = two_layers()
    rival = incumbent(problem, "r1 a2", 15)
    choice = choose(problem, None, rival, lambda plan: Judgement(16 * MIB, 0))
    assert (choice.is_incumbent, choice.candidate.recompute_ns, peak_mib(choice)) == (True, 40 * US, 10)


@pytest.mark.parametrize(("mib", "peak"), [(20, 14), (14, 14), (13, 10), (10, 10), (1, 14)])
def test_in_place_of_a_wrong_incumbent_the_fastest_plan_takes_no_more_memory(mib: int, peak: int) -> None:
    """Where there is none, it is the fastest of all."""
    problem = two_layers()
    rival = replace(incumbent(problem, "a1 r1 a2", mib), is_wrong=True)
    choice = choose(problem, None, rival)
    assert (choice.is_incumbent, peak_mib(choice), choice.unconstrained_peak_bytes) == (False, peak, peak * MIB)


@pytest.mark.parametrize(("slower", "replaced"), [(0.01, True), (0.03, False)])
def test_where_the_model_has_checkpoints_a_rival_of_less_memory_may_be_a_little_slower(
    slower: float, replaced: bool
) -> None:
    problem = with_wishes(a2="recompute")
    rival = incumbent(problem, "a1 r1", 100)
    step_ns = int(rival.judgement.step_ns * (1 + slower))
    choice = choose(problem, None, rival, lambda plan: Judgement(50 * MIB, step_ns))
    assert choice.is_incumbent is not replaced


def test_elsewhere_it_may_not() -> None:
    problem = two_layers()
    rival = incumbent(problem, "a1 r1 a2", 100)
    step_ns = int(rival.judgement.step_ns * 1.01)
    assert choose(problem, None, rival, lambda plan: Judgement(50 * MIB, step_ns)).is_incumbent


def test_op_by_op_nothing_is_saved_that_only_backward_computes() -> None:
    """As uncompiled: the slope of an activation is worked out when its gradient is."""
    draft = Draft()
    draft.input("x")
    draft.op("y", "x")
    draft.several("pool", "y", {"z": 1, "indices": 1})
    draft.op("slope", "y", mib=10)
    draft.op("more", "z", mib=10)
    draft.op("out", "z", mib=0)
    draft.tangent("t", 0)
    draft.backward("dz", "t more indices")
    draft.backward("dx", "dz slope")
    problem = draft.build(outputs="out", gradients="dx")
    # y, the other large value and two gradients; 22 with both large ones saved.
    assert op_by_op_peak(problem) == 13 * MIB


def test_with_a_budget_the_incumbent_is_one_candidate_of_many() -> None:
    problem = diamond()
    choice = choose(problem, 1.0, incumbent(problem, "left right", 100))
    assert not choice.is_incumbent
    assert choice.candidate.recompute_ns == 0


def test_a_budget_that_the_incumbent_fits_leaves_it_as_it_is() -> None:
    problem = two_layers()
    rival = incumbent(problem, "a1 r1 a2", 14)
    assert choose(problem, 14 * MIB, rival).is_incumbent
    assert choose(problem, 100 * MIB, rival).is_incumbent
    choice = choose(problem, 13 * MIB, rival)
    assert (choice.is_incumbent, peak_mib(choice)) == (False, 10)


def test_before_a_budget_is_refused_the_candidates_next_to_the_least_are_judged() -> None:
    problem = chain(6)
    points = frontier(problem)
    second = plan_of(problem, points[-2].decisions)

    judged: list[RematPlan] = []

    def judge(plan: RematPlan) -> Judgement:
        """The second least plan is the least one."""
        judged.append(plan)
        return Judgement(MIB if plan == second else 100 * MIB, 0)

    choice = choose(problem, 2 * MIB, None, judge)
    assert (choice.fits, choice.candidate, choice.least_peak_bytes) == (True, points[-2], MIB)
    judged.clear()
    refused = choose(problem, MIB // 2, None, judge)
    assert (refused.fits, refused.candidate, refused.least_peak_bytes) == (False, points[-2], MIB)
    assert not any(plan_of(problem, point.decisions) in judged for point in points[1:-2])


@pytest.mark.parametrize("which", [-1, -2])
def test_a_budget_that_a_plan_fits_is_not_refused_because_its_simulated_peak_is_higher(which: int) -> None:
    problem = chain(6)
    points = frontier(problem)
    chosen = plan_of(problem, points[which].decisions)
    least = points[which].peak_bytes * 9 // 10

    def judge(plan: RematPlan) -> Judgement:
        return Judgement(least if plan == chosen else 100 * MIB, 0)

    refused = choose(problem, 1, None, judge)
    assert (refused.fits, refused.least_peak_bytes) == (False, least)
    assert choose(problem, least, None, judge).candidate == points[which]


def test_the_candidates_judged_before_a_budget_is_refused_reach_well_above_the_least() -> None:
    problem = residual_chain(32)
    least = frontier(problem)[-1].peak_bytes

    def judge(plan: RematPlan) -> Judgement:
        simulated = simulated_judge(problem)(plan).peak_bytes
        return Judgement(simulated if simulated > 1.15 * least else 2 * simulated, 0)

    refused = choose(problem, 1, None, judge)
    assert 1.15 * least < refused.least_peak_bytes < 1.25 * least
    assert choose(problem, refused.least_peak_bytes, None, judge).fits


def test_a_trial_that_does_not_fit_is_followed_by_a_lower_one() -> None:
    problem = chain(12)
    points = frontier(problem)
    extra = {plan_of(problem, points[1].decisions): MIB, plan_of(problem, points[2].decisions): 3 * MIB}

    def judge(plan: RematPlan) -> Judgement:
        """The second plan is closer to the limit than the third, which is simulated lower."""
        return Judgement(simulated_judge(problem)(plan).peak_bytes + extra.get(plan, 0), 0)

    choice = choose(problem, points[1].peak_bytes, None, judge)
    assert choice.candidate in points[3:-1]


def test_where_all_that_should_fit_is_below_the_least_peak_the_least_is_tried_and_what_is_between() -> None:
    """What is judged falls three times as fast as what is simulated: by the first trial alone nothing would fit."""
    problem = residual_chain(6)
    candidates = frontier(problem)
    least = candidates[-1].peak_bytes

    def judge(plan: RematPlan) -> Judgement:
        found = simulated_judge(problem)(plan)
        return replace(found, peak_bytes=least + 1 + 3 * (found.peak_bytes - least))

    between = candidates[-3]
    limit = judge(plan_of(problem, between.decisions)).peak_bytes
    choice = choose(problem, limit, None, judge, effort=Effort.TRIALS)
    assert choice.fits
    assert choice.candidate.recompute_ns <= between.recompute_ns < candidates[-1].recompute_ns


def test_where_something_else_will_be_tried_only_candidates_that_should_fit_are_judged() -> None:
    problem = chain(6)
    points = frontier(problem)
    judged: list[RematPlan] = []

    def judge(plan: RematPlan) -> Judgement:
        judged.append(plan)
        return Judgement(100 * MIB, 0)

    choice = choose(problem, points[-1].peak_bytes - 1, None, judge, effort=Effort.TRIALS)
    assert not choice.fits
    assert judged == [plan_of(problem, points[0].decisions)]  # the one without a budget


def test_tags_give_way_where_nothing_else_will_be_tried() -> None:
    problem = chain(6)
    tagged = replace(problem, values=tuple(replace(v, wish="save") if v.name == "f3" else v for v in problem.values))
    least = frontier(problem)[-1].peak_bytes
    fits = [choose(tagged, least, effort=effort).fits for effort in Effort]
    assert fits == [False, False, True]


def test_a_judge_that_sees_more_than_the_simulation_is_believed() -> None:
    problem = two_layers()

    def judge(plan: RematPlan) -> Judgement:
        return Judgement(simulated_judge(problem)(plan).peak_bytes * 5 // 4, 0)

    choice = choose(problem, 14 * MIB, None, judge)
    assert (choice.fits, peak_mib(choice), choice.least_peak_bytes) == (True, 10, 10 * MIB * 5 // 4)
    assert not choose(problem, 12 * MIB, None, judge).fits
    assert choose(problem, choice.least_peak_bytes, None, judge).fits


def test_a_judge_that_sees_less_than_the_simulation_lets_a_faster_plan_through() -> None:
    problem = two_layers()
    choice = choose(problem, 10 * MIB, None, lambda plan: Judgement(simulated_judge(problem)(plan).peak_bytes // 2, 0))
    assert (choice.fits, choice.candidate.recompute_ns) == (True, 0)


def test_tags_are_honoured_without_a_budget() -> None:
    problem = with_wishes(a2="recompute")
    choice = choose(problem, None, None)
    assert names(problem, choice.candidate.decisions.recomputed) == "a2"
    assert choice.overruled == ()


def test_tags_are_honoured_where_the_budget_can_be_met_with_them() -> None:
    problem = with_wishes(a2="save", r1="save")
    choice = choose(problem, 10 * MIB, None)
    assert names(problem, choice.candidate.decisions.saved) == "r0 w r1 a2"
    assert (choice.fits, choice.overruled) == (True, ())
    # Not even where going against them would be faster and fit as well.
    slower = with_wishes(a2="recompute")
    choice = choose(slower, 14 * MIB, None)
    assert (names(slower, choice.candidate.decisions.recomputed), choice.overruled) == ("a2", ())


def test_tags_give_way_to_a_budget_that_cannot_be_met_with_them() -> None:
    problem = with_wishes(a1="save", a2="save", r1="save")
    assert choose(problem, 14 * MIB, None).overruled == ()
    choice = choose(problem, 14 * MIB - 1, None)
    assert (choice.fits, peak_mib(choice), names(problem, choice.overruled)) == (True, 10, "a1")
    assert choice.least_peak_bytes == 10 * MIB


def test_a_tag_that_cannot_be_followed_was_not_overruled_by_the_budget() -> None:
    problem = with_wishes(a1="recompute")
    i = problem.index["a1"]
    pinned = replace(problem.values[i], cannot_recompute="a collective: every rank would have to run it again")
    problem = replace(problem, values=(*problem.values[:i], pinned, *problem.values[i + 1 :]))
    choice = choose(problem, None, None)
    assert i in choice.candidate.decisions.saved
    assert choice.overruled == ()


def test_the_whole_unconstrained_peak_is_accepted_although_no_plan_peaks_lower_by_the_margin() -> None:
    problem = replace(chain(1), margin_permille=20)
    choice = choose(problem, 1.0)
    assert (choice.fits, choice.candidate.recompute_ns, choice.overruled) == (True, 0, ())
    assert not choose(problem, 0.99).fits
