"""The planner: from a problem to the frontier of peak against recompute time.

    1. cuts      all min cuts over prices of memory (`mincut`), and once more with what is small saved at any price
    2. chains    checkpoints, reruns and what to save in between, by dynamic programming over forward cut into blocks,
                 between which few bytes cross (`waists`, `chain`)
    3. exchanges a saved value makes room for another one, or for a lower peak (`exchange`); identical layers, which
                 flip together in a cut, are told apart here
    4. filling   what a candidate runs again stays alive instead, where there is room below a limit, also where at
                 first everything is forgotten (`fill`); and exchanges once more
    5. changes   on small graphs, single decisions are changed (`changes`)

Where forward that runs depth first lowers the peak of some candidate, all of it is done once more in that order.

Every candidate is judged by the peak of its own schedule (`schedule`, `liveness`), never by a sum of bytes. Candidates
do not depend on the budget, so a smaller budget chooses from a subset: the peak never rises when the budget falls. Ties
are broken by peak, then by order of generation; nothing depends on the order of a set.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from remat_pass.chain import propose
from remat_pass.changes import refine
from remat_pass.contract import Contracted, contract
from remat_pass.exchange import exchange
from remat_pass.fill import fill_up, forgetful
from remat_pass.garbage import collection_paused
from remat_pass.mincut import cheapest_saved_sets
from remat_pass.problem import Kind, RematProblem
from remat_pass.search import Candidate, Proposal, Search, evaluate, undominated
from remat_pass.waists import (
    Blocks,
    cheap_to_repeat,
    cut_into_blocks,
    measure_forward,
    narrow_waists,
    narrowest,
    thin_out,
)

_MOST_BLOCKS = 128
_FEW_WAISTS = 4
"""With fewer waists than this, forward is also cut at evenly spaced positions."""
_MOST_PROPOSALS = 48
_EXCHANGES = 1 / 2
"""Share of the effort that is left for exchanges, each time; filling takes what it gets."""
_NARROW = 8
"""A value so many times smaller than what it is computed from is tried as saved at any price, too: computing it again
brings that back, which no price sees (the indices of a max pool)."""
_FORGETFUL = 8
"""How many cuts of fewest bytes, and how many plans of least peak, are tried with everything forgotten, too."""


@collection_paused()
def frontier(
    problem: RematProblem,
    *,
    extra: Iterable[frozenset[int]] = (),
    honour_wishes: bool = True,
    share: float = 1.0,
) -> tuple[Candidate, ...]:
    """The planner's best trade-offs.

    Args:
        problem: The graph to plan.
        extra: Further sets of values to keep that are to be judged too (the plan of another partitioner).
        honour_wishes: Whether the user's tags bind.
        share: Of the usual effort, behind cuts and chains: the less of it, the coarser the frontier.

    Returns:
        Candidates by falling peak and rising recompute time, the fastest first, none dominated by another.
    """
    small = contract(problem)
    within = {v: i for i, v in enumerate(small.original)}
    also = [frozenset(within[v] for v in keep if v in within) for keep in extra]
    explored = partial(_explored, small.problem, also, honour_wishes, share)
    found = explored()
    candidates = [replace(c, proposal=_expanded(small, c.proposal), problem=problem) for c in found]
    if any(_is_lower_depth_first(small.problem, c) for c in found if c.peaks_in_forward):
        # Views are steps of their own there, so the order of the whole graph may be another one.
        deep = explored(depth_first=True)
        candidates += [evaluate(problem, _expanded(small, c.proposal)).candidate for c in deep]
    return undominated(candidates)


def _is_lower_depth_first(problem: RematProblem, candidate: Candidate) -> bool:
    return evaluate(problem, replace(candidate.proposal, depth_first=True)).candidate.peak_bytes < candidate.peak_bytes


def _expanded(small: Contracted, proposal: Proposal) -> Proposal:
    def at_steps(values: dict[int, frozenset[int]], *, with_views: bool) -> dict[int, frozenset[int]]:
        return {small.original[v]: small.expand(of, with_views=with_views) for v, of in values.items()}

    return replace(
        proposal,
        keep=small.expand(proposal.keep),
        forgotten=at_steps(proposal.forgotten, with_views=True),
        early=at_steps(proposal.early, with_views=False),
    )


def _explored(
    problem: RematProblem, extra: list[frozenset[int]], honour_wishes: bool, share: float, *, depth_first: bool = False
) -> tuple[Candidate, ...]:
    """The frontier of one order of forward."""
    search = Search(problem, honour_wishes=honour_wishes, depth_first=depth_first, share=share)
    everything = _everything(problem)
    sets = cheapest_saved_sets(problem, honour_wishes=honour_wishes)
    if narrow := _narrow(problem):
        sets += cheapest_saved_sets(problem, forced=narrow, honour_wishes=honour_wishes)
    for keep in (everything, *extra, *sets):
        search.add(Proposal(keep))
    count = min(_MOST_PROPOSALS, 12 + search.trials // 32)
    for blocks in _chains(problem):
        options = cheapest_saved_sets(problem, forced=blocks.waists, honour_wishes=honour_wishes)
        for proposal in propose(problem, blocks, list(dict.fromkeys([everything, *options])), count, search.add):
            search.add(proposal)
    starts = min(_FORGETFUL, search.trials // 32)
    lowest = search.frontier()[::-1][:starts]
    smallest = sorted(sets, key=lambda keep: sum(problem.values[v].size.hint for v in keep))[:starts]
    exchange(search, int(_EXCHANGES * search.trials))
    # The lowest plans differ more before exchanges, and lie lower behind them.
    lowest += search.frontier()[::-1][:starts]
    fill_up(search)
    for keep in dict.fromkeys((frozenset[int](), *(c.proposal.keep for c in lowest), *smallest)):
        if anew := forgetful(problem, keep):
            search.add(anew)
    fill_up(search)
    exchange(search, int(_EXCHANGES * search.trials))
    refine(search)
    return search.frontier()


def fastest_within(candidates: tuple[Candidate, ...], limit_bytes: int) -> Candidate | None:
    """The fastest candidate whose simulated peak is at most the limit, or None."""
    return next((c for c in candidates if c.peak_bytes <= limit_bytes), None)


def _everything(problem: RematProblem) -> frozenset[int]:
    return frozenset(i for i, v in enumerate(problem.values) if problem.runs_in_forward[i] and v.cannot_save is None)


def _narrow(problem: RematProblem) -> frozenset[int]:
    """Values much smaller than what they are computed from."""
    narrow = set[int]()
    for v in problem.forward_values:
        value = problem.values[v]
        op = problem.values[value.reads[0]] if value.kind is Kind.PART else value
        largest = max((problem.values[r].size.hint for r in op.reads if r not in problem.inputs), default=0)
        if 0 < _NARROW * value.size.hint <= largest and not value.cannot_save:
            narrow.add(v)
    return frozenset(narrow)


def _chains(problem: RematProblem) -> Iterator[Blocks]:
    """Forward cut at its narrow waists, and, if these are few, at evenly spaced positions."""
    forward = measure_forward(problem)
    waists = narrow_waists(problem, forward)
    every = thin_out(forward, waists, _MOST_BLOCKS - 1)
    # Behind every second waist a block can save less than all that crosses the first.
    every_other = thin_out(forward, waists[::2], _MOST_BLOCKS - 1)
    repeated = cheap_to_repeat(problem, forward)
    cuts = [(every, frozenset[int]()), (every, repeated), (every_other, repeated)]
    if len(waists) < _FEW_WAISTS:
        cuts.append((narrowest(forward, _MOST_BLOCKS), repeated))
    for steps, anew in dict.fromkeys((tuple(steps), anew) for steps, anew in cuts if len(steps) > 1):
        yield cut_into_blocks(problem, forward, list(steps), anew)
