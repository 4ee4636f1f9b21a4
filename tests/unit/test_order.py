"""Backward in late order, and forward in early order or depth first.

Mutants these tests kill: what forward itself reads is early, or what is no smaller than all it is computed from, or
what is computed from an input, or from what an effect is given; something that reads an early value comes before it;
what reads forward moves, too; a value passes its first reader, an effect, or the last other
use of what it reads though that is no smaller than itself, or larger than what the reader creates; parts leave their
op; a step of large workspace lands where much is alive; depth first, something passes an effect or another draw.
"""

import pytest

from remat_pass.liveness import simulate
from remat_pass.order import early_order, late_order, reorder, run_depth_first
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import decide, lay_out
from remat_pass.solver import frontier
from tests.support.problems import MIB, Draft, keep


def late(problem: RematProblem) -> str:
    order, _ = late_order(problem)
    return " ".join(problem.values[i].name for i in order if problem.values[i].needs_tangent)


def linear_layers(**of_dx: object) -> Draft:
    """Two layers as autograd differentiates them: the gradient of the input first."""
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("h", "x w")
    draft.op("y", "h w")
    draft.tangent("t")
    draft.backward("dh", "t w", **of_dx)
    draft.backward("dw2", "t h")
    draft.backward("dw1", "dh x")
    return draft


def test_gradients_of_weights_come_before_those_of_inputs() -> None:
    problem = linear_layers().build(outputs="y", gradients="dw1 dw2")
    assert late(problem) == "t dw2 dh dw1"


def test_what_is_recomputed_for_a_weight_does_not_meet_the_gradient_of_the_input() -> None:
    problem = linear_layers().build(outputs="y", gradients="dw1 dw2")
    reordered = reorder(problem, *late_order(problem))
    # dh and t and h and dw2; then t and h and dw2
    assert [simulate(p, lay_out(p, decide(p, ()))).peak_bytes for p in (problem, reordered)] == [4 * MIB, 3 * MIB]


def test_a_problem_in_late_order_is_the_same_problem() -> None:
    problem = linear_layers().build(outputs="y", gradients="dw1 dw2")
    reordered = reorder(problem, *late_order(problem))
    assert sorted(reordered.index) == sorted(problem.index)
    for value in reordered.values:
        before = problem.values[problem.index[value.name]]
        assert [reordered.values[r].name for r in value.reads] == [problem.values[r].name for r in before.reads]
        assert all(r < reordered.index[value.name] for r in value.reads)
    names = [[p.values[i].name for i in (*p.forward_outputs, *p.gradients)] for p in (problem, reordered)]
    assert names[0] == names[1]
    assert keep(reordered, "h") == keep(problem, "h")  # forward stays as it is


def test_what_reads_forward_stays() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("h", "x")
    draft.op("y", "h")
    draft.tangent("t")
    draft.backward("dh", "t h")
    draft.backward("dw", "t h x")
    draft.backward("dx", "dh")
    assert late(draft.build(outputs="y", gradients="dw dx")) == "t dh dw dx"


def test_a_value_stays_with_the_last_use_of_what_it_reads() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("y", "x w")
    draft.tangent("t")
    draft.backward("dh", "t w")
    draft.backward("dw", "t x")
    draft.backward("db", "dw")
    draft.backward("dx", "dh")
    # Behind db nothing but dh itself would keep t alive.
    assert late(draft.build(outputs="y", gradients="db dx")) == "t dw dh db dx"


def branches(wide: int, narrow: int, *, workspace: int = 0) -> Draft:
    """Two layers that read one gradient of 2 MiB, both before the first of their own gradients is read."""
    draft = Draft()
    draft.input("w", static=True)
    draft.op("y", "w")
    draft.tangent("t", 2)
    draft.backward("dh1", "t w", wide)
    draft.backward("dh2", "t w", wide, workspace_bytes=workspace * MIB)
    draft.backward("dx1", "dh1", narrow)
    draft.backward("dx2", "dh2", narrow)
    return draft


