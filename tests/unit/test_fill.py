"""What fits below a limit stays alive.

Mutants these tests kill: a bridge is built over a step without room, or over the next run too; only one of several runs
is spared by saving; parts are saved one by one; forgetting skips what a recomputed value is computed from; the limit is
that of the start.
"""

from remat_pass.fill import bridged, bridges, fill, forgetful, gaps_of
from remat_pass.problem import RematProblem
from remat_pass.schedule import repeats
from remat_pass.search import Proposal, Search, Simulated, evaluate
from tests.support.problems import MIB, US, Draft, chain, keep, names


def twice_read() -> RematProblem:
    """f is read at both ends of backward, around a step that takes 3 MiB."""
    draft = Draft()
    draft.input("x")
    draft.op("f", "x")
    draft.op("y", "f")
    draft.tangent("t", 0)
    draft.backward("b2", "t f")
    draft.backward("wide", "b2", 3)
    draft.backward("narrow", "wide")
    draft.backward("b1", "narrow f")
    return draft.build(outputs="y", gradients="b1")


def forgetting(problem: RematProblem) -> Simulated:
    proposal = forgetful(problem, frozenset())
    assert proposal
    return evaluate(problem, proposal)


def ran_again(problem: RematProblem, simulated: Simulated) -> dict[str, int]:
    return {problem.values[v].name: n for v, n in repeats(simulated.program).items()}


def filled(problem: RematProblem, start: Simulated, limit_bytes: int) -> list[tuple[int, int]]:
    """(MiB, us) of all that filling finds."""
    search = Search(problem, honour_wishes=True)
    fill(search, gaps_of(search, search.add(start.candidate.proposal)), limit_bytes)
    return [(c.peak_bytes // MIB, c.recompute_ns // US) for c in search.frontier()]


def test_forgetting_runs_everything_anew_for_every_reader() -> None:
    problem = chain(3)
    start = forgetting(problem)
    assert names(problem, start.program.values) == "f1 f2 f3 t f1 f2 f3 b3 f1 f2 b2 f1 b1"
    assert forgetful(chain(40), frozenset()) is None  # 40 * 41 / 2 runs


def test_a_gap_of_a_recomputed_value_is_bridged() -> None:
    problem = twice_read()
    start = forgetting(problem)
    assert ran_again(problem, start) == {"f": 2}
    between = next(b for b in bridges(problem, start) if not b.is_saved)
    assert between.gain_ns == US
    assert ran_again(problem, evaluate(problem, bridged(problem, start, [between]))) == {"f": 1}
    # wide and b2 are 4 MiB: f fits beside them only from 5 MiB on
    assert filled(problem, start, 4 * MIB) == [(4, 1)]
    assert filled(problem, start, 5 * MIB) == [(5, 0), (4, 2)]


def test_saving_spares_every_run() -> None:
    problem = twice_read()
    saving = next(b for b in bridges(problem, forgetting(problem)) if b.is_whole)
    assert saving.gain_ns == 2 * US
    assert ran_again(problem, evaluate(problem, bridged(problem, forgetting(problem), [saving]))) == {}


def test_what_is_saved_may_be_forgotten_on_the_way() -> None:
    problem = twice_read()
    first = next(b for b in bridges(problem, forgetting(problem)) if b.is_saved and not b.is_whole)
    assert first.gain_ns == US
    spared = evaluate(problem, bridged(problem, forgetting(problem), [first]))
    assert names(problem, spared.program.values) == "f y t b2 wide narrow f b1"
    assert names(problem, spared.decisions.saved) == "x f"
    assert spared.candidate.peak_bytes == 4 * MIB  # f is not there while wide is


def test_the_limit_decides_how_much_is_kept() -> None:
    problem = chain(6)
    start = evaluate(problem, Proposal(keep(problem, "f3")))
    points = filled(problem, start, 100 * MIB)
    assert points[0] == (evaluate(problem, Proposal(keep(problem, "f1 f2 f3 f4 f5 f6"))).candidate.peak_bytes // MIB, 0)
    least = start.candidate.peak_bytes
    assert all(mib * MIB <= least + MIB for mib, _ in filled(problem, start, least + MIB))
    assert filled(problem, start, least + MIB)[0][1] < start.candidate.recompute_ns // US


def test_the_parts_of_an_op_are_kept_together() -> None:
    draft = Draft()
    draft.input("x")
    draft.several("attention", "x", {"out": 2, "sums": 1}, us=5)
    draft.op("y", "out")
    draft.tangent("t", 0)
    draft.backward("b2", "t out")
    draft.backward("b1", "b2 sums")
    problem = draft.build(outputs="y", gradients="b1")
    start = evaluate(problem, Proposal(frozenset()))
    (bridge,) = bridges(problem, start)
    assert (bridge.gain_ns, bridge.size_bytes) == (5 * US, 3 * MIB)
    assert bridged(problem, start, [bridge]).keep == keep(problem, "out sums")
