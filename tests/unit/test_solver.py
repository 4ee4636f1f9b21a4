"""The frontier on graphs whose best plans are known, and the cliff of pytorch#197838.

Mutants these tests kill: no waists are forced; nothing is exchanged or made early; only the frontier is changed;
dominated candidates stay; candidates come in order of peak; a view does not cross as its base; one narrower waist is
enough to drop those beside it.
"""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest

from remat_pass import search
from remat_pass.exact import least_peak_bytes
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import plan_of
from remat_pass.search import Candidate, Proposal, evaluate
from remat_pass.solver import fastest_within, frontier
from remat_pass.waists import crossings, measure_forward, narrow_waists
from tests.support.problems import MIB, US, Draft, chain, diamond, keep, names, residual_chain, u_net


def curve(candidates: tuple[Candidate, ...]) -> list[tuple[float, float]]:
    """(peak in MiB, recompute in us)."""
    return [(c.peak_bytes / MIB, c.recompute_ns / US) for c in candidates]


def waists_of(problem: RematProblem) -> list[frozenset[int]]:
    """What crosses the narrow waists."""
    forward = measure_forward(problem)
    return crossings(problem, forward, narrow_waists(problem, forward))


def test_evaluate_simulates_the_schedule_of_a_keep_set() -> None:
    problem = chain(3)
    candidate = evaluate(problem, Proposal(keep(problem, "f2"))).candidate
    assert names(problem, candidate.decisions.saved) == "x f2"
    assert curve((candidate,)) == [(4, 2)]
    assert curve((evaluate(problem, Proposal(keep(problem, "f1 f2 f3"))).candidate,)) == [(5, 0)]
    assert curve((evaluate(problem, Proposal(frozenset())).candidate,)) == [(5, 3)]


def test_frontier_of_a_short_residual_chain_is_the_best_there_is() -> None:
    # Each layer whose 4 MiB are recomputed costs its first product again; the last layer's are back too soon to help.
    # At 10 MiB only r2 is saved, and o1 is computed twice on the way to r1.
    assert curve(frontier(residual_chain(3))) == [(19, 0), (15, 40), (11, 80), (10, 162)]


def test_a_long_chain_of_equal_layers_is_recomputed_in_segments() -> None:
    """No position is narrower than another, and saving all or nothing holds all layers at once: 34 MiB.

    Saving every sixth layer holds 5 of them, a segment of 6, and what the step at hand reads and writes.
    """
    candidates = frontier(chain(32))
    assert curve(candidates)[0] == (34, 0)
    once = fastest_within(candidates, 10 * MIB)
    assert once and once.recompute_ns <= 32 * US


def test_below_one_recompute_of_each_value_there_are_copies() -> None:
    """Griewank's revolve: C(s + r, s) layers with s saved and r runs of each; here 4 at a time are enough for 32."""
    problem = chain(32)
    least = frontier(problem)[-1]
    assert least.peak_bytes <= 5 * MIB
    assert least.recompute_ns <= 32 * 5 * US
    assert max(plan_of(problem, least.decisions).recomputed().values()) > 1


def test_a_short_chain_of_equal_layers_comes_near_its_optimum() -> None:
    # Brute force over all saved sets: 14 MiB with everything saved, 6 MiB at best.
    candidates = frontier(chain(12))
    assert curve(candidates)[0] == (14, 0)
    assert candidates[-1].peak_bytes <= 8 * MIB


def test_a_u_net_trades_its_skips() -> None:
    """Of 18 MiB, 8 are values on the way down that nothing but the way up and the gradients wait for."""
    candidates = frontier(u_net(8))
    assert curve(candidates)[0] == (18, 0)
    assert candidates[-1].peak_bytes <= 13 * MIB


