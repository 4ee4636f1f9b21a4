"""Bytes alive at every step, against what a person adds up. All literals are MiB.

Mutants these tests kill: a view does not keep its base alive; a tangent is born where it stands; forward outputs die at
their last use, or live on into backward; gradients die at their last use; workspace, generator states or the bytes of
other graphs are left out; inputs are counted; a value dies one step early or late.
"""

from dataclasses import replace

import pytest

from remat_pass.liveness import Liveness, simulate
from remat_pass.problem import Kind, RematPlan, RematProblem
from remat_pass.schedule import decide, lay_out, program_of
from tests.support.problems import MIB, Draft, chain, keep, plan_keeping, positions, step


def simulated(problem: RematProblem, kept: str) -> Liveness:
    return simulate(problem, lay_out(problem, decide(problem, keep(problem, kept))))


def alive(problem: RematProblem, kept: str) -> list[float]:
    """MiB alive while each step runs."""
    liveness = simulated(problem, kept)
    assert liveness.peak_bytes == max(liveness.alive_bytes)
    return [count / MIB for count in liveness.alive_bytes]


def test_a_chain_that_saves_everything() -> None:
    #                               f1 f2 f3  t b3 b2 b1
    assert alive(chain(3), "f1 f2 f3") == [1, 2, 3, 4, 5, 4, 3]


def test_a_chain_that_saves_nothing_recomputes_one_live_block() -> None:
    #                        f1 f2 f3  t f1 f2 f3 b3 b2 b1
    assert alive(chain(3), "") == [1, 2, 2, 1, 2, 3, 4, 5, 4, 3]


def test_a_chain_that_saves_the_middle() -> None:
    #                          f1 f2 f3  t f3 b3 b2 f1 b1
    assert alive(chain(3), "f2") == [1, 2, 2, 2, 3, 4, 3, 2, 3]


def test_the_first_of_equal_peaks_is_reported() -> None:
    liveness = simulated(chain(3), "f1 f2 f3")
    assert (liveness.peak_bytes, liveness.peak_position) == (5 * MIB, 4)
    flat = simulated(chain(1), "f1")  # f1 t b1: 1, 2, 3
    assert (flat.peak_bytes, flat.peak_position) == (3 * MIB, 2)
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=2)
    draft.op("b", "x", mib=2)
    draft.tangent("t", mib=2)
    draft.backward("g", "", mib=0)
    tied = simulated(draft.build(outputs="b", gradients="g"), "")  # b t g: 2, 2, 0
    assert (tied.peak_bytes, tied.peak_position) == (2 * MIB, 0)


def test_born_and_last_use_name_steps() -> None:
    liveness = simulated(chain(2), "f1 f2")  # f1 f2 t b2 b1
    assert liveness.born.tolist() == [MIB] * 5
    assert liveness.last_use.tolist() == [4, 3, 3, 4, 4]


def test_inputs_take_no_bytes_even_where_they_are_saved() -> None:
    draft = Draft()
    draft.input("x", mib=100)
    draft.input("w", mib=100, static=True)
    draft.op("a", "x w")
    draft.tangent("t")
    draft.backward("g", "t x w")
    assert alive(draft.build(outputs="a", gradients="g"), "") == [1, 1, 2]


def test_a_view_keeps_its_base_alive() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=4)
    draft.view("row", "a")
    draft.view("element", "row")
    draft.op("b", "x")
    draft.op("out", "element b")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g")
    #                        a row element b out  t  g
    assert alive(problem, "") == [4, 4, 4, 5, 6, 1, 2]


def test_a_view_read_in_backward_keeps_a_saved_base_alive() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=4)
    draft.view("v", "a")
    draft.op("out", "v")
    draft.tangent("t")
    draft.backward("g1", "t")
    draft.backward("g2", "g1 v")
    problem = draft.build(outputs="out", gradients="g2")
    #                         a  v out t g1  v g2
    assert alive(problem, "a") == [4, 4, 5, 5, 6, 5, 6]
    #                          v is made from a second a:
    #                         a  v out t g1  a  v g2
    assert alive(problem, "") == [4, 4, 5, 1, 2, 5, 5, 6]


def test_a_view_of_an_input_takes_nothing() -> None:
    draft = Draft()
    draft.input("x", mib=9)
    draft.view("v", "x")
    draft.op("out", "v")
    draft.tangent("t")
    draft.backward("g", "t v")
    #                                                                   v out t  v  g
    assert alive(draft.build(outputs="out", gradients="g"), "") == [0, 1, 1, 1, 2]


