"""A saved value makes room for one that takes longer to compute again, or for a lower peak.

Mutants these tests kill: what a released value is made of costs nothing; what is there anyway costs time; the bytes of
a released value stay where they are; wishes are ignored; more trials are taken than given; what does not lower the peak
is released; releases go on from the first plan only, or come before exchanges, or the slowest one first.
"""

from dataclasses import replace

import pytest

from remat_pass.exchange import exchange
from remat_pass.problem import RematProblem
from remat_pass.search import Proposal, Search
from tests.support.problems import MIB, US, Draft, keep, names


def two_branches(*, slow_mib: int = 1, quick_reads: str = "x", last_reads: str = "quick") -> RematProblem:
    """Backward reads two values behind its peak: one takes 1 us to compute again, the other one 5."""
    draft = Draft()
    draft.input("x")
    draft.op("below", "x", us=7)
    draft.op("quick", quick_reads)
    draft.op("slow", "x", mib=slow_mib, us=5)
    draft.op("out", "quick slow")
    draft.tangent("t")
    draft.backward("wide", "t", mib=8)
    draft.backward("narrow", "wide")
    draft.backward("b2", "narrow slow")
    draft.backward("b1", f"b2 {last_reads}")
    return draft.build(outputs="out", gradients="b1")


def searched(problem: RematProblem, kept: str, trials: int = 100) -> Search:
    """A search that begins with one plan, after exchanges."""
    search = Search(problem, honour_wishes=True)
    search.add(Proposal(keep(problem, kept)))
    exchange(search, trials)
    return search


def exchanged(problem: RematProblem, kept: str, trials: int = 100) -> list[tuple[str, float, float]]:
    """(saved, MiB, us) of its frontier."""
    found = searched(problem, kept, trials).frontier()
    return [(names(problem, c.decisions.saved), c.peak_bytes / MIB, c.recompute_ns / US) for c in found]


def judged(problem: RematProblem, kept: str) -> list[str]:
    """What the plans save that it simulates, in order."""
    return [names(problem, c.decisions.saved) for c in searched(problem, kept).candidates]


QUICK, SLOW, NEITHER = ("x quick", 10, 5), ("x slow", 10, 1), ("x", 9, 6)


def test_what_takes_longer_is_saved_instead() -> None:
    assert exchanged(two_branches(), "quick") == [SLOW, NEITHER]


def test_the_better_plan_stays() -> None:
    assert exchanged(two_branches(), "slow") == [SLOW, NEITHER]


def test_what_does_not_fit_is_not_saved() -> None:
    assert exchanged(two_branches(slow_mib=2), "quick") == [QUICK, NEITHER]


def test_a_value_costs_what_it_is_made_of() -> None:
    assert exchanged(two_branches(quick_reads="below"), "quick") == [QUICK, ("x", 9, 13)]


def test_what_is_there_costs_nothing() -> None:
    problem = two_branches(quick_reads="below", last_reads="quick below")
    assert exchanged(problem, "below quick")[0] == ("below slow", 11, 1)


def test_exchanges_come_before_releases() -> None:
    assert judged(two_branches(), "quick") == ["x quick", "x slow", "x"]


def test_what_does_not_lower_the_peak_is_not_released() -> None:
    """The peak is at `out`, which reads `late`."""
    draft = Draft()
    draft.input("x")
    draft.op("wide", "x", mib=4, us=3)
    draft.op("narrow", "wide")
    draft.op("late", "narrow", us=2)
    draft.op("out", "late", mib=9)
    draft.tangent("t")
    draft.backward("b2", "t late", mib=2)
    draft.backward("b1", "b2 wide")
    assert judged(draft.build(outputs="out", gradients="b1"), "wide late") == ["wide late", "x late"]


def test_releases_go_on_from_what_is_released_the_quickest_first() -> None:
    """`f4` is back while `wide` is there: it is as high with it as without."""
    draft = Draft()
    draft.input("x")
    for k, us in enumerate((4, 2, 6, 1), 1):
        draft.op(f"f{k}", "x", us=us)
    draft.op("out", "f1 f2 f3 f4")
    draft.tangent("t")
    draft.backward("wide", "t", mib=8)
    draft.backward("b4", "wide f4")
    draft.backward("b3", "b4 f3")
    draft.backward("b2", "b3 f2")
    draft.backward("b1", "b2 f1")
    best = [("f1 f2 f3 f4", 13, 0), ("x f1 f3 f4", 12, 2), ("x f3 f4", 11, 6), ("x f4", 10, 12)]
    for trials in range(4):
        assert exchanged(draft.build(outputs="out", gradients="b1"), "f1 f2 f3 f4", trials) == best[: trials + 1]


def test_what_forward_returns_is_there_to_its_end() -> None:
    """Not saving `quick` would make no room where forward is widest."""
    draft = Draft()
    draft.input("x")
    draft.op("quick", "x")
    draft.op("slow", "x", us=5)
    draft.op("out", "quick slow")
    draft.op("top", "out", mib=9)
    draft.tangent("t")
    draft.backward("b2", "t slow")
    draft.backward("b1", "b2 quick")
    assert judged(draft.build(outputs="quick top", gradients="b1"), "quick") == ["x quick"]


def test_a_part_does_not_make_room_for_its_own_op() -> None:
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"a": 1, "b": 1}, us=5)
    draft.op("out", "a b")
    draft.tangent("t")
    draft.backward("wide", "t", mib=8)
    draft.backward("narrow", "wide")
    draft.backward("b2", "narrow a")
    draft.backward("b1", "b2 b")
    assert judged(draft.build(outputs="out", gradients="b1"), "a") == ["x a", "x"]


def test_trials_are_limited() -> None:
    assert exchanged(two_branches(), "quick", trials=0) == [QUICK]


@pytest.mark.parametrize(("name", "wish"), [("quick", "save"), ("slow", "recompute")])
def test_wishes_bind(name: str, wish: str) -> None:
    problem = two_branches()
    values = tuple(replace(v, wish=wish) if v.name == name else v for v in problem.values)
    found = exchanged(replace(problem, values=values), "quick")
    assert QUICK in found
    assert {name in saved for saved, _, _ in found} == {wish == "save"}
