"""Backward in late order.

Mutants these tests kill: what reads forward moves, too; a value passes its first reader, an effect, or the last other
use of what it reads; parts leave their op; a step of large workspace lands where much is alive.
"""

from remat_pass.liveness import simulate
from remat_pass.order import late_order, reorder
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import decide, lay_out
from tests.support.problems import MIB, Draft, keep


def late(problem: RematProblem) -> str:
    order = late_order(problem)
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
    reordered = reorder(problem, late_order(problem))
    # dh and t and h and dw2; then t and h and dw2
    assert [simulate(p, lay_out(p, decide(p, ()))).peak_bytes for p in (problem, reordered)] == [4 * MIB, 3 * MIB]


def test_a_problem_in_late_order_is_the_same_problem() -> None:
    problem = linear_layers().build(outputs="y", gradients="dw1 dw2")
    reordered = reorder(problem, late_order(problem))
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