def test_a_returned_view_keeps_its_base_to_the_end() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("g", "t", mib=4)
    draft.view("gv", "g", needs_tangent=True)
    draft.backward("h", "t")
    draft.backward("last", "h")
    problem = draft.build(outputs="out", gradients="gv last")
    #                       out  t  g gv  h last
    assert alive(problem, "") == [1, 1, 5, 5, 6, 6]


def test_workspace_is_alive_while_its_step_runs() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("conv", "x", workspace_bytes=3 * MIB)
    draft.op("out", "conv")
    draft.tangent("t")
    draft.backward("g", "t conv", workspace_bytes=5 * MIB)
    problem = draft.build(outputs="out", gradients="g")
    #                           conv out t  g
    assert alive(problem, "conv") == [4, 2, 2, 8]
    #                           conv out t conv g: it needs its workspace again
    assert alive(problem, "") == [4, 2, 1, 5, 8]


def test_outputs_of_an_op_are_all_there_while_it_runs() -> None:
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"p": 2, "unread": 3})
    draft.op("out", "p")
    draft.tangent("t")
    draft.backward("g", "t p")
    problem = draft.build(outputs="out", gradients="g")
    #                         op  p out t  g
    assert alive(problem, "p") == [5, 2, 3, 3, 4]


def test_tangents_are_there_from_the_start_of_backward() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("b", "x")
    draft.tangent("ta", mib=2)
    draft.tangent("tb", mib=3)
    draft.backward("g1", "ta")
    draft.backward("g2", "tb g1")
    problem = draft.build(outputs="a b", gradients="g2")
    #                         a  b ta tb g1 g2
    assert alive(problem, "") == [1, 2, 5, 5, 6, 5]


def test_a_tangent_that_nobody_reads_was_allocated_nevertheless() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("logits", "x", mib=7)
    draft.op("loss", "logits", mib=1)
    draft.tangent("zeros", mib=7)
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="loss logits", gradients="g")
    #                         logits loss zeros t g
    assert alive(problem, "") == [7, 8, 8, 1, 2]


def test_forward_outputs_die_when_forward_returns() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("early", "x", mib=5)
    draft.op("b", "x")
    draft.op("out", "b")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="early out", gradients="g")
    #                       early b out t  g
    assert alive(problem, "") == [5, 6, 7, 1, 2]


def test_saved_forward_outputs_live_to_their_last_use_in_backward() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x", mib=5)
    draft.tangent("t")
    draft.backward("g", "t out")
    draft.backward("h", "g")
    problem = draft.build(outputs="out", gradients="h")
    #                          out t  g  h
    assert alive(problem, "out") == [5, 6, 7, 2]


def test_gradients_are_alive_to_the_end_of_backward() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("g1", "t", mib=4)
    draft.backward("g2", "t", mib=2)
    draft.backward("g3", "g2")
    problem = draft.build(outputs="out", gradients="g1 g3")
    #                       out t g1 g2 g3
    assert alive(problem, "") == [1, 1, 5, 7, 7]


def test_a_saved_gradient_that_forward_computed_stays() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.op("jacobian", "x", mib=3)
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g jacobian")
    #                             out jacobian t g
    assert alive(problem, "jacobian") == [1, 4, 4, 5]
    #                             out t g jacobian
    assert alive(problem, "") == [1, 1, 2, 4]


def test_a_draw_repeated_in_backward_holds_its_generator_state() -> None:
    draft = Draft()
    draft.input("x")
    draft.random("mask", "x", mib=4, state_mib=1)
    draft.op("out", "mask")
    draft.tangent("t")
    draft.backward("g", "t mask")
    draft.backward("h", "g")
    problem = draft.build(outputs="out", gradients="h")
    #                           mask out t  g  h
    assert alive(problem, "mask") == [4, 5, 5, 6, 2]
    #                           mask out t mask g h: 1 MiB of state instead of 4 of mask until it is drawn again
    assert alive(problem, "") == [5, 6, 2, 6, 6, 2]


def test_other_graphs_count_at_every_step() -> None:
    problem = chain(1, resident_forward_bytes=10 * MIB, resident_backward_bytes=20 * MIB)
    #                           f1  t  b1
    assert alive(problem, "f1") == [11, 22, 23]