def test_no_candidate_dominates_another_and_the_fastest_comes_first() -> None:
    for problem in (chain(12), diamond(), u_net(4), residual_chain(6)):
        points = curve(frontier(problem))
        assert points == sorted(points, key=lambda point: (-point[0], point[1]))
        assert len({peak for peak, _ in points}) == len({us for _, us in points}) == len(points)
        assert points[0][1] == 0


def test_fastest_within_takes_the_first_that_fits() -> None:
    candidates = frontier(residual_chain(2))
    assert curve(candidates) == [(14, 0), (10, 40)]
    assert fastest_within(candidates, 14 * MIB) is candidates[0]
    assert fastest_within(candidates, 14 * MIB - 1) is candidates[1]
    assert fastest_within(candidates, 10 * MIB) is candidates[1]
    assert fastest_within(candidates, 10 * MIB - 1) is None


def test_a_smaller_budget_never_has_a_larger_peak() -> None:
    candidates = frontier(residual_chain(8))
    chosen = [fastest_within(candidates, mib * MIB // 2) for mib in range(120)]
    peaks = [c.peak_bytes for c in chosen if c]
    assert peaks == sorted(peaks)
    assert [c is None for c in chosen] == sorted([c is None for c in chosen], reverse=True)


def test_the_cliff_of_a_deep_residual_chain_is_bridged() -> None:
    """Saving everything and recomputing everything both hold all layers at once; the least peak is far below."""
    problem = residual_chain(32)
    everything = evaluate(problem, Proposal(frozenset(range(len(problem.values))))).candidate.peak_bytes
    nothing = evaluate(problem, Proposal(frozenset())).candidate.peak_bytes
    least = frontier(problem)[-1].peak_bytes
    # a1 .. a32, r1 .. r31, the tangent and the first gradient
    assert everything == nothing == (32 * 4 + 31 + 1 + 4) * MIB
    # All residuals saved and one layer at a time: 31 + 4 + 1 + 4. Every second or third residual is better.
    assert least < 40 * MIB


def test_the_curve_of_a_deep_residual_chain_has_no_large_gap() -> None:
    """Identical layers flip together in a cut; filling and exchanges find what lies between."""
    peaks = [c.peak_bytes / MIB for c in frontier(residual_chain(16))]
    gaps = [high - low for high, low in itertools.pairwise(peaks)]
    assert max(gaps) <= 0.15 * (peaks[0] - peaks[-1])


def test_a_value_is_made_early_where_that_frees_what_it_is_made_of() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("a", "x")
    draft.op("b", "x")
    draft.op("ab", "a b", 3)
    draft.op("y", "ab w")
    draft.tangent("t", 5)
    draft.backward("u", "t w")
    draft.backward("g", "u w", 4)
    draft.backward("dw", "g ab", 0)
    problem = draft.build(outputs="y", gradients="dw")
    candidate = frontier(problem)[-1]
    # t, u, a and b; then u, ab and g. With ab saved t, u and ab; made late it would meet a, b and g.
    assert candidate.peak_bytes == least_peak_bytes(problem) == 8 * MIB
    backward = plan_of(problem, candidate.decisions).backward
    assert [problem.values[step.value].name for step in backward] == ["u", "ab", "g", "dw"]


def test_what_two_changes_gain_is_found_behind_one_that_gains_nothing() -> None:
    draft = Draft()
    draft.input("x", static=True)
    draft.op("a", "x", 4)
    draft.op("b", "a", 3, workspace_bytes=2 * MIB)
    draft.tangent("t", 3)
    draft.tangent("u", 2)
    draft.backward("du", "u", 2)
    draft.backward("sum", "t u", 0, workspace_bytes=3 * MIB)
    draft.backward("dt", "sum", 3)
    problem = draft.build(outputs="a b", gradients="du sum dt b")
    candidates = frontier(problem)
    # With b saved 13 at sum: t, u, du, its workspace and b. Made at the end b meets du, dt, a and its workspace: 14.
    # Made in between, behind t and u and before dt, 11.
    assert [c.peak_bytes // MIB for c in candidates] == [13, 11]
    backward = plan_of(problem, candidates[-1].decisions).backward
    assert [problem.values[step.value].name for step in backward] == ["du", "sum", "a", "b", "dt"]


def test_waists_of_a_residual_chain_are_the_residuals() -> None:
    problem = residual_chain(4)
    assert [names(problem, waist) for waist in waists_of(problem)] == ["r1", "r2", "r3"]


def test_a_waist_may_be_several_values_together() -> None:
    """Two streams side by side: only both of them cut the graph."""
    draft = Draft()
    draft.input("x")
    left = right = "x"
    for i in (1, 2, 3):
        draft.op(f"wide{i}", f"{left} {right}", mib=8)
        draft.op(f"left{i}", f"wide{i} {left}")
        draft.op(f"right{i}", f"wide{i} {right}")
        left, right = f"left{i}", f"right{i}"
    draft.op("out", "left3 right3")
    draft.tangent("t")
    draft.backward("g", "t out")
    problem = draft.build(outputs="out", gradients="g")
    waists = [names(problem, waist) for waist in waists_of(problem)]
    assert waists[:2] == ["left1 right1", "left2 right2"]


def narrow_and_wide(*sizes: int) -> RematProblem:
    """Values of these MiB, one computed from the other, with 32 MiB in between."""
    draft = Draft()
    draft.input("x")
    previous = "x"
    for i, mib in enumerate(sizes):
        draft.op(f"n{i}", previous, mib)
        draft.op(f"w{i}", f"n{i}", 32)
        previous = f"w{i}"
    draft.op("out", previous, 32)
    draft.tangent("t")
    draft.backward("g", "t out")
    return draft.build(outputs="out", gradients="g")


@pytest.mark.parametrize(
    ("sizes", "waists"),
    [
        ((1, 8, 8, 8), "n0 n1 n2 n3"),  # indices at the start are no reason to cut nowhere else
        ((8, 8, 8, 1), "n0 n1 n2 n3"),
        ((8, 8, 4, 4, 2), "n0 n1 n2 n3 n4"),  # stages of a ResNet
        ((4, 8, 4, 8, 4), "n0 n2 n4"),
        ((4, 8, 8, 4, 8, 8, 4), "n0 n3 n6"),
    ],
)
def test_a_waist_with_narrower_ones_on_both_sides_lies_inside_a_layer(sizes: tuple[int, ...], waists: str) -> None:
    problem = narrow_and_wide(*sizes)
    assert " ".join(names(problem, waist) for waist in waists_of(problem)) == waists


def test_what_an_op_returns_in_parts_crosses_from_the_op_on() -> None:
    """The step of the op itself, whose parts follow, is no position that nothing crosses (max pool, attention)."""
    draft = Draft()
    draft.input("x")
    previous = "x"
    for i in (1, 2):
        draft.op(f"wide{i}", previous, mib=8)
        draft.several(f"pool{i}", f"wide{i}", {f"p{i}": 2})
        previous = f"p{i}"
    draft.op("wide3", previous, mib=8)
    draft.op("out", "wide3", mib=8)
    draft.tangent("t")
    draft.backward("g", "t out")
    problem = draft.build(outputs="out", gradients="g")
    assert measure_forward(problem).crossing_bytes.tolist() == [8 * MIB, 2 * MIB, 2 * MIB] * 2 + [8 * MIB, 0]
    assert [names(problem, waist) for waist in waists_of(problem)] == ["p1", "p2"]


def test_a_chain_without_valleys_has_no_waist() -> None:
    assert waists_of(chain(8)) == []


def test_a_view_crosses_as_its_base() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.view("v", "a")
    draft.op("wide", "x", mib=8)
    draft.op("out", "wide v")
    draft.tangent("t")
    draft.backward("g", "t wide v")
    problem = draft.build(outputs="out", gradients="g")
    assert [names(problem, waist) for waist in waists_of(problem)] == ["a"]


def test_wishes_bind_every_candidate() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=2, wish="recompute")
    draft.op("b", "a", wish="save")
    draft.op("out", "b")
    draft.tangent("t")
    draft.backward("g1", "t b")
    draft.backward("g2", "g1 a")
    problem = draft.build(outputs="out", gradients="g2")
    for candidate in frontier(problem):
        assert problem.index["b"] in candidate.decisions.saved
        assert problem.index["a"] in candidate.decisions.recomputed
    assert curve(frontier(problem, honour_wishes=False))[0][1] == 0


def test_a_model_whose_blocks_are_all_checkpointed_can_be_planned() -> None:
    problem = residual_chain(3)
    tags = {i for i, v in enumerate(problem.values) if not v.needs_tangent and not v.is_input}
    values = (replace(v, wish="recompute") if i in tags else v for i, v in enumerate(problem.values))
    tagged = replace(problem, values=tuple(values))
    assert curve(frontier(tagged))[0] == (19, 3 * 40 + 2 * 40 + 2 * 2)
    assert all(names(problem, c.decisions.saved) == "r0 w" for c in frontier(tagged))
    assert curve(frontier(tagged, honour_wishes=False)) == [(19, 0), (15, 40), (11, 80), (10, 162)]


def test_extra_keep_sets_are_candidates() -> None:
    problem = diamond()
    for extra in (frozenset[int](), keep(problem, "left"), keep(problem, "a left right")):
        candidates = frontier(problem, extra=(extra,))
        own = evaluate(problem, Proposal(extra)).candidate
        assert any(c.peak_bytes <= own.peak_bytes and c.recompute_ns <= own.recompute_ns for c in candidates)


def test_a_backward_that_reads_nothing_of_forward_can_be_planned() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("sum", "x")
    draft.tangent("t")
    draft.backward("expanded", "t")
    assert curve(frontier(draft.build(outputs="sum", gradients="expanded"))) == [(2, 0)]


def test_a_graph_of_free_values_can_be_planned() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("size", "", mib=0, us=0, kind=Kind.SYMBOL)
    draft.view("v", "x")
    draft.tangent("t")
    draft.backward("g", "t v size")
    assert curve(frontier(draft.build(outputs="v", gradients="g"))) == [(2, 0)]


def test_what_decides_leaves_torch_unimported() -> None:
    modules = ("problem", "mincut", "schedule", "liveness", "solver", "plan_file", "breakdown", "choice")
    imports = ", ".join(f"remat_pass.{module}" for module in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_small_and_made_of_much_is_tried_as_saved_at_any_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """The indices of a max pool cost next to nothing to compute again, but for what they are computed from."""
    draft = Draft()
    draft.input("x")
    draft.op("conv", "x", 16, us=5)
    draft.op("relu", "conv", 16, us=0)
    draft.several("pool", "relu", {"small": 4, "indices": 1}, us=0)
    previous = "small"
    for i in range(1, 5):
        draft.op(f"f{i}", previous, 4, us=20)
        draft.op(f"r{i}", f"f{i}", 4)
        previous = f"r{i}"
    draft.op("out", previous)
    draft.tangent("t")
    previous = "t"
    for i in range(4, 0, -1):
        draft.backward(f"d{i}", f"{previous} f{i} r{i}", 4)
        previous = f"d{i}"
    draft.backward("wide", f"{previous} indices", 16)
    draft.backward("dw", "wide conv")
    problem = draft.build(outputs="out", gradients="dw")
    monkeypatch.setattr(search, "_STEPS_TO_SIMULATE", 0)
    least = frontier(problem)[-1]
    # At the end conv and wide, and dw; with relu recomputed beside conv for the indices it would be more.
    assert problem.index["indices"] in least.decisions.saved
    assert least.peak_bytes == 33 * MIB
