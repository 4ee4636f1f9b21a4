"""Exchanges: a saved value makes room for the run of another one that takes longer. Releases: for a lower peak.

Of a plan that makes the most of its memory nothing more can be kept, but perhaps something else:

    f ─────────                 f ......... f'           f is run again, and frees its bytes up to there
    g ......... g'              g ─────────              which g takes, or nothing, so that the peak is lower

What either takes is estimated: a saved value takes its own time and that of what it is made of, unless that is there or
run again anyway; what the other one spares is that of a bridge (`fill`). The most promising changes of a plan are
simulated, so that it is better by a few trials where single changes (`changes`) take hundreds. Where exchanges are in
vain, releases lead to plans between those there are, and below them, and these are exchanged in turn.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from remat_pass.changes import dispensable, first_needed
from remat_pass.fill import Bridge, bridged, gaps_of
from remat_pass.problem import RematProblem
from remat_pass.search import Candidate, Proposal, Search, Simulated

_TRIES = 3
"""How many exchanges or releases of a plan are simulated at most: where these are in vain others mostly are, too."""
_CHECKS = 32
"""For how many bridges it is checked whether they fit in place of a value, those that spare most time first."""


@dataclass(frozen=True, slots=True)
class _Release:
    """A saved value, and what follows if it is not saved."""

    value: int
    size_bytes: int
    cost_ns: int
    first: int
    end: int
    """Where its bytes are free."""

    def peak_bytes(self, alive_bytes: np.ndarray) -> int:
        """The most bytes alive once it is not saved."""
        before, after = alive_bytes[: self.first].max(initial=0), alive_bytes[self.end :].max(initial=0)
        return max(int(before), int(after), int(alive_bytes[self.first : self.end].max(initial=0)) - self.size_bytes)


def exchange(search: Search, trials: int) -> None:
    """Exchange values on the frontier, and release them where that is in vain, as long as that makes it better.

    Args:
        search: The plans so far.
        trials: How many plans are simulated at most, and of how many exchanges, and releases, are looked for.
    """
    left = trials
    exchanged: set[int] = set()
    released: set[int] = set()
    while True:
        if fresh := _not_in(exchanged, search.frontier()):
            changes, done = _exchanges, exchanged
        elif fresh := _not_in(released, search.frontier()):
            changes, done = _releases, released
        else:
            return
        for candidate in fresh:
            if left <= 0 or len(done) >= trials or not (simulated := search.again(candidate)):
                return
            done.add(id(candidate))
            left -= _try(search, islice(changes(search, simulated), min(left, _TRIES)))


def _not_in(done: set[int], candidates: tuple[Candidate, ...]) -> list[Candidate]:
    return [c for c in candidates if id(c) not in done]


def _try(search: Search, proposals: Iterator[Proposal]) -> int:
    """Simulate proposals up to the first one on the frontier; how many these were."""
    tried = 0
    for proposal in proposals:
        tried += 1
        new = search.spend(proposal)
        if new and new.candidate in search.frontier():
            break
    return tried


def _exchanges(search: Search, simulated: Simulated) -> Iterator[Proposal]:
    """The best exchange for each saved value, those that spare most time first; it may fit beside the value, too."""
    gaps, limit_bytes = gaps_of(search, simulated), simulated.candidate.peak_bytes
    gain_ns = np.array([b.gain_ns for b in gaps.bridges], dtype=np.int64)
    by_gain = np.argsort(-gain_ns, kind="stable")
    gain_ns, needed_bytes = gain_ns[by_gain], gaps.needed_bytes[by_gain]
    found: list[tuple[int, int, int]] = []
    for release in _saved_values(search, simulated):
        promising = (gain_ns > release.cost_ns) & (needed_bytes <= limit_bytes + release.size_bytes)
        for k in np.flatnonzero(promising)[:_CHECKS].tolist():
            if _fits(search.problem, simulated, release, gaps.bridges[by_gain[k]], limit_bytes):
                found.append((release.cost_ns - int(gain_ns[k]), release.value, int(by_gain[k])))
                break
    for _, value, k in sorted(found):
        proposal = bridged(search.problem, simulated, [gaps.bridges[k]])
        yield replace(proposal, keep=proposal.keep - {value})


def _releases(search: Search, simulated: Simulated) -> Iterator[Proposal]:
    """What may be released to lie below the frontier, by time per byte of a lower peak."""
    best, candidate = search.frontier(), simulated.candidate
    found: list[tuple[float, int]] = []
    for release in _saved_values(search, simulated):
        peak_bytes = release.peak_bytes(simulated.liveness.alive_bytes)
        k = bisect_left(best, -peak_bytes, key=lambda c: -c.peak_bytes)  # the fastest of no higher peak
        if k == len(best) or candidate.recompute_ns + release.cost_ns < best[k].recompute_ns:
            found.append((release.cost_ns / max(1, candidate.peak_bytes - peak_bytes), release.value))
    proposal = candidate.proposal
    yield from (replace(proposal, keep=proposal.keep - {value}) for _, value in sorted(found))


def _fits(problem: RematProblem, simulated: Simulated, release: _Release, bridge: Bridge, limit_bytes: int) -> bool:
    """Whether there is room for a bridge once a value is released, which is none of what it keeps."""
    if release.value in (bridge.value, *problem.parts.get(bridge.value, ())):
        return False
    alive = simulated.liveness.alive_bytes
    for m, a, b in bridge.gaps:
        first, end = min(max(a, release.first), b), max(min(b, release.end), a)
        beside = max(alive[a:first].max(initial=0), alive[max(end, first) : b].max(initial=0))
        highest = max(beside, alive[first:end].max(initial=release.size_bytes) - release.size_bytes)
        if a < b and highest + problem.values[m].size.hint > limit_bytes:
            return False
    return True


def _saved_values(search: Search, simulated: Simulated) -> Iterator[_Release]:
    problem, program = search.problem, simulated.program
    there = {*simulated.decisions.saved, *simulated.decisions.recomputed, *problem.inputs}
    needed_at = first_needed(program)
    last_use = _last_uses_in_forward(problem, simulated)
    position = {v: p for p, v in enumerate(program.values[: program.forward_end])}
    for v in dispensable(problem, simulated):
        if v in position and search.may_recompute(v) and last_use[position[v]] + 1 < needed_at.get(v, 0):
            value = problem.values[v]
            cost_ns = _rerun_ns(problem, v, there) - value.save_ns
            yield _Release(v, value.size.hint, cost_ns, last_use[position[v]] + 1, needed_at[v])


def _last_uses_in_forward(problem: RematProblem, simulated: Simulated) -> Sequence[int]:
    """For every step the last one of forward that reads it, or itself; what forward returns stays to its end."""
    program = simulated.program
    last_use = np.arange(len(program.values))
    in_forward = program.readers < program.forward_end
    np.maximum.at(last_use, program.read[in_forward], program.readers[in_forward])
    last_use[program.output_positions(problem)] = program.forward_end - 1
    found: list[int] = last_use.tolist()
    return found


def _rerun_ns(problem: RematProblem, v: int, there: set[int]) -> int:
    """Time to run a value, and what it is made of that is not there."""
    needed, pending = {v}, [v]
    while pending:
        new = {r for r in problem.values[pending.pop()].reads if r not in there and r not in needed}
        needed |= new
        pending += new
    return sum(problem.values[u].recompute_ns for u in needed if problem.runs_in_forward[u])