@pytest.mark.parametrize(
    ("wide", "narrow", "workspace", "expected"),
    [
        (3, 2, 0, "t dh1 dx1 dh2 dx2"),
        (2, 2, 0, "t dh2 dh1 dx1 dx2"),  # t is as large as what waits
        (3, 1, 0, "t dh2 dh1 dx1 dx2"),  # dx2 takes less than t, which is alive beside dh2
        (3, 3, 1, "t dh1 dx1 dh2 dx2"),
        (3, 2, 1, "t dh2 dh1 dx1 dx2"),  # dx2 takes less than t and the workspace of dh2
    ],
)
def test_a_large_value_waits_for_its_reader(wide: int, narrow: int, workspace: int, expected: str) -> None:
    problem = branches(wide, narrow, workspace=workspace).build(outputs="y", gradients="dx1 dx2")
    assert late(problem) == expected
    reordered = reorder(problem, *late_order(problem))
    peaks = [simulate(p, lay_out(p, decide(p, ()))).peak_bytes for p in (problem, reordered)]
    assert peaks[1] <= peaks[0]


def test_what_a_reader_needs_of_forward_is_recomputed_before_what_waits_for_it() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.op("S", "w", 10)
    draft.op("F", "S")
    draft.tangent("t", 5)
    draft.backward("v", "t w", 6)
    draft.backward("q", "t w", 0)
    draft.backward("z", "q w", 8)
    draft.backward("R", "v F", 5)
    problem = draft.build(outputs="F", gradients="z R")
    assert late(problem) == "t q z v R"
    reordered = reorder(problem, *late_order(problem))
    program = lay_out(reordered, decide(reordered, keep(reordered, "S")))
    names = [reordered.values[v].name for v in program.values]
    assert names == ["S", "F", "t", "q", "z", "F", "v", "R"]
    before = simulate(problem, lay_out(problem, decide(problem, keep(problem, "S"))))
    # S, t, v and z; then, with F for S, t, v and z or v, z and R. Were F to wait for v, all of them but R would meet.
    assert [before.peak_bytes, simulate(reordered, program).peak_bytes] == [25 * MIB, 24 * MIB]


def test_a_view_waits_with_its_base() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.op("y", "w")
    draft.tangent("t", 2)
    for k in "12":
        draft.backward(f"dh{k}", "t w", 3)
        draft.view(f"v{k}", f"dh{k}", needs_tangent=True)
    for k in "12":
        draft.backward(f"dx{k}", f"v{k}", 2)
    assert late(draft.build(outputs="y", gradients="dx1 dx2")) == "t dh1 v1 dx1 dh2 v2 dx2"


def rectified(**of_mask: object) -> Draft:
    """Two layers with a ReLU, whose masks autograd computes where it needs them."""
    draft = Draft()
    draft.input("x", 4)
    draft.several("wide", "x", {"h": 2, "rest": 1})
    draft.op("relu", "h", 4)
    draft.op("y", "relu rest", 1)
    draft.op("out", "y", 4)
    draft.op("mask", "relu", **{"mib": 1, "kind": Kind.POINTWISE, **of_mask})  # type: ignore[arg-type]
    draft.op("wider", "mask", 2, kind=Kind.POINTWISE)
    draft.tangent("t")
    draft.backward("d", "t mask wider", 1)
    return draft


def early(problem: RematProblem) -> str:
    return " ".join(problem.values[i].name for i in early_order(problem) if not problem.values[i].needs_tangent)


def test_what_backward_alone_reads_is_computed_where_it_frees_what_it_is_computed_from() -> None:
    problem = rectified().build(outputs="out", gradients="d")
    assert early(problem) == "x wide h rest relu mask y out wider"
    reordered = reorder(problem, early_order(problem), frozenset())
    peaks = [simulate(p, lay_out(p, decide(p, keep(p, "mask")))).peak_bytes for p in (problem, reordered)]
    # relu, y and out, or relu, out and mask; then h, rest and relu
    assert peaks == [9 * MIB, 7 * MIB]


