"""What holds up a peak, in roles that add up to it.

Mutants these tests kill: the base of a returned view is no gradient; a tangent is there from its own position only;
workspace, generator states or the bytes of other graphs have no role.
"""

from remat_pass.breakdown import PeakBreakdown, break_down
from remat_pass.problem import RematProblem
from tests.support.problems import MIB, Draft, chain, plan_keeping


def at_peak(problem: RematProblem, kept: str) -> PeakBreakdown:
    peak = break_down(problem, plan_keeping(problem, kept))
    assert sum(count for _, count in peak.bytes_by_role) == peak.peak_bytes
    return peak


def roles(peak: PeakBreakdown) -> dict[str, float]:
    return {role: count / MIB for role, count in peak.bytes_by_role}


def test_saved_values_tangents_and_intermediates() -> None:
    peak = at_peak(chain(3), "f1 f2 f3")
    assert (peak.program, peak.value, peak.peak_bytes) == ("backward", "b3", 5 * MIB)
    assert roles(peak) == {"saved": 3, "tangents": 1, "intermediates": 1}
    assert peak.describe() == "3.0 MiB saved, 1.0 MiB tangents, 1.0 MiB intermediates"
    assert peak.largest == (
        ("f1", "saved", MIB),
        ("f2", "saved", MIB),
        ("f3", "saved", MIB),
        ("t", "tangents", MIB),
        ("b3", "intermediates", MIB),
    )


def test_recomputed_values() -> None:
    assert roles(at_peak(chain(3), "")) == {"recomputed": 3, "tangents": 1, "intermediates": 1}
    assert roles(at_peak(chain(3), "f1 f2")) == {"saved": 2, "recomputed": 1, "tangents": 1, "intermediates": 1}


def test_gradients_and_the_line_that_made_the_peak() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("g1", "t", mib=8)
    draft.backward("g2", "t", mib=4, source="model.py:7")
    problem = draft.build(outputs="out", gradients="g1 g2")
    peak = at_peak(problem, "")
    assert (peak.value, peak.source) == ("g2", "model.py:7")
    assert peak.bytes_by_role == (("gradients", 12 * MIB), ("tangents", MIB))


def test_a_gradient_that_is_a_view_makes_its_base_one() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.tangent("t")
    draft.backward("g", "t", mib=8)
    draft.view("gv", "g", needs_tangent=True)
    assert roles(at_peak(draft.build(outputs="out", gradients="gv"), "")) == {"gradients": 8, "tangents": 1}


def test_a_peak_in_forward() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", mib=4)
    draft.op("b", "a", mib=4)
    draft.op("out", "b")
    draft.tangent("t")
    draft.backward("g", "t a")
    peak = at_peak(draft.build(outputs="out", gradients="g"), "a")
    assert (peak.program, peak.value) == ("forward", "out")
    assert roles(peak) == {"saved": 4, "intermediates": 5}


def test_workspace_and_other_graphs() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("conv", "x", workspace_bytes=6 * MIB)
    draft.tangent("t")
    draft.backward("g", "t")
    peak = at_peak(draft.build(outputs="conv", gradients="g", resident_forward_bytes=2 * MIB), "")
    assert (peak.program, peak.value) == ("forward", "conv")
    assert roles(peak) == {"workspace": 6, "other graphs": 2, "intermediates": 1}
    assert peak.largest[0] == ("conv", "workspace", 6 * MIB)


def test_generator_states_count_as_saved() -> None:
    draft = Draft()
    draft.input("x")
    draft.random("mask", "x", mib=4, state_mib=3)
    draft.tangent("t")
    draft.backward("g", "t mask")
    peak = at_peak(draft.build(outputs="mask", gradients="g"), "")
    assert (peak.program, peak.value) == ("backward", "mask")
    assert roles(peak) == {"recomputed": 4, "saved": 3, "tangents": 1}


def test_all_tangents_are_there_when_the_first_comes() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("b", "x")
    draft.tangent("ta", mib=5)
    draft.tangent("tb", mib=5)
    draft.backward("g", "ta tb", mib=0)
    peak = at_peak(draft.build(outputs="a b", gradients="g"), "")
    assert (peak.program, peak.value, roles(peak)) == ("backward", "ta", {"tangents": 10})


def test_only_the_largest_are_listed() -> None:
    problem = chain(12)
    kept = " ".join(f"f{i}" for i in range(1, 13))
    assert len(at_peak(problem, kept).largest) == 8
    assert break_down(problem, plan_keeping(problem, kept), largest=2).largest == (
        ("f1", "saved", MIB),
        ("f2", "saved", MIB),
    )


def test_an_empty_graph_has_no_peak() -> None:
    draft = Draft()
    draft.input("x")
    peak = at_peak(draft.build(outputs="x", gradients=""), "")
    assert (peak.peak_bytes, peak.value, peak.bytes_by_role) == (0, "", ())
