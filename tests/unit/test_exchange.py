"""A saved value makes room for one that takes longer to compute again.

Mutants these tests kill: what a released value is made of costs nothing; what is there anyway costs time; the bytes of
a released value stay where they are; wishes are ignored; more trials are taken than given.
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


def judged(problem: RematProblem, kept: str) -> int:
    """How many plans it simulates."""
    return len(searched(problem, kept).candidates)


QUICK, SLOW = ("x quick", 10, 5), ("x slow", 10, 1)


def test_what_takes_longer_is_saved_instead() -> None:
    assert exchanged(two_branches(), "quick") == [SLOW]


def test_the_better_plan_stays() -> None:
    assert exchanged(two_branches(), "slow") == [SLOW]


def test_what_does_not_fit_is_not_saved() -> None:
    assert exchanged(two_branches(slow_mib=2), "quick") == [QUICK]


def test_a_value_costs_what_it_is_made_of() -> None:
    assert exchanged(two_branches(quick_reads="below"), "quick") == [QUICK]


def test_what_is_there_costs_nothing() -> None:
    problem = two_branches(quick_reads="below", last_reads="quick below")
    assert exchanged(problem, "below quick") == [("below slow", 11, 1)]


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
    assert judged(draft.build(outputs="quick top", gradients="b1"), "quick") == 1


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
    assert judged(draft.build(outputs="out", gradients="b1"), "a") == 1


def test_trials_are_limited() -> None:
    assert exchanged(two_branches(), "quick", trials=0) == [QUICK]


@pytest.mark.parametrize(("name", "wish"), [("quick", "save"), ("slow", "recompute")])
def test_wishes_bind(name: str, wish: str) -> None:
    problem = two_branches()
    values = tuple(replace(v, wish=wish) if v.name == name else v for v in problem.values)
    found = exchanged(replace(problem, values=values), "quick")
    assert QUICK in found
    assert {name in saved for saved, _, _ in found} == {wish == "save"}
