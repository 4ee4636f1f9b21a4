"""The planner on random problems, against brute force and an independent simulator.

Mutants these tests kill: all recomputes run at the start of backward, or only for the value that reads them directly;
parts run when they are read; a view does not keep its base alive; forward outputs die at their last use, or live on
into backward; tangents are born where they stand; gradients die at their last use; workspace or generator states are
left out; what cannot be recomputed is recomputed, what cannot be saved is saved; the cut does not price bytes, the
time of saving, or prices what merely moves; a tag to save binds what cannot be saved; the frontier keeps dominated
candidates.
"""

from itertools import chain as concatenated
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_pass.choice import choose, infeasible
from remat_pass.liveness import simulate
from remat_pass.mincut import cheapest_saved_set
from remat_pass.order import early_order, late_order, reorder
from remat_pass.plan_file import check_plan
from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem
from remat_pass.schedule import Decisions, added_ns, decide, lay_out, plan_of, program_of, repeats
from remat_pass.search import Proposal, evaluate
from remat_pass.solver import fastest_within, frontier
from tests.support.problems import laid_out
from tests.support.random_problems import problems

thorough = settings(max_examples=100, deadline=None, derandomize=True)
brief = settings(max_examples=40, deadline=None, derandomize=True)
few = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def decided(draw: st.DrawFn, *, early: bool = True) -> tuple[RematProblem, Decisions]:
    """A problem and what follows from keeping some of its values, savable or not.

    Some are forgotten on the way, and some computed early.
    """
    problem = draw(problems())
    some = st.frozensets(st.integers(0, len(problem.values) - 1))
    at_steps = st.dictionaries(st.integers(0, len(problem.values) - 1), some, max_size=8)
    first = draw(at_steps) if early else None
    return problem, decide(problem, draw(some), draw(at_steps), early=first, depth_first=draw(st.booleans()))


def reference_timeline(problem: RematProblem, plan: RematPlan) -> list[int]:
    """Bytes alive at every step, counted name by name: which copies does somebody still need, what do they refer to?"""
    values = problem.values
    tangents = [(i, 0) for i, v in enumerate(values) if v.kind is Kind.TANGENT]
    steps: list[tuple[CopyId, tuple[CopyId, ...]]] = [((s.value, s.copy), s.reads) for s in plan.forward]
    start = len(steps)
    steps += [(tangent, ()) for tangent in tangents]
    steps += [((s.value, s.copy), s.reads) for s in plan.backward]
    made = {copy: p for p, (copy, _) in enumerate(steps)}
    backward_copy = {copy[0]: copy for copy, _ in steps[start:]}
    returned = {backward_copy.get(g, (g, 0)) for g in problem.gradients}

    storages: dict[CopyId, set[CopyId]] = {}  # a storage has the name of the copy that created it
    for copy, reads in steps:
        held = [storages.get(read, set()) for read in reads if read[0] in values[copy[0]].holds]
        storages[copy] = {copy}.union(*held)

    def is_named(copy: CopyId, p: int) -> bool:
        born = start if copy in tangents else made[copy]
        read_later = any(copy in reads for _, reads in steps[p:])
        returned_by_forward = made[copy] < start and copy[0] in problem.forward_outputs and p < start
        return born <= p and (p <= made[copy] or read_later or returned_by_forward or copy in returned)

    def state_bytes(p: int) -> int:
        drawn_again = [copy for copy, _ in steps[start:] if (copy[0], 0) in made and made[copy[0], 0] < start]
        return sum(values[v].rng_state_bytes for v, c in drawn_again if made[v, 0] <= p <= made[v, c])

    timeline = []
    for p, ((value, _), _) in enumerate(steps):
        alive = set[CopyId]().union(*(storages[copy] for copy in made if is_named(copy, p)))
        resident = problem.resident_forward_bytes if p < start else problem.resident_backward_bytes
        owned = sum(values[v].size.hint for v, _ in alive)
        timeline.append(owned + values[value].workspace_bytes + state_bytes(p) + resident)
    return timeline


def keep_sets(problem: RematProblem) -> list[frozenset[int]]:
    """All subsets of the forward values that can be saved."""
    free = [i for i, v in enumerate(problem.values) if not (v.needs_tangent or v.is_input or v.cannot_save)]
    free = [i for i in free if not problem.values[i].cannot_recompute]
    return [frozenset(s) for s in concatenated.from_iterable(combinations(free, n) for n in range(len(free) + 1))]