def test_backward_effects_and_unread_values_die_at_once() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("debug", "t", mib=6, has_effect=True)
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g")
    #                       out t debug g
    assert alive(problem, "") == [1, 1, 7, 2]


def test_every_copy_is_a_storage_of_its_own() -> None:
    problem = chain(3)
    plan = plan_keeping(problem, "")
    first_block = plan.backward[:4]  # f1' f2' f3' b3
    again = (step(problem, "f1''", "x"), step(problem, "f2''", "f1''"), step(problem, "b2", "b3", "f2''"))
    lazily = RematPlan(
        plan.forward, (*first_block, *again, step(problem, "f1'''", "x"), step(problem, "b1", "b2", "f1'''"))
    )
    program = program_of(problem, lazily)
    counts = [count / MIB for count in simulate(problem, program).alive_bytes]
    # f1 f2 f3 t f1' f2' f3' b3 f1'' f2'' b2 f1''' b1: two layers at a time instead of three
    assert counts == [1, 2, 2, 1, 2, 3, 3, 3, 2, 3, 3, 2, 3]
    assert simulate(problem, program).last_use[positions(problem, program)["f1'"]] == 5


def test_fused_values_take_no_bytes_and_keep_what_they_read() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("gelu", "mm", mib=4, kind=Kind.POINTWISE)
    draft.op("double", "gelu", mib=4, kind=Kind.POINTWISE)
    draft.op("sum", "double", kind=Kind.REDUCTION)
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="sum", gradients="g", fuses=True)
    #                          mm gelu double sum t g
    assert alive(problem, "") == [4, 4, 4, 5, 1, 2]


def test_a_value_that_an_extern_kernel_reads_exists_even_where_others_fuse() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("gelu", "mm", mib=4, kind=Kind.POINTWISE)
    draft.view("transposed", "gelu")
    draft.op("out", "transposed")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                           mm gelu transposed out t g: gelu is written over mm, which nothing else reads
    assert alive(problem, "") == [4, 4, 4, 5, 1, 2]


def test_a_value_that_is_read_again_is_not_written_over() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("gelu", "mm", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "gelu mm")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                           mm gelu out t g
    assert alive(problem, "") == [4, 8, 9, 1, 2]


