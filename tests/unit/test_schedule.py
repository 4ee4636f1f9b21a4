"""What decisions mean, and in which order they run. "a'" is the copy of a that backward makes.

Mutants these tests kill: all recomputes run at the start of backward, or only for the value that reads them directly;
parts run when they are read; what cannot be recomputed is recomputed, what cannot be saved is saved; values that merely
move to backward count as recomputed, or extra writes do not count; what is early as well as wanted runs twice; a draw
is repeated twice, or not at all.
"""

from remat_pass.plan_file import check_plan
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.schedule import added_ns, decide, lay_out, plan_of, program_of, repeats
from tests.support.problems import (
    US,
    Draft,
    backward,
    chain,
    diamond,
    forward,
    keep,
    laid_out,
    names,
    plan_keeping,
    positions,
    step,
    u_net,
)


def decided(problem: RematProblem, kept: str) -> tuple[str, str]:
    decisions = decide(problem, keep(problem, kept))
    return names(problem, decisions.saved), names(problem, decisions.recomputed)


def test_backward_stops_at_kept_values_and_inputs() -> None:
    assert decided(chain(4), "f1 f2 f3 f4") == ("f1 f2 f3 f4", "")
    assert decided(chain(4), "f2") == ("x f2", "f1 f3 f4")
    assert decided(chain(4), "") == ("x", "f1 f2 f3 f4")


def test_a_kept_value_that_nobody_needs_is_not_saved() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("b", "a")
    draft.op("out", "b")
    draft.tangent("t")
    draft.backward("g", "t b")
    problem = draft.build(outputs="out", gradients="g")
    assert decided(problem, "a b") == ("b", "")
    assert decided(problem, "a") == ("a", "b")


def test_what_cannot_be_recomputed_is_saved_unasked() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("all_reduce", "a", cannot_recompute="a collective: every rank would have to run it again")
    draft.op("out", "all_reduce")
    draft.tangent("t")
    draft.backward("g", "t out")
    problem = draft.build(outputs="out", gradients="g")
    assert decided(problem, "") == ("all_reduce", "out")


def test_what_cannot_be_saved_is_recomputed_from_what_can() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.view("v", "a")
    draft.op("out", "v")
    draft.tangent("t")
    draft.backward("g", "t v")
    problem = draft.build(outputs="out", gradients="g")
    assert decided(problem, "a v out") == ("a", "v")
    assert decided(problem, "v") == ("x", "a v")


def test_parts_are_saved_where_their_op_may_not_run_again() -> None:
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"p": 1, "q": 1}, cannot_recompute="a higher-order op")
    draft.op("out", "p q")
    draft.tangent("t")
    draft.backward("g", "t q")
    problem = draft.build(outputs="out", gradients="g")
    assert decided(problem, "") == ("q", "")


def test_forward_runs_outputs_effects_and_what_is_saved_only() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.effect("log", "a")
    draft.op("before", "x")
    draft.op("slope", "before")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("g", "t slope")
    problem = draft.build(outputs="out", gradients="g")
    moved = plan_keeping(problem, "")
    assert (forward(problem, moved), backward(problem, moved)) == ("a log out", "before' slope' g")
    saved = plan_keeping(problem, "slope")
    assert (forward(problem, saved), backward(problem, saved)) == ("a log before slope out", "g")


def test_recomputed_values_run_as_late_as_their_first_reader() -> None:
    problem = chain(4)
    assert backward(problem, plan_keeping(problem, "f2")) == "f3' f4' b4 b3 b2 f1' b1"
    assert backward(problem, plan_keeping(problem, "f1 f3")) == "f4' b4 b3 f2' b2 b1"
    assert backward(problem, plan_keeping(problem, "f1 f2 f3 f4")) == "b4 b3 b2 b1"


def test_a_value_with_two_readers_runs_before_the_first() -> None:
    problem = diamond()
    assert backward(problem, plan_keeping(problem, "")) == "a' right' dl left' dr da"
    assert backward(problem, plan_keeping(problem, "right")) == "dl a' left' dr da"


def test_skip_connections_are_recomputed_with_the_first_value_that_reads_them() -> None:
    problem = u_net(2)
    assert forward(problem, plan_keeping(problem, "")) == "down1 down2 up2 up1"
    # up1 needs the whole of forward again, so that nothing is left for later.
    assert backward(problem, plan_keeping(problem, "")) == "down1' down2' up2' up1' dup1 dup2 ddown2 ddown1"
    assert backward(problem, plan_keeping(problem, "up1 up2")) == "dup1 dup2 down1' down2' ddown2 ddown1"


def test_values_of_one_reader_keep_the_order_of_the_graph() -> None:
    draft = Draft()
    draft.input("x")
    for name in "abc":
        draft.op(name, "x")
    draft.op("out", "a b c")
    draft.tangent("t")
    draft.backward("g", "t c a b")
    problem = draft.build(outputs="out", gradients="g")
    assert backward(problem, plan_keeping(problem, "")) == "a' b' c' g"


def test_all_parts_of_an_op_run_right_behind_it() -> None:
    """Not when they are first read: the tuple they are taken from would keep all of them alive."""
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"p": 1, "q": 1, "unread": 1})
    draft.op("out", "p")
    draft.tangent("t")
    draft.backward("dq", "t q")
    draft.backward("dp", "dq p")
    problem = draft.build(outputs="out", gradients="dp")
    plan = plan_keeping(problem, "")
    assert backward(problem, plan) == "op' p' q' dq dp"
    assert forward(problem, plan) == "op p out"