@thorough
@given(decided())
def test_any_decision_is_a_plan_that_computes_the_graph(case: tuple[RematProblem, Decisions]) -> None:
    problem, decisions = case
    plan = plan_of(problem, decisions)
    assert check_plan(problem, plan) is None
    # What is forgotten may still be there whenever it is read, and then what it is computed from need not be saved.
    unread = frozenset[int]().union(*decisions.forgotten.values()) & problem.forgettable
    for v in reversed(range(len(problem.values))):
        unread |= {*problem.values[v].reads} if v in unread else set()
    assert {*decisions.saved} - unread <= {*plan.saved(problem)} <= {*decisions.saved}
    program = lay_out(problem, decisions)
    saved = sorted(program.values[p] for p in program.saved)
    assert saved == [v for v in plan.saved(problem) if v not in problem.inputs]
    assert added_ns(problem, saved, repeats(program)) == added_ns(problem, plan.saved(problem), plan.recomputed())
    assert [problem.values[i].name for i in decisions.saved if problem.values[i].cannot_save] == []
    assert [problem.values[i].name for i in decisions.recomputed if problem.values[i].cannot_recompute] == []


@thorough
@given(decided())
def test_forward_runs_each_effect_once_in_the_order_of_the_graph(case: tuple[RematProblem, Decisions]) -> None:
    problem, decisions = case
    ran = [step.value for step in plan_of(problem, decisions).forward]
    assert len(set(ran)) == len(ran)
    if not decisions.depth_first:
        assert ran == sorted(ran)
    effects = [i for i, v in enumerate(problem.values) if v.has_effect and not v.needs_tangent]
    assert [i for i in ran if problem.values[i].has_effect] == effects
    draws = [i for i in ran if problem.values[i].kind is Kind.RANDOM]
    assert draws == sorted(draws)


@thorough
@given(decided(early=False))
def test_no_recomputed_value_could_run_later(case: tuple[RematProblem, Decisions]) -> None:
    """Between a recomputed value and its first reader, or a part and its op, there are other recomputed values only."""
    problem, decisions = case
    steps = plan_of(problem, decisions).backward
    made = {(step.value, step.copy): p for p, step in enumerate(steps)}
    first_read = {copy: p for p in reversed(range(len(steps))) for copy in steps[p].reads}
    for p, step in enumerate(steps):
        if not step.copy:
            continue
        if problem.values[step.value].kind is Kind.PART:
            between = steps[made[step.reads[0]] : p]
        else:
            between = steps[p : first_read.get((step.value, step.copy), len(steps))]
        assert all(other.copy for other in between)


@thorough
@given(decided())
def test_decisions_and_their_plan_lay_out_alike(case: tuple[RematProblem, Decisions]) -> None:
    problem, decisions = case
    assert laid_out(lay_out(problem, decisions)) == laid_out(program_of(problem, plan_of(problem, decisions)))


@thorough
@given(decided())
def test_simulated_bytes_are_those_of_the_reference(case: tuple[RematProblem, Decisions]) -> None:
    problem, decisions = case
    liveness = simulate(problem, lay_out(problem, decisions))
    expected = reference_timeline(problem, plan_of(problem, decisions))
    assert liveness.alive_bytes.tolist() == expected
    assert liveness.peak_bytes == max(expected, default=0)
    assert liveness.peak_position == (expected.index(max(expected)) if expected else 0)


@thorough
@given(problems(), st.data())
def test_late_order_never_has_a_higher_peak(problem: RematProblem, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(problem.forward_values))))
    order, waiting = late_order(problem)
    reordered, new = reorder(problem, order, waiting), {old: i for i, old in enumerate(order)}
    before = simulate(problem, lay_out(problem, decide(problem, kept)))
    after = simulate(reordered, lay_out(reordered, decide(reordered, {new[v] for v in kept})))
    assert after.peak_bytes <= before.peak_bytes


@thorough
@given(problems())
def test_orders_leave_effects_and_draws_in_turn_and_parts_with_their_op(problem: RematProblem) -> None:
    check_order(problem, *late_order(problem))
    check_order(problem, early_order(problem), frozenset())