def loads_twice(between: Kind, late_mib: int, late: str = "mm") -> RematProblem:
    """Two loops that load one value, and a step between them."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("early", "mm", mib=4, kind=Kind.POINTWISE)
    draft.op("between", "early", mib=2, kind=between)
    draft.op("late", late, mib=late_mib, kind=Kind.POINTWISE if late_mib == 4 else Kind.REDUCTION)
    draft.op("out", "early between late")
    draft.tangent("t")
    draft.backward("g", "t")
    return draft.build(outputs="out", gradients="g", fuses=True)


def test_a_kernel_that_loads_the_same_value_is_hoisted_to_the_earlier_one() -> None:
    #                                                             mm early+between+late between late out t g
    assert alive(loads_twice(Kind.REDUCTION, late_mib=4), "") == [4, 14, 10, 10, 11, 1, 2]


def test_kernels_that_load_the_same_value_meet_over_few_library_calls_only() -> None:
    #                                            mm early+late between late out t g: one of the two is written over mm
    assert alive(loads_twice(Kind.EXTERN, late_mib=4), "") == [4, 8, 10, 10, 11, 1, 2]
    #                                                          mm early between late out t g: late is written over mm
    assert alive(replace(loads_twice(Kind.EXTERN, late_mib=4), calls_apart=0), "") == [4, 8, 10, 10, 11, 1, 2]


def test_a_reduction_meets_the_kernel_that_writes_what_it_reads_over_few_library_calls_only() -> None:
    problem = loads_twice(Kind.EXTERN, late_mib=1, late="early")
    #                            mm early+late between out t g
    assert alive(problem, "") == [4, 5, 7, 7, 8, 1, 2]
    #                                                     mm early between late out t g
    assert alive(replace(problem, calls_apart=0), "") == [4, 4, 6, 7, 8, 1, 2]


def shares_an_input(*calls: str) -> RematProblem:
    """`early` and `late` load the same input; these calls and one that reads `early` lie between them."""
    draft = Draft()
    draft.input("x", 4)
    draft.op("mm", "x", mib=4)
    draft.op("early", "x", mib=4, kind=Kind.POINTWISE)
    for call in calls:
        draft.op(call, "mm")
    draft.op("reader", "early")
    draft.op("late", "x mm", mib=4, kind=Kind.POINTWISE)
    draft.op("out", f"late mm early reader {' '.join(calls)}")
    draft.tangent("t")
    draft.backward("g", "t")
    return draft.build(outputs="out", gradients="g", fuses=True, calls_apart=1)


def test_kernels_that_load_the_same_input_meet() -> None:
    #                                     mm early+late reader - out t g
    assert alive(shares_an_input(), "") == [4, 12, 13, 13, 14, 1, 2]


def test_what_takes_no_bytes_is_no_kernel_that_a_loop_joins() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("empty", "x", mib=0)
    draft.op("loop", "empty", mib=0, kind=Kind.POINTWISE)
    draft.op("mm", "x", mib=4)
    draft.op("early", "mm", mib=4, kind=Kind.POINTWISE)
    draft.op("reader", "early loop")
    draft.op("late", "mm loop", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "late mm early reader")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                             - - mm early+late reader - out t g
    assert alive(problem, "") == [0, 0, 4, 12, 13, 13, 14, 1, 2]


def test_a_loop_stands_where_a_call_first_reads_it() -> None:
    #                                                mm early+late first second reader - out t g
    assert alive(shares_an_input("first", "second"), "")[:3] == [4, 12, 13]


def test_a_kernel_that_is_hoisted_is_done_there_with_what_it_reads_through_others() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("wide", "x", mib=4)
    draft.op("early", "mm wide", mib=4, kind=Kind.POINTWISE)
    draft.op("between", "early", mib=1)
    draft.op("inside", "wide", mib=4, kind=Kind.POINTWISE)
    draft.op("late", "mm inside", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "between late")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                           mm wide early+late between inside late out: the two are written over what they read
    assert alive(problem, "")[:7] == [4, 8, 8, 9, 5, 5, 6]


def needs_a_call(**more: object) -> RematProblem:
    """Two loops that load one value; the later one needs a library call between them."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("early", "mm", mib=4, kind=Kind.POINTWISE)
    draft.op("other", "early", mib=1)
    draft.op("between", "x", mib=4)
    draft.op("late", "mm between", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "other late")
    draft.tangent("t")
    draft.backward("g", "t")
    return draft.build(outputs="out", gradients="g", fuses=True, **more)


def test_a_kernel_waits_for_what_a_later_loop_needs_and_its_readers_wait_with_it() -> None:
    #                                        mm early other between late out: late is written over one that it reads
    assert alive(needs_a_call(), "")[:6] == [4, 8, 9, 9, 9, 6]
    #                                                         mm - - between early+late other+out
    assert alive(needs_a_call(delays_loops=True), "")[:6] == [4, 4, 4, 8, 8, 10]


def test_a_kernel_does_not_wait_for_what_is_made_of_it() -> None:
    def problem(**more: object) -> RematProblem:
        draft = Draft()
        draft.input("x")
        draft.op("mm", "x", mib=4)
        draft.op("early", "mm", mib=4, kind=Kind.POINTWISE)
        draft.view("seen", "early")
        draft.op("between", "seen", mib=4)
        draft.op("late", "mm between", mib=4, kind=Kind.POINTWISE)
        draft.op("out", "late early")
        draft.tangent("t")
        draft.backward("g", "t")
        return draft.build(outputs="out", gradients="g", fuses=True, **more)

    assert alive(problem(delays_loops=True), "") == alive(problem(), "")


def test_what_waits_for_the_last_step_runs_with_it() -> None:
    """The call waits with the kernel that it reads, up to the end, and another kernel waits for the call."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("also", "x", mib=2)
    draft.op("waits", "also", mib=2, kind=Kind.REDUCTION)
    draft.op("early", "mm", mib=4, kind=Kind.REDUCTION)
    draft.op("call", "early", mib=2)
    draft.op("between", "x", mib=4)
    draft.op("late", "mm between", mib=4, kind=Kind.REDUCTION)
    draft.op("out", "also call waits", mib=2, kind=Kind.REDUCTION)
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out late", gradients="g", fuses=True, delays_loops=True)
    #                             mm also - - - between early+late call+waits+out t g: out is written over also
    assert alive(problem, "") == [4, 6, 6, 6, 6, 10, 14, 12, 1, 2]


def test_kernels_wait_over_few_library_calls_only() -> None:
    assert alive(needs_a_call(delays_loops=True, calls_apart=1), "") == alive(needs_a_call(), "")


def between_two_calls(**more: object) -> RematProblem:
    """One loop after another from one library call to the next."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("first", "mm", mib=2, kind=Kind.REDUCTION)
    draft.op("second", "first", mib=3, kind=Kind.REDUCTION)
    draft.op("out", "second")
    draft.tangent("t")
    draft.backward("g", "t")
    return draft.build(outputs="out", gradients="g", fuses=True, **more)


