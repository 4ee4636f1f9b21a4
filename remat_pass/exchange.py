"""Exchanges: a saved value makes room for the run of another one that takes longer.

Of a plan that makes the most of its memory nothing more can be kept, but perhaps something else:

    f ─────────                 f ......... f'           f is run again, and frees its bytes up to there
    g ......... g'              g ─────────              which g takes

What either takes is estimated: a saved value takes its own time and that of what it is made of, unless that is there or
run again anyway; what the other one spares is that of a bridge (`fill`). The best exchange for each value is simulated,
the most promising first, so that a plan is better by a few trials where single changes (`changes`) take hundreds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from remat_pass.changes import dispensable, first_needed
from remat_pass.fill import Bridge, bridged, gaps_of
from remat_pass.problem import RematProblem
from remat_pass.search import Candidate, Search, Simulated

_TRIES = 3
"""How many exchanges of a plan are simulated at most: where these are in vain others mostly are, too."""
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


def exchange(search: Search, trials: int) -> None:
    """Exchange values on the frontier as long as that makes it better, in so many trials, of so many plans at most."""
    left = trials
    done: set[int] = set()
    while fresh := [c for c in search.frontier() if id(c) not in done]:
        for candidate in fresh:
            if left <= 0 or len(done) >= trials or not (simulated := search.again(candidate)):
                return
            done.add(id(candidate))
            left -= _improve(search, candidate, simulated, left)


def _improve(search: Search, candidate: Candidate, simulated: Simulated, trials: int) -> int:
    """Simulate exchanges up to the first that is better; how many these were."""
    promising = _exchanges(search, simulated)[: min(trials, _TRIES)]
    for k, (value, bridge) in enumerate(promising, 1):
        proposal = bridged(search.problem, simulated, [bridge])
        new = search.spend(replace(proposal, keep=proposal.keep - {value}))
        if new and _is_better(new.candidate, candidate):
            return k
    return len(promising)


def _is_better(new: Candidate, old: Candidate) -> bool:
    return new.peak_bytes <= old.peak_bytes and new.recompute_ns < old.recompute_ns


def _exchanges(search: Search, simulated: Simulated) -> list[tuple[int, Bridge]]:
    """(saved value, what to bridge instead), the best for each value, by time spared; it may fit beside the value."""
    gaps, limit_bytes = gaps_of(search, simulated), simulated.candidate.peak_bytes
    gain_ns = np.array([b.gain_ns for b in gaps.bridges], dtype=np.int64)
    by_gain = np.argsort(-gain_ns, kind="stable")
    gain_ns, needed_bytes = gain_ns[by_gain], gaps.needed_bytes[by_gain]
    found: list[tuple[int, int, int]] = []
    for release in _releases(search, simulated):
        promising = (gain_ns > release.cost_ns) & (needed_bytes <= limit_bytes + release.size_bytes)
        for k in np.flatnonzero(promising)[:_CHECKS].tolist():
            if _fits(search.problem, simulated, release, gaps.bridges[by_gain[k]], limit_bytes):
                found.append((release.cost_ns - int(gain_ns[k]), release.value, int(by_gain[k])))
                break
    return [(value, gaps.bridges[k]) for _, value, k in sorted(found)]


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


def _releases(search: Search, simulated: Simulated) -> Iterator[_Release]:
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