def check_order(problem: RematProblem, order: tuple[int, ...], waiting: frozenset[int]) -> None:
    in_turn = [i for i in order if problem.values[i].has_effect or problem.values[i].kind is Kind.RANDOM]
    assert in_turn == sorted(in_turn)
    for p, i in enumerate(order):
        if i in problem.parts:
            assert order[p : p + len(problem.parts[i]) + 1] == (i, *problem.parts[i])
    reordered = reorder(problem, order, waiting)
    assert all(r < i for i, v in enumerate(reordered.values) for r in v.reads)
    assert reordered.fingerprint == problem.fingerprint


@brief
@given(problems(most=7), st.sampled_from((0.0, 0.25, 0.7, 1.0, 1.9, 5.3, 100.0)))
def test_no_saved_set_is_cheaper_than_the_cut(problem: RematProblem, price: float) -> None:
    def objective(keep: frozenset[int]) -> float:
        decisions = decide(problem, keep)
        values = problem.values
        saved = [values[i] for i in decisions.saved if not values[i].is_input]
        repeated = [values[i] for i in decisions.recomputed if problem.runs_in_forward[i]]
        return sum(v.save_ns + price * v.size.hint for v in saved) + sum(v.recompute_ns for v in repeated)

    cut = cheapest_saved_set(problem, price, honour_wishes=False)
    assert objective(cut) == pytest.approx(min(map(objective, keep_sets(problem))), rel=1e-6, abs=1e-4)


@brief
@given(problems(), st.sampled_from((0.0, 0.7, 5.3)))
def test_cuts_honour_wishes(problem: RematProblem, price: float) -> None:
    decisions = decide(problem, cheapest_saved_set(problem, price))
    for i in decisions.recomputed:
        assert problem.values[i].wish != "save" or problem.values[i].cannot_save
    for i in decisions.saved:
        value = problem.values[i]
        assert value.wish != "recompute" or value.cannot_recompute


@brief
@given(problems())
def test_the_frontier_rises_in_time_and_falls_in_bytes(problem: RematProblem) -> None:
    candidates = frontier(problem)
    for faster, slower in pairwise(candidates):
        assert faster.recompute_ns < slower.recompute_ns
        assert faster.peak_bytes > slower.peak_bytes
    for candidate in candidates:
        assert check_plan(problem, plan_of(problem, candidate.decisions)) is None
        assert evaluate(problem, candidate.proposal).candidate == candidate


@brief
@given(problems())
def test_the_frontier_is_no_worse_than_keeping_everything(problem: RematProblem) -> None:
    everything = evaluate(problem, Proposal(frozenset(range(len(problem.values))))).candidate
    candidates = frontier(problem, extra=(everything.proposal.keep,), honour_wishes=False)
    assert candidates[-1].peak_bytes <= everything.peak_bytes
    assert candidates[0].recompute_ns <= everything.recompute_ns


@few
@given(problems())
def test_a_smaller_budget_never_has_a_larger_peak(problem: RematProblem) -> None:
    most = choose(problem, None, None).unconstrained_peak_bytes
    choices = [choose(problem, budget, None) for budget in range(most, -1, -max(1, most // 4))]
    peaks = [c.candidate.peak_bytes for c in choices]
    assert peaks == sorted(peaks, reverse=True)
    for choice in choices:
        assert not choice.fits or choice.candidate.peak_bytes <= (choice.budget_bytes or 0)


@few
@given(problems())
def test_the_least_budget_of_the_error_is_the_least_that_is_accepted(problem: RematProblem) -> None:
    choice = choose(problem, 0, None)
    least = choice.least_peak_bytes
    assert choice.fits == (least == 0)
    if not choice.fits and choice.unconstrained_peak_bytes:
        assert infeasible(problem, choice).least_peak_bytes == least
    assert choose(problem, least, None).fits
    assert least == 0 or not choose(problem, least - 1, None).fits


@brief
@given(problems())
def test_fastest_within_is_the_best_that_fits(problem: RematProblem) -> None:
    candidates = frontier(problem)
    for candidate in candidates:
        assert fastest_within(candidates, candidate.peak_bytes) is candidate
    assert fastest_within(candidates, candidates[-1].peak_bytes - 1) is None
