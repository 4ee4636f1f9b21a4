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


@dataclass(frozen=True, slots=True)
class _Release:
    """A saved value, and what follows if it is not saved."""

    value: int
    cost_ns: int
    first: int
    end: int
    """Where its bytes are free."""


def exchange(search: Search, trials: int) -> None:
    """Exchange values on the frontier as long as that makes it better, in so many trials at most."""
    done: set[int] = set()
    enough = search.trials - trials
    while fresh := [c for c in search.frontier() if id(c) not in done]:
        for candidate in fresh:
            done.add(id(candidate))
            if search.trials <= enough or not (simulated := search.again(candidate)):
                return
            _improve(search, candidate, simulated)


def _improve(search: Search, candidate: Candidate, simulated: Simulated) -> None:
    """Simulate exchanges up to the first that is better."""
    for value, bridge in _exchanges(search, simulated)[:_TRIES]:
        proposal = bridged(search.problem, simulated, [bridge])
        new = search.spend(replace(proposal, keep=proposal.keep - {value}))
        if new and _is_better(new.candidate, candidate):
            return


def _is_better(new: Candidate, old: Candidate) -> bool:
    return new.peak_bytes <= old.peak_bytes and new.recompute_ns < old.recompute_ns


def _exchanges(search: Search, simulated: Simulated) -> list[tuple[int, Bridge]]:
    """(saved value, what to bridge instead), the best for each value, by time spared."""
    gaps = gaps_of(search, simulated)
    if not gaps.bridges:
        return []
    limit_bytes = simulated.candidate.peak_bytes
    gain_ns = np.array([b.gain_ns for b in gaps.bridges])
    found: list[tuple[int, int, int]] = []
    for release in _releases(search.problem, simulated):
        gains = np.flatnonzero(gain_ns > release.cost_ns)
        if not len(gains):
            continue
        alive = simulated.liveness.alive_bytes.copy()
        alive[release.first : release.end] -= search.problem.values[release.value].size.hint
        fits = gains[gaps.needed_bytes(alive)[gains] <= limit_bytes]
        others = [k for k in fits.tolist() if gaps.bridges[k].value != release.value]
        if others:
            best = max(others, key=lambda k: (gain_ns[k], -k))
            found.append((release.cost_ns - int(gain_ns[best]), release.value, best))
    return [(value, gaps.bridges[k]) for _, value, k in sorted(found)]


def _releases(problem: RematProblem, simulated: Simulated) -> Iterator[_Release]:
    program, end = simulated.program, simulated.program.forward_end
    there = {*simulated.decisions.saved, *simulated.decisions.recomputed, *problem.inputs}
    needed_at = first_needed(program)
    last_use = _last_uses_in_forward(simulated)
    position = {v: p for p, v in enumerate(program.values[:end])}
    for v in dispensable(problem, simulated):
        if v in position and last_use[position[v]] + 1 < needed_at.get(v, 0):
            cost_ns = _rerun_ns(problem, v, there) - problem.values[v].save_ns
            yield _Release(v, cost_ns, last_use[position[v]] + 1, needed_at[v])


def _last_uses_in_forward(simulated: Simulated) -> Sequence[int]:
    """For every step the last one of forward that reads it, or itself."""
    program = simulated.program
    last_use = np.arange(len(program.values))
    in_forward = program.readers < program.forward_end
    np.maximum.at(last_use, program.read[in_forward], program.readers[in_forward])
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