def test_loops_up_to_a_library_call_are_one_function_in_cpp() -> None:
    #                                       mm first second out t g
    assert alive(between_two_calls(), "") == [4, 6, 5, 4, 1, 2]
    #                                                         mm [first second] out t g
    assert alive(between_two_calls(joins_loops=True), "") == [4, 9, 9, 4, 1, 2]


def test_parts_of_a_library_call_are_none_of_such_a_function() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("before", "x", mib=2, kind=Kind.REDUCTION)
    draft.several("call", "before", {"part": 4})
    draft.op("after", "part", mib=1, kind=Kind.REDUCTION)
    draft.op("out", "after")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True, joins_loops=True)
    #                             before call part after out t g
    assert alive(problem, "")[:5] == [2, 6, 4, 5, 2]


def read_by_two_kernels(op: str) -> RematProblem:
    """A pointwise value that a kernel reads before a library call, and another one behind it."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=2)
    draft.op("value", "mm", mib=4, kind=Kind.POINTWISE, op=op)
    draft.op("early", "value", mib=1, kind=Kind.REDUCTION)
    draft.op("between", "early", mib=8)
    draft.op("late", "value between", mib=8, kind=Kind.POINTWISE)
    draft.op("out", "late")
    draft.tangent("t")
    draft.backward("g", "t")
    return draft.build(outputs="out", gradients="g", fuses=True)


def test_what_takes_long_is_computed_once_in_cpp() -> None:
    for op, in_cpp in (("aten.neg.default", 2), ("aten.exp.default", 4)):
        problem = read_by_two_kernels(op)
        #                                 mm value early between
        assert alive(problem, "")[3] == 2 + 1 + 8
        assert alive(replace(problem, joins_loops=True), "")[3] == in_cpp + 1 + 8


def test_random_numbers_are_written_where_two_kernels_read_them() -> None:
    assert alive(read_by_two_kernels("prims.inductor_random.default"), "")[3] == 4 + 1 + 8


def test_what_several_values_of_one_kernel_read_stays_in_its_registers() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("sigmoid", "mm", mib=4, kind=Kind.POINTWISE, op="aten.sigmoid.default")
    draft.op("one", "sigmoid", mib=4, kind=Kind.POINTWISE)
    draft.op("other", "sigmoid", mib=4, kind=Kind.POINTWISE)
    draft.op("both", "one other mm", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "both mm")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True, joins_loops=True)
    assert max(alive(problem, "")) == 4 + 4 + 1  # mm, both, out


def test_backward_may_write_over_what_was_saved_for_it_alone() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("out", "mm")
    draft.tangent("t")
    draft.backward("g", "t mm", mib=4, kind=Kind.POINTWISE)
    #                                                                               mm out t g
    assert alive(draft.build(outputs="out", gradients="g", fuses=True), "mm") == [4, 5, 5, 5]
    assert alive(draft.build(outputs="out mm", gradients="g", fuses=True), "mm") == [4, 5, 5, 9]


ATTENTION = "aten._scaled_dot_product_efficient_attention"


@pytest.mark.parametrize(
    ("op", "kind", "kept", "mask_mib"),
    [
        (f"{ATTENTION}_backward.default", Kind.POINTWISE, "", 8),
        (f"{ATTENTION}_backward.default", Kind.POINTWISE, "mask", 2),
        (f"{ATTENTION}_backward.default", Kind.EXTERN, "", 2),
        (f"{ATTENTION}.default", Kind.POINTWISE, "", 2),
    ],
)
def test_attention_reads_an_expanded_mask_that_is_not_there_at_its_full_size(
    op: str, kind: Kind, kept: str, mask_mib: int
) -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mask", "x", mib=2, kind=kind, expanded_bytes=8 * MIB)
    draft.op("out", "mask", kind=Kind.POINTWISE)
    draft.tangent("t")
    draft.view("expanded", "mask")
    draft.backward("g", "t expanded", op=op)
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    assert alive(problem, kept)[-1] == mask_mib + 2  # with t and g


def test_saved_and_returned_values_exist_where_others_fuse() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("relu", "x", mib=4, kind=Kind.POINTWISE)
    draft.op("out", "relu", kind=Kind.POINTWISE)
    draft.tangent("t")
    draft.backward("g", "t relu", kind=Kind.POINTWISE)
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                           relu+out out t g
    assert alive(problem, "relu") == [5, 5, 5, 5]  # g is written over t
    #                           relu out t relu g: computed inside its readers
    assert alive(problem, "") == [0, 1, 1, 1, 1]


def test_what_windows_read_is_written_where_computing_it_loads_several_values() -> None:
    for reads, window, expected in (("mm other", 4, 4), ("mm", 4, 0), ("mm other", 0, 0)):
        draft = Draft()
        draft.input("x")
        draft.op("mm", "x", mib=2)
        draft.op("other", "x", mib=2)
        draft.op("relu", reads, mib=4, kind=Kind.POINTWISE)
        op = "prims._low_memory_max_pool_with_offsets.default" if window else "aten.sum.default"
        draft.op("pool", "relu", mib=1, kind=Kind.REDUCTION, op=op)
        draft.op("out", "pool mm other")
        draft.tangent("t")
        draft.backward("g", "t")
        problem = draft.build(outputs="out", gradients="g", fuses=True)
        #                             mm other relu pool
        assert alive(problem, "")[3] == 2 + 2 + expected + 1


@pytest.mark.parametrize("op", ["aten.scatter_add.default", "aten.mm.default"])
def test_a_call_that_updates_what_it_reads_first_does_so_in_place(op: str) -> None:
    draft = Draft()
    draft.input("x")
    draft.op("indices", "x")
    draft.op("zeros", "x", mib=4, kind=Kind.POINTWISE)
    draft.op("updated", "zeros indices", mib=4, op=op)
    draft.op("out", "updated")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                       indices zeros updated
    assert alive(problem, "")[:3] == [1, 5, 5 if "scatter" in op else 9]
    kept = draft.build(outputs="out zeros", gradients="g", fuses=True)
    assert alive(kept, "")[:3] == [1, 5, 9]
    last = draft.build(outputs="zeros updated", gradients="g", fuses=True)
    assert alive(last, "")[2] == 9


def test_the_copy_of_an_input_lives_from_the_start_to_the_last_convolution_that_reads_it() -> None:
    draft = Draft()
    draft.input("x", mib=4)
    draft.values[0] = replace(draft.values[0], copy_bytes=4 * MIB)
    draft.op("first", "x", kind=Kind.POINTWISE)
    draft.op("conv", "x")
    draft.op("out", "conv first", kind=Kind.REDUCTION)
    draft.tangent("t")
    draft.backward("dw", "t x")
    draft.backward("dx", "t")
    draft.backward("last", "dx x", kind=Kind.POINTWISE)
    problem = draft.build(outputs="out", gradients="dw last", fuses=True)
    assert [a >= 4 for a in alive(problem, "")] == [True] * (len(alive(problem, "")) - 2) + [False] * 2


def test_what_a_scatter_makes_is_no_value_in_registers() -> None:
    """Nothing is fused to it, even over the same extent."""
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=1)
    draft.op("scattered", "mm", mib=4, kind=Kind.REDUCTION, op="aten.index_put.default")
    draft.op("half", "scattered", mib=2, kind=Kind.POINTWISE)
    draft.op("out", "half")
    draft.tangent("t")
    draft.backward("g", "t")
    problem = draft.build(outputs="out", gradients="g", fuses=True)
    #                       mm scattered half
    assert alive(problem, "")[:3] == [1, 5, 6]


@pytest.mark.parametrize("op", ["aten.index_put.default", "aten.avg_pool2d.default"])
def test_what_is_read_elsewhere_than_it_is_written_is_not_written_over(op: str) -> None:
    draft = Draft()
    draft.input("x")
    draft.op("mm", "x", mib=4)
    draft.op("moved", "mm", mib=4, kind=Kind.REDUCTION, op=op)
    draft.op("out", "moved")
    draft.tangent("t")
    draft.backward("g", "t")
    assert alive(draft.build(outputs="out", gradients="g", fuses=True), "")[:2] == [4, 8]