def test_a_gradient_without_a_tangent_is_computed_last_or_saved() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("jacobian", "x")
    draft.tangent("t")
    draft.backward("g", "t a")
    problem = draft.build(outputs="a", gradients="jacobian g")
    late = plan_keeping(problem, "a")
    assert (forward(problem, late), backward(problem, late)) == ("a", "g jacobian'")
    saved = plan_keeping(problem, "a jacobian")
    assert (forward(problem, saved), backward(problem, saved)) == ("a jacobian", "g")


def test_what_runs_early_where_it_is_wanted_runs_once() -> None:
    problem = chain(3)
    early = {
        problem.index["b2"]: frozenset([problem.index["f1"]]),
        problem.index["b3"]: frozenset([problem.index["f3"]]),
    }
    plan = plan_of(problem, decide(problem, keep(problem, "f2"), early=early))
    assert backward(problem, plan) == "f3' b3 f1' b2 b1"


def test_a_saved_draw_that_is_forgotten_is_drawn_again_once() -> None:
    draft = Draft()
    draft.input("x")
    draft.random("drawn", "x")
    draft.op("out", "drawn")
    draft.tangent("t")
    draft.backward("d1", "t drawn")
    draft.backward("d2", "d1 drawn")
    draft.backward("d3", "d2 drawn")
    problem = draft.build(outputs="out", gradients="d3")
    drawn = frozenset([problem.index["drawn"]])
    forgotten = {problem.index["d1"]: drawn, problem.index["d2"]: drawn}
    saved = plan_of(problem, decide(problem, drawn, forgotten))
    assert (names(problem, saved.saved(problem)), backward(problem, saved)) == ("x drawn", "d1 drawn' d2 d3")
    # What is not saved has been drawn again already.
    assert backward(problem, plan_of(problem, decide(problem, (), forgotten))) == "drawn' d1 d2 d3"


def test_backward_effects_run_in_their_place() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.tangent("t")
    draft.backward("g", "t")
    draft.backward("accumulate", "g a", has_effect=True)
    draft.backward("h", "g")
    problem = draft.build(outputs="a", gradients="h")
    assert backward(problem, plan_keeping(problem, "")) == "g a' accumulate h"


def test_backward_steps_read_their_own_copies() -> None:
    problem = chain(2)
    plan = plan_keeping(problem, "")
    assert plan == RematPlan(
        forward=(step(problem, "f1", "x"), step(problem, "f2", "f1")),
        backward=(
            step(problem, "f1'", "x"),
            step(problem, "f2'", "f1'"),
            step(problem, "b2", "t", "f2'"),
            step(problem, "b1", "b2", "f1'"),
        ),
    )
    assert check_plan(problem, plan) is None


def test_program_lays_both_parts_and_the_tangents_on_one_clock() -> None:
    problem = chain(3)
    program = lay_out(problem, decide(problem, keep(problem, "f2")))
    #                    0  1  2  3 4  5  6  7  8
    assert names(problem, program.values) == "f1 f2 f3 t f3 b3 b2 f1 b1"
    assert program.copies.tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0]
    assert program.reads == [[], [0], [1], [], [1], [3, 4], [5, 1], [], [6, 7]]
    assert (program.forward_end, program.saved, program.returned) == (3, [1], [8])


def test_a_plan_of_steps_lays_out_like_the_decisions_it_came_from() -> None:
    problem = u_net(3)
    for kept in ("", "down2", "up1 up3", "down1 down2 down3 up1 up2 up3"):
        decisions = decide(problem, keep(problem, kept))
        assert laid_out(program_of(problem, plan_of(problem, decisions))) == laid_out(lay_out(problem, decisions))


def test_a_plan_may_hold_several_copies() -> None:
    problem = chain(2)
    plan = RematPlan(
        forward=(step(problem, "f1", "x"), step(problem, "f2", "f1")),
        backward=(
            step(problem, "f1'", "x"),
            step(problem, "f2'", "f1'"),
            step(problem, "b2", "t", "f2'"),
            step(problem, "f1''", "x"),
            step(problem, "b1", "b2", "f1''"),
        ),
    )
    assert check_plan(problem, plan) is None
    program = program_of(problem, plan)
    at = positions(problem, program)
    assert program.reads[at["b1"]] == [at["b2"], at["f1''"]]
    assert (program.saved, program.returned) == ([], [at["b1"]])


def added(problem: RematProblem, kept: frozenset[int]) -> int:
    decisions = decide(problem, kept)
    return added_ns(problem, decisions.saved, repeats(lay_out(problem, decisions)))


def test_recompute_time_counts_repeats_and_extra_writes_but_not_moves() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", us=3)
    draft.op("b", "a", us=5, save_ns=70)
    draft.op("moved", "x", us=11)
    draft.op("out", "b")
    draft.tangent("t")
    draft.backward("g", "t a b moved")
    problem = draft.build(outputs="out", gradients="g")
    assert added(problem, keep(problem, "a b")) == 70
    assert added(problem, keep(problem, "a")) == 5 * US
    assert added(problem, keep(problem, "b")) == 3 * US + 70
    assert added(problem, keep(problem, "")) == 8 * US
    assert added_ns(problem, keep(problem, "b"), {problem.index["a"]: 2}) == 6 * US + 70
