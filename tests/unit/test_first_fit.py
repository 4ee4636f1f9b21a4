"""One order of loops after the other, until a plan fits.

Mutants these tests kill: the first order is not tried first; a refusal names the least peak of the last order only;
what another order showed is believed near the budget, or of plans that are simulated otherwise, or is not believed at
all; a fraction is taken of the peak in a later order; tags give way while an order is left that honours them; a plan
dearer than forward is taken where a later order has a faster one that fits; without a budget as much is tried as with
one, or too little to see the least peak.
"""

from dataclasses import replace

import pytest

from remat_pass.choice import Choice, IncumbentPlan, Judgement, simulated_judge
from remat_pass.first_fit import first_believed, first_fit
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import plan_of
from remat_pass.solver import frontier
from tests.support.problems import MIB, chain, residual_chain


class CountingJudge:
    """Says that a plan takes `factor` times what is simulated, and counts its answers."""

    def __init__(self, problem: RematProblem, factor: float) -> None:
        self.problem, self.factor = problem, factor
        self.judged: set[RematPlan] = set()

    def __call__(self, plan: RematPlan) -> Judgement:
        self.judged.add(plan)
        found = simulated_judge(self.problem)(plan)
        return replace(found, peak_bytes=int(found.peak_bytes * self.factor))


def order(problem: RematProblem, factor: float) -> tuple[RematProblem, CountingJudge]:
    return problem, CountingJudge(problem, factor)


def plan(choice: Choice, problem: RematProblem) -> RematPlan:
    return plan_of(problem, choice.candidate.decisions)


def least_mib(problem: RematProblem) -> int:
    choice, _, _ = first_fit([order(problem, 1)], 1, None)
    return choice.least_peak_bytes // MIB


def test_the_first_order_in_which_a_plan_fits_is_taken() -> None:
    problem = chain(6)
    first, second = order(problem, 1), order(problem, 0.9)
    choice, _, judge = first_fit([first, second], 2 * least_mib(problem) * MIB, None)
    assert (choice.fits, judge) == (True, first[1])
    assert not second[1].judged


def test_a_later_order_is_taken_where_no_plan_fits_before() -> None:
    problem = chain(6)
    budget = least_mib(problem) * MIB
    orders = [order(problem, 1.01), order(problem, 1)]
    choice, _, judge = first_fit(orders, budget, None)
    assert (choice.fits, judge) == (True, orders[1][1])
    assert judge(plan(choice, problem)).peak_bytes <= budget


def test_where_only_the_plan_of_least_peak_fits_a_faster_one_of_a_later_order_is_taken() -> None:
    problem = chain(6)
    budget = 2 * least_mib(problem) * MIB

    class Wary(CountingJudge):
        """Says that all but the least plan are above the budget."""

        def __call__(self, plan: RematPlan) -> Judgement:
            found = super().__call__(plan)
            is_least = found.peak_bytes == least_mib(self.problem) * MIB
            return found if is_least else replace(found, peak_bytes=found.peak_bytes + budget)

    # Were it simulated alike, what the first order shows would be believed in the others.
    other = replace(problem, resident_backward_bytes=1, resident_forward_bytes=1)
    first, second, third = (problem, Wary(problem, 1)), order(other, 1), order(other, 1)
    only, _, _ = first_fit([first], budget, None)
    assert only.fits
    choice, _, judge = first_fit([first, second, third], budget, None)
    assert (choice.fits, judge) == (True, second[1])
    assert choice.candidate.recompute_ns < only.candidate.recompute_ns
    assert not third[1].judged
    assert choice.unconstrained == only.unconstrained


def test_a_refusal_is_of_the_order_of_least_peak() -> None:
    problem = chain(6)
    smaller = replace(problem, resident_backward_bytes=0, resident_forward_bytes=0)
    larger = replace(problem, resident_backward_bytes=MIB, resident_forward_bytes=MIB)
    for orders in ([order(smaller, 2), order(larger, 2)], [order(larger, 2), order(smaller, 2)]):
        choice, chosen, _ = first_fit(orders, MIB, None)
        assert (choice.fits, chosen) == (False, smaller)


