"""Changes: single decisions of a plan are made otherwise, one after the other.

First all single changes of what is on the frontier are tried, as long as that makes it better. Then *detours* follow:
values are made early, and the best of the dominated candidates are changed, too. Behind these lies what only several
changes together gain. Of equal peaks the one at fewer steps counts as lower there, since a plan whose peak is at many
steps is lowered one step at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise, takewhile

import numpy as np

from remat_pass.fill import bridged, bridges
from remat_pass.problem import RematProblem, Value
from remat_pass.schedule import Program
from remat_pass.search import Candidate, Proposal, Search, Simulated, undominated

_DETOURS = 16
"""How many times in a row changing dominated candidates may gain nothing."""
_DETOUR_SHARE = 4
"""Detours take at most this part of the effort that is left for them."""


def refine(search: Search) -> None:
    """Change single decisions of the frontier; then, for a while, make values early and change what is dominated."""
    changed: set[int] = set()
    made_early: set[int] = set()
    _climb(search, changed)
    enough = search.trials * (_DETOUR_SHARE - 1) // _DETOUR_SHARE
    in_vain = 0
    while in_vain < _DETOURS and search.trials > enough:
        best = search.frontier()
        rest = (c for c in search.candidates if id(c) not in made_early)
        layer = undominated(rest, height=lambda c: (c.peak_bytes, c.steps_at_peak))
        _try(search, layer, _made_early, made_early)
        _try(search, [c for c in layer if id(c) not in changed], _single_changes, changed)
        _climb(search, changed)
        in_vain = in_vain + 1 if search.frontier() == best else 0


def _climb(search: Search, changed: set[int]) -> None:
    """Change what is on the frontier as long as that makes it better and there is effort left."""
    while fresh := [c for c in search.frontier() if id(c) not in changed]:
        _try(search, fresh, _single_changes, changed)


def _try(
    search: Search,
    candidates: Sequence[Candidate],
    changes: Callable[[RematProblem, Simulated], Iterator[Proposal]],
    done: set[int],
) -> None:
    """All changes of one kind, of the candidates of least peak first."""
    for candidate in reversed(candidates):
        done.add(id(candidate))
        if simulated := search.again(candidate):
            for proposal in takewhile(lambda _: search.trials, changes(search.problem, simulated)):
                search.spend(proposal)


def _single_changes(problem: RematProblem, simulated: Simulated) -> Iterator[Proposal]:
    """The candidate with one decision another.

    One value is saved less or more, or one for another, or one is forgotten sooner or later.
    """
    proposal = simulated.candidate.proposal
    keep = proposal.keep
    values, recomputed = problem.values, set(simulated.decisions.recomputed)
    less = dispensable(problem, simulated)
    more = [frozenset([v]) for v in simulated.decisions.recomputed if not values[v].cannot_save]
    more += [frozenset(parts) & recomputed for op, parts in problem.parts.items() if op in recomputed]
    yield from (replace(proposal, keep=keep - {v}) for v in less)
    yield from map(proposal.saving, more)
    yield from (bridged(problem, simulated, [b]) for b in bridges(problem, simulated) if not b.is_whole)
    for reader, v in _unused_for_a_while(problem, simulated.program):
        yield _forgetting(proposal, reader, frozenset([v]))
    saving = (proposal.saving(new) for new in more)
    yield from (replace(more_saved, keep=more_saved.keep - {v}) for more_saved in saving for v in less)


def dispensable(problem: RematProblem, simulated: Simulated) -> list[int]:
    """What is saved, takes memory and can be run again."""
    saved = ((v, problem.values[v]) for v in simulated.decisions.saved)
    return [v for v, value in saved if value.size.hint and not value.is_input and not value.cannot_recompute]


def _forgetting(proposal: Proposal, reader: int, values: frozenset[int]) -> Proposal:
    forgotten = proposal.forgotten
    return replace(proposal, forgotten={**forgotten, reader: forgotten.get(reader, frozenset()) | values})


def _made_early(problem: RematProblem, simulated: Simulated) -> Iterator[Proposal]:
    """A value is made before it is needed, where least is alive: before the highest peak on the way, or behind it.

    What a saved value is made of is saved in its place.
    """
    proposal, program, liveness = simulated.candidate.proposal, simulated.program, simulated.liveness
    backward = np.flatnonzero(~problem.is_forward[program.steps])
    backward = backward[backward >= program.forward_end + len(problem.tangents)]
    height = liveness.alive_bytes[backward]
    alive = height - (liveness.born + liveness.workspace)[backward]
    needed_at = first_needed(program)
    saved = dispensable(problem, simulated)
    made_of = {v: frozenset(r for r in problem.values[v].reads if _is_savable(problem.values[r])) for v in saved}
    for v, parts in (made_of | dict.fromkeys(simulated.decisions.recomputed, frozenset[int]())).items():
        end = int(np.searchsorted(backward, needed_at.get(v, 0), side="right"))
        middle = int(height[:end].argmax()) + 1 if end else 0
        for a, b in ((0, middle), (middle, end)):
            if a < b:
                step = program.values[backward[b - 1 - alive[a:b][::-1].argmin()]]
                early = {**proposal.early, step: proposal.early.get(step, frozenset()) | {v}}
                remade = replace(proposal, keep=(proposal.keep - {v}) | parts, early=early)
                yield _forgetting(remade, step, parts - proposal.keep) if parts - proposal.keep else remade


def _is_savable(value: Value) -> bool:
    return not (value.is_input or value.cannot_save)


def first_needed(program: Program) -> dict[int, int]:
    """Where backward first reads each value that is saved, and where it first runs every other one."""
    begin, count = program.forward_end, len(program.values)
    in_backward = np.flatnonzero(program.readers >= begin)[::-1]
    first = {program.values[p]: p for p in reversed(range(begin, count))}
    first |= {program.values[p]: count for p in program.returned if p < begin}
    reads = zip(program.read[in_backward].tolist(), program.readers[in_backward].tolist(), strict=True)
    return first | {program.values[source]: reader for source, reader in reads if source < begin}


def _unused_for_a_while(problem: RematProblem, program: Program) -> Iterator[tuple[int, int]]:
    """(backward value, forward value) where the second is needed before and after the first, but not by it."""
    count = len(program.values)
    is_backward = ~problem.is_forward[program.steps]
    behind = np.minimum.accumulate(np.where(is_backward, np.arange(count), count)[::-1])[::-1]
    uses: dict[int, list[int]] = {}
    reads = zip(program.read.tolist(), program.readers.tolist(), strict=True)
    for source, reader in chain(reads, ((p, count) for p in program.returned)):
        if reader >= program.forward_end and problem.size_bytes[program.values[source]]:
            uses.setdefault(source, []).append(reader)
    for source, readers in uses.items():
        if not is_backward[source]:
            for before, after in pairwise(readers):
                if behind[before] < after:
                    yield program.values[behind[before]], program.values[source]
