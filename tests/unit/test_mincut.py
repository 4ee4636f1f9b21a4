"""The priced cut against brute force over all saved sets, and against what a person expects of small graphs.

Mutants these tests kill: bytes, or the time of saving, have no price; a value that merely moves to backward has one;
the cut nearest to the source is taken; capacities are not scaled; "uncuttable" is no more than the largest capacity; of
the cuts of all prices one between two others is not looked for, or only on one side.
"""

from dataclasses import replace
from itertools import chain as concatenated
from itertools import combinations, pairwise

import pytest

from remat_pass.mincut import cheapest_saved_set, cheapest_saved_sets
from remat_pass.problem import RematProblem, Size
from remat_pass.schedule import decide
from tests.support.problems import MIB, US, Draft, chain, diamond, keep, names, residual_chain, u_net

ONE_US_PER_MIB = US / MIB


def cut(problem: RematProblem, us_per_mib: float, **options: object) -> str:
    return names(problem, sorted(cheapest_saved_set(problem, us_per_mib * ONE_US_PER_MIB, **options)))  # type: ignore[arg-type]


def objective(problem: RematProblem, kept: frozenset[int], price: float) -> float:
    """Recompute time plus priced bytes of the values, inputs aside, that a set of values to keep leads to."""
    decisions = decide(problem, kept)
    values = problem.values
    recompute_ns = sum(values[i].recompute_ns for i in decisions.recomputed if problem.runs_in_forward[i])
    saved = [values[i] for i in decisions.saved if not values[i].is_input]
    return recompute_ns + sum(v.save_ns + price * v.size.hint for v in saved)


def least_objective(problem: RematProblem, price: float) -> float:
    forward = [i for i, v in enumerate(problem.values) if not v.needs_tangent and not v.is_input and not v.cannot_save]
    subsets = concatenated.from_iterable(combinations(forward, n) for n in range(len(forward) + 1))
    return min(objective(problem, frozenset(subset), price) for subset in subsets)


def uneven() -> RematProblem:
    """A small value behind a large one, a view, an op with parts, and a write that only saving needs."""
    draft = Draft()
    draft.input("x")
    draft.op("wide", "x", mib=4, us=3)
    draft.view("wide_t", "wide")
    draft.op("narrow", "wide_t", mib=1, us=2, save_ns=US // 2)
    draft.several("norm", "narrow wide", {"p": 2, "q": 1}, us=4)
    draft.op("gate", "p x", mib=2, us=1)
    draft.op("out", "gate q", mib=1, us=5)
    draft.tangent("t")
    draft.backward("d1", "t gate q")
    draft.backward("d2", "d1 p wide_t")
    draft.backward("d3", "d2 narrow")
    return draft.build(outputs="out", gradients="d3")


@pytest.mark.parametrize("us_per_mib", [0, 0.1, 0.3, 0.6, 0.9, 1.1, 1.7, 2.3, 4.1, 20])
@pytest.mark.parametrize("make", [diamond, uneven, lambda: chain(6), lambda: u_net(3), lambda: residual_chain(2)])
def test_no_saved_set_is_cheaper(make, us_per_mib: float) -> None:
    problem = make()
    price = us_per_mib * ONE_US_PER_MIB
    found = objective(problem, cheapest_saved_set(problem, price), price)
    assert found == pytest.approx(least_objective(problem, price), rel=1e-6)


@pytest.mark.parametrize(
    "make", [diamond, uneven, lambda: chain(6), lambda: u_net(3), lambda: many_prices(12, apart=1.1)]
)
def test_whatever_is_cheapest_at_some_price_is_found(make) -> None:
    problem = make()
    found = cheapest_saved_sets(problem)
    assert len({*found}) == len(found)
    cheapest_somewhere = set()
    for k in range(400):
        price = 1.03 ** (k - 200) * ONE_US_PER_MIB
        objectives = [objective(problem, kept, price) for kept in found]
        least = objective(problem, cheapest_saved_set(problem, price), price)
        assert min(objectives) == pytest.approx(least, rel=1e-6)
        cheapest_somewhere |= {i for i, o in enumerate(objectives) if o == pytest.approx(least, rel=1e-6)}
    assert cheapest_somewhere == {*range(len(found))}


def test_of_many_cuts_those_that_differ_most_are_found() -> None:
    problem = many_prices(100, apart=1.01)
    sizes = [len(kept) for kept in cheapest_saved_sets(problem)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 100 and sizes[-1] == 0
    assert 16 <= len(sizes) <= 18
    assert max(a - b for a, b in pairwise(sizes)) <= 100 / 8


def many_prices(count: int, apart: float) -> RematProblem:
    """Each value is worth saving up to a price of its own, so many times that of the one before."""
    draft = Draft()
    draft.input("x")
    for i in range(count):
        draft.op(f"f{i}", "x", us=0, recompute_ns=round(US * apart**i))
    draft.op("out", " ".join(f"f{i}" for i in range(count)))
    draft.tangent("t")
    draft.backward("g", "t " + " ".join(f"f{i}" for i in range(count)))
    return draft.build(outputs="out", gradients="g")


def test_a_chain_flips_where_a_byte_costs_as_much_as_computing_it() -> None:
    assert cut(chain(3), 0.9) == "f1 f2 f3"
    assert cut(chain(3), 1.1) == ""


def test_equal_cuts_recompute_least() -> None:
    assert cut(chain(3), 1.0) == "f1 f2 f3"


def test_a_narrow_value_is_saved_instead_of_the_wide_one_made_from_it() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("narrow", "x", mib=1, us=10)
    draft.op("wide", "narrow", mib=8, us=1)
    draft.op("out", "wide", mib=1)
    draft.tangent("t")
    draft.backward("g", "t wide")
    problem = draft.build(outputs="out", gradients="g")
    assert cut(problem, 0.1) == "wide"  # 0.8 us, or 0.1 + 1
    assert cut(problem, 0.2) == "narrow"  # 0.2 + 1, or 1.6, or 11
    assert cut(problem, 11) == ""


def test_saving_a_view_saves_its_base_once() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x", us=9)
    draft.view("v", "a")
    draft.op("out", "v")
    draft.tangent("t")
    draft.backward("g", "t v a")
    assert cut(draft.build(outputs="out", gradients="g"), 1) == "a"


def test_parts_are_saved_instead_of_the_tuple() -> None:
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"p": 1, "q": 1}, us=9)
    draft.op("out", "p q")
    draft.tangent("t")
    draft.backward("g", "t p q")
    problem = draft.build(outputs="out", gradients="g")
    assert cut(problem, 4) == "p q"
    assert cut(problem, 5) == ""