def test_what_is_early_stands_behind_all_parts_of_an_op() -> None:
    draft = rectified()
    draft.op("of_part", "h", 1, kind=Kind.POINTWISE)
    draft.op("of_mask", "mask of_part", 0, kind=Kind.POINTWISE)
    draft.backward("e", "t of_part of_mask")
    problem = draft.build(outputs="out", gradients="d e")
    assert early(problem) == "x wide h rest of_part relu mask of_mask y out wider"


@pytest.mark.parametrize("of_mask", [{"mib": 4}, {"kind": Kind.EXTERN}])
def test_what_is_large_or_no_loop_stays(of_mask: dict[str, object]) -> None:
    problem = rectified(**of_mask).build(outputs="out", gradients="d")
    assert early(problem).startswith("x wide h rest relu y out")


def test_what_is_as_large_stays_only_where_it_is_a_kernel_by_itself_anyway() -> None:
    problem = rectified(mib=4).build(outputs="out", gradients="d", fuses=True)
    assert early(problem).startswith("x wide h rest relu mask")


def test_what_forward_reads_and_what_is_computed_from_inputs_or_results_stays() -> None:
    draft = Draft()
    draft.input("x", 4)
    draft.op("h", "x", 4)
    draft.op("out2", "h", 4)
    draft.op("y", "h", 1)
    draft.op("out", "y", 1, kind=Kind.POINTWISE)
    draft.view("view", "x")
    draft.op("of_input", "x h", 1, kind=Kind.POINTWISE)
    draft.op("of_view", "view h", 1, kind=Kind.POINTWISE)
    draft.op("of_output", "out2", 1, kind=Kind.POINTWISE)
    draft.op("also", "h", 1, kind=Kind.POINTWISE)
    draft.tangent("t")
    draft.backward("d", "t of_input of_view of_output")
    problem = draft.build(outputs="out out2 also", gradients="d")
    assert early(problem) == "x h out2 y out view of_input of_view of_output also"


def test_what_is_computed_from_something_that_an_effect_is_given_stays() -> None:
    for given, expected in (("relu", "relu v y e mask"), ("v", "relu v y e mask"), ("rest", "relu mask v y e")):
        draft = Draft()
        draft.input("x", 4)
        draft.op("rest", "x")
        draft.op("relu", "x", 4)
        draft.view("v", "relu")
        draft.op("y", "relu")
        draft.effect("e", given)
        draft.op("mask", "relu", 1, kind=Kind.POINTWISE)
        draft.tangent("t")
        draft.backward("d", "t mask")
        assert early(draft.build(outputs="y", gradients="d")) == f"x rest {expected}"


def depth_first(draft: Draft, outputs: str) -> str:
    draft.tangent("t")
    draft.backward("d", "t")
    problem = draft.build(outputs=outputs, gradients="d")
    steps = [v for v in problem.forward_values if not problem.values[v].is_input]
    return " ".join(problem.values[v].name for v in run_depth_first(problem, steps))


def test_depth_first_a_branch_is_narrow_again_before_the_next_is_wide() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("u1", "x", 4)
    draft.op("u2", "x", 4)
    draft.op("d1", "u1")
    draft.op("d2", "u2")
    draft.op("sum", "d1 d2")
    assert depth_first(draft, "sum u2") == "u1 d1 u2 d2 sum"


def test_a_frontier_runs_forward_depth_first_where_that_has_a_lower_peak() -> None:
    draft = Draft()
    draft.input("x")
    for k in "123":
        draft.op(f"u{k}", "x", 4)
    for k in "123":
        draft.op(f"d{k}", f"u{k}")
    draft.op("y", "d1 d2 d3")
    draft.tangent("t")
    for k in "321":
        draft.backward(f"dw{k}", f"t u{k}", 0)
    problem = draft.build(outputs="y", gradients="dw1 dw2 dw3")
    candidates = frontier(problem)
    assert (candidates[0].peak_bytes, candidates[0].proposal.depth_first) == (16 * MIB, False)
    # The other two d, u3 and d3; in the order of the graph u1, u2 and u3 are all there.
    assert (candidates[-1].peak_bytes, candidates[-1].proposal.depth_first) == (7 * MIB, True)