def test_what_is_far_above_the_budget_in_one_order_is_not_judged_in_another_that_is_simulated_alike() -> None:
    problem = chain(6)
    first, second = order(problem, 1.5), order(problem, 1.4)
    choice, _, _ = first_fit([first, second], MIB, None)
    assert first[1].judged
    assert not second[1].judged
    assert choice.least_peak_bytes == first[1](plan(choice, problem)).peak_bytes


def test_what_is_near_the_budget_is_judged_in_every_order() -> None:
    problem = chain(6)
    budget = int(1.5 * least_mib(problem) * MIB)
    first, second = order(problem, 1.51), order(problem, 1.5)
    choice, _, judge = first_fit([first, second], budget, None)
    assert (choice.fits, judge) == (True, second[1])


def test_what_is_simulated_otherwise_is_judged_again() -> None:
    problem = chain(6)
    other = replace(problem, resident_backward_bytes=1, resident_forward_bytes=1)
    first, second = order(problem, 1.5), order(other, 1.4)
    first_fit([first, second], MIB, None)
    assert first[1].judged & second[1].judged


def test_a_fraction_is_one_of_the_peak_in_the_first_order() -> None:
    problem = chain(6)
    first, second = order(problem, 1.5), order(problem, 1)
    whole, _, _ = first_fit([first, second], None, None)
    choice, _, _ = first_fit([first, second], 0.4, None)
    assert choice.unconstrained == whole.unconstrained
    assert choice.budget_bytes == int(0.4 * whole.unconstrained_peak_bytes)


def test_tags_give_way_in_the_last_place() -> None:
    """The second order meets the budget with them, though the first would without."""
    problem = residual_chain(2)
    tagged = replace(problem, values=tuple(replace(v, wish="save" if v.name == "a1" else None) for v in problem.values))
    first, second = order(tagged, 1.07), order(tagged, 1.06)
    choice, _, judge = first_fit([first, second], int(13.85 * MIB), None)
    assert (choice.fits, choice.overruled, judge) == (True, (), second[1])


@pytest.mark.parametrize(("slack_permille", "found"), [(0, True), (20, False)])
def test_by_simulation_the_first_order_that_fits_is_taken_and_none_where_none_does(
    slack_permille: int, found: bool
) -> None:
    problem = chain(6)
    rival = IncumbentPlan(frozenset(), Judgement(1000 * MIB, 1))
    budget = least_mib(problem) * MIB
    larger = replace(problem, resident_backward_bytes=MIB, resident_forward_bytes=MIB)
    choice = first_believed([larger, problem], budget, rival, slack_permille)
    assert (choice is not None and choice[1] == problem) is found


def test_by_simulation_a_faster_plan_of_a_later_order_is_taken_where_the_first_runs_away() -> None:
    """The least peak of these layers takes twice forward; the second order has 8 MiB less to hold besides."""
    problem = residual_chain(6)
    rival = IncumbentPlan(frozenset(), Judgement(1000 * MIB, 1))
    larger = replace(problem, resident_backward_bytes=8 * MIB, resident_forward_bytes=8 * MIB)
    budget = least_mib(larger) * MIB
    alone = first_believed([larger], budget, rival, 0)
    both = first_believed([larger, problem], budget, rival, 0)
    assert alone is not None and both is not None
    assert both[1] == problem
    assert both[0].candidate.recompute_ns < alone[0].candidate.recompute_ns


def test_without_a_budget_the_frontier_is_for_the_report_alone_and_coarser() -> None:
    problem = residual_chain(48)
    everything = frozenset(problem.forward_values)
    rival = IncumbentPlan(everything, Judgement(1000 * MIB, 1), is_estimated=True)
    found = first_believed([problem], None, rival, 0)
    assert found is not None
    choice, thorough = found[0], frontier(problem, extra=[everything])
    assert choice.is_incumbent
    assert len(choice.frontier) < len(thorough)
    ends = [(c[0].peak_bytes, c[0].recompute_ns, c[-1].peak_bytes) for c in (choice.frontier, thorough)]
    assert ends[0] == ends[1]