def test_what_cannot_be_recomputed_is_saved_at_any_price() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("drawn", "a", cannot_recompute="random: a second draw would give other numbers")
    draft.op("out", "drawn")
    draft.tangent("t")
    draft.backward("g", "t out drawn")
    assert cut(draft.build(outputs="out", gradients="g"), 1000) == "drawn"


def test_a_value_that_only_backward_needs_moves_there_for_free() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.op("slope", "x", us=50)
    draft.tangent("t")
    draft.backward("g", "t slope")
    assert cut(draft.build(outputs="out", gradients="g"), 1e-6) == ""


def test_writing_a_saved_value_counts_as_time() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("fused", "x", us=1, save_ns=2 * US)
    draft.op("out", "fused")
    draft.tangent("t")
    draft.backward("g", "t fused")
    assert cut(draft.build(outputs="out", gradients="g"), 0) == ""


def test_forced_values_cost_nothing_to_save() -> None:
    problem = chain(4)
    assert cut(problem, 1.1, forced=keep(problem, "f2")) == "f2"


def test_wishes_bind_at_any_price_unless_told_otherwise() -> None:
    problem = chain(3)
    values = list(problem.values)
    values[1] = replace(values[1], wish="recompute")
    values[2] = replace(values[2], wish="save")
    tagged = replace(problem, values=tuple(values))
    assert cut(tagged, 1.1) == "f2"
    assert cut(tagged, 0.9) == "f2 f3"
    assert cut(tagged, 1.1, honour_wishes=False) == ""
    assert cut(tagged, 0.9, honour_wishes=False) == "f1 f2 f3"


@pytest.mark.parametrize(("wish", "saved"), [("save", "p"), ("recompute", "")])
def test_a_wish_for_a_tuple_or_a_view_is_one_for_what_can_be_saved(wish: str, saved: str) -> None:
    """Selective checkpointing tags every op of a region, also those whose result cannot be passed to backward."""
    draft = Draft()
    draft.input("x")
    draft.several("op", "x", {"p": 1}, wish=wish)
    draft.view("v", "p", wish=wish)
    draft.op("out", "v")
    draft.tangent("t")
    draft.backward("g", "t v")
    problem = draft.build(outputs="out", gradients="g")
    assert cut(problem, 0.5) == saved
    assert cut(problem, 1.5) == saved


def test_a_wish_to_recompute_goes_before_a_forced_save() -> None:
    """The narrow waists of a model whose blocks are checkpointed are tagged too."""
    problem = residual_chain(2)
    tagged = replace(
        problem, values=tuple(replace(v, wish="recompute") if v.name == "r1" else v for v in problem.values)
    )
    assert cut(tagged, 0, forced=keep(tagged, "r1")) == "a1 o1 a2"
    assert cut(tagged, 0, forced=keep(tagged, "r1"), honour_wishes=False) == "a1 r1 a2"


def test_a_backward_that_reads_nothing_of_forward_needs_no_cut() -> None:
    """As in loss = x.sum()."""
    draft = Draft()
    draft.input("x")
    draft.op("sum", "x")
    draft.tangent("t")
    draft.backward("expanded", "t")
    assert cut(draft.build(outputs="sum", gradients="expanded"), 1) == ""


@pytest.mark.parametrize("seconds", [1, 2, 3, 1000])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.1, 2])
def test_capacities_of_a_100_gib_graph_do_not_wrap(seconds: int, share: float) -> None:
    """SciPy counts in int32: 2^31 would become a flow of 0. Saving a GiB costs this share of computing it again."""
    problem = chain(100)
    large = (replace(v, size=Size(1024 * MIB), recompute_ns=seconds * 10**9) for v in problem.values)
    problem = replace(problem, values=tuple(large))
    expected = names(problem, range(1, 101)) if share < 1 else ""
    assert cut(problem, share * seconds * 10**6 / 1024) == expected


def test_cheap_values_keep_their_price_beside_a_huge_one() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("huge", "x", mib=100 * 1024, us=10**6)
    draft.op("small", "x", mib=1, us=1)
    draft.op("out", "huge small")
    draft.tangent("t")
    draft.backward("g", "t huge small")
    problem = draft.build(outputs="out", gradients="g")
    assert cut(problem, 0.9) == "huge small"
    assert cut(problem, 1.1) == "huge"
    assert cut(problem, 11) == ""