def test_a_candidate_has_the_peak_of_its_own_order_where_views_are_read() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("w1", "x", 10)
    draft.op("w2", "x", 3)
    draft.op("a", "w1", 5)
    draft.op("b", "w2", 1)
    draft.view("va", "a")
    draft.tangent("t")
    draft.backward("d", "t")
    problem = draft.build(outputs="va b", gradients="d")
    for candidate in frontier(problem):
        assert candidate.peak_bytes == simulate(problem, lay_out(problem, candidate.decisions)).peak_bytes


def test_depth_first_nothing_passes_an_effect() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("late", "x")
    draft.op("a", "x")
    draft.effect("e", "a")
    draft.op("b", "a")
    draft.op("y", "b late")
    assert depth_first(draft, "y") == "late a e b y"


def test_depth_first_draws_stay_in_turn_and_parts_with_their_op() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("first", "x", kind=Kind.RANDOM)
    draft.op("second", "x", kind=Kind.RANDOM)
    draft.several("both", "x", {"p": 1, "q": 1})
    draft.op("a", "second")
    draft.op("b", "q a")
    draft.op("y", "b first p")
    assert depth_first(draft, "y") == "both p q first second a b y"


def test_what_is_returned_is_there_to_the_end() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("y", "x w")
    draft.tangent("t")
    draft.backward("dw", "t x")
    draft.backward("norm", "dw")
    draft.backward("db", "t")
    draft.backward("scaled", "norm")
    assert late(draft.build(outputs="y", gradients="dw db scaled")) == "t db dw norm scaled"


def test_nothing_passes_an_effect() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("y", "x w")
    draft.tangent("t")
    draft.backward("dh", "t w")
    draft.effect("e", "t", needs_tangent=True)
    draft.backward("dw", "t x")
    draft.backward("dx", "dh")
    assert late(draft.build(outputs="y", gradients="dw dx")) == "t dh e dw dx"


def test_an_op_stays_with_its_parts() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("y", "x w")
    draft.tangent("t")
    draft.several("both", "t w", {"dq": 1, "dk": 1}, needs_tangent=True)
    draft.backward("dw", "t x")
    draft.backward("dx", "dq dk")
    assert late(draft.build(outputs="y", gradients="dw dx")) == "t both dq dk dw dx"


def test_nothing_comes_between_an_op_and_its_parts() -> None:
    """A layer norm beside a skip connection: the gradient of the skip waits, but not in the middle of the other one."""
    draft = Draft()
    draft.input("w", static=True)
    draft.input("x")
    draft.op("y", "x w")
    draft.tangent("t")
    draft.backward("skip", "t")
    draft.several("norm", "t x", {"dx": 1, "dw": 0}, needs_tangent=True)
    draft.backward("sum", "skip dx")
    assert late(draft.build(outputs="y", gradients="sum dw")) == "t norm dx dw skip sum"


def test_draws_stay_in_turn() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.op("y", "w")
    draft.tangent("t")
    draft.backward("first", "t", kind=Kind.RANDOM)
    draft.backward("second", "t", kind=Kind.RANDOM)
    draft.backward("product", "t second")
    draft.backward("sum", "product first")
    assert late(draft.build(outputs="y", gradients="sum")) == "t first second product sum"


def test_a_forward_value_that_is_a_gradient_counts_as_forward() -> None:
    draft = Draft()
    draft.input("w", static=True)
    draft.op("y", "w")
    draft.tangent("t")
    draft.backward("v", "t y")
    draft.backward("dw", "t")
    draft.backward("dx", "v")
    assert late(draft.build(outputs="y", gradients="y dw dx")) == "t v dw dx"


def test_a_step_of_large_workspace_stays() -> None:
    problem = linear_layers(workspace_bytes=MIB).build(outputs="y", gradients="dw1 dw2")
    assert late(problem) == "t dh dw2 dw1"
