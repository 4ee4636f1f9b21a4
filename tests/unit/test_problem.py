"""The waist's derived facts: who reads what, what must run where, and what a plan saves.

Mutants these tests kill: effects need not run; the fingerprint ignores what is returned; a gradient that forward
computes is not saved.
"""

from dataclasses import replace

import pytest

from remat_pass.problem import Kind, RematPlan, RematProblem, Value
from tests.support.problems import US, Draft, chain, keep, names, plan_keeping, step


def with_value(problem: RematProblem, name: str, /, **changes: object) -> RematProblem:
    values = list(problem.values)
    i = problem.index[name]
    values[i] = replace(values[i], **changes)  # type: ignore[arg-type]
    return replace(problem, values=tuple(values))


@pytest.mark.parametrize(
    ("kind", "op", "is_input", "is_free"),
    [
        (Kind.STATIC_INPUT, "placeholder", True, False),
        (Kind.ACTIVATION_INPUT, "placeholder", True, False),
        (Kind.TANGENT, "placeholder", False, False),
        (Kind.SYMBOL, "placeholder", True, True),
        (Kind.SYMBOL, "sym_size", False, True),
        (Kind.CONSTANT, "get_attr", False, True),
        (Kind.VIEW, "view", False, True),
        (Kind.PART, "getitem", False, True),
        (Kind.POINTWISE, "add", False, False),
        (Kind.EXTERN, "mm", False, False),
    ],
)
def test_kinds_tell_inputs_and_what_takes_no_kernel(kind: Kind, op: str, is_input: bool, is_free: bool) -> None:
    value = Value("v", op, kind)
    assert (value.is_input, value.is_free) == (is_input, is_free)


def test_readers_are_in_order_of_the_graph() -> None:
    problem = chain(2)
    assert names(problem, problem.readers[problem.index["f1"]]) == "f2 b1"
    assert names(problem, problem.readers[problem.index["f2"]]) == "b2"
    assert names(problem, problem.readers[problem.index["b1"]]) == ""


def test_forward_must_run_outputs_and_effects_and_what_they_read() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.effect("log", "a")
    draft.op("out", "x")
    draft.op("for_backward", "a")
    draft.op("for_nobody", "a")
    draft.tangent("t")
    draft.backward("g", "t for_backward")
    problem = draft.build(outputs="out", gradients="g")
    must = [i for i, must in enumerate(problem.runs_in_forward) if must]
    assert names(problem, must) == "x a log out"


def test_backward_runs_gradients_and_effects_and_what_they_read() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.tangent("t")
    draft.backward("unread", "t a")
    draft.backward("half", "t")
    draft.backward("g", "half a")
    draft.backward("accumulate", "t", has_effect=True)
    problem = draft.build(outputs="a", gradients="g")
    assert names(problem, problem.runs_in_backward) == "half g accumulate"


def test_a_tangent_may_be_a_gradient_and_needs_no_run() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.tangent("t")
    assert draft.build(outputs="a", gradients="t").runs_in_backward == ()


def test_fingerprint_is_of_the_structure() -> None:
    problem = chain(3)
    assert problem.fingerprint == chain(3).fingerprint
    assert len(problem.fingerprint) == 64
    different = (
        chain(4),
        chain(3, fuses=True),
        with_value(problem, "f2", op="relu"),
        with_value(problem, "f2", name="f2_1"),
        with_value(problem, "f2", size=replace(problem.values[2].size, hint=1)),
        with_value(problem, "f2", reads=(0,)),
        with_value(problem, "f2", has_effect=True),
        replace(problem, forward_outputs=(*problem.forward_outputs, 1)),
        replace(problem, gradients=()),
    )
    assert len({problem.fingerprint, *(p.fingerprint for p in different)}) == 1 + len(different)


def test_fingerprint_ignores_costs() -> None:
    """A measured cost model must find the plan it made yesterday."""
    problem = chain(3)
    slower = with_value(problem, "f2", recompute_ns=9 * US, save_ns=5, workspace_bytes=7)
    assert replace(slower, margin_permille=40).fingerprint == problem.fingerprint


def test_saved_follows_from_what_backward_reads() -> None:
    problem = chain(3)
    plan = plan_keeping(problem, "f2")
    assert names(problem, plan.saved(problem)) == "x f2"
    assert {problem.values[v].name: n for v, n in plan.recomputed().items()} == {"f1": 1, "f3": 1}


def test_a_gradient_that_forward_computes_is_saved() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("jacobian", "x")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="a", gradients="g jacobian")
    plan = RematPlan((step(problem, "a", "x"), step(problem, "jacobian", "x")), (step(problem, "g", "t"),))
    assert names(problem, plan.saved(problem)) == "jacobian"


def test_every_copy_is_counted_as_a_recompute_and_a_move_is_not() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("moved", "x")
    draft.tangent("t")
    draft.backward("g", "t a moved")
    problem = draft.build(outputs="a", gradients="g")
    plan = RematPlan(
        (step(problem, "a", "x"),),
        (
            step(problem, "a'", "x"),
            step(problem, "a''", "x"),
            step(problem, "moved'", "x"),
            step(problem, "g", "t", "a''", "moved'"),
        ),
    )
    assert plan.recomputed() == {problem.index["a"]: 2}
    assert frozenset(plan.saved(problem)) == keep(problem, "x")
