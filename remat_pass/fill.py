"""Filling: what a plan runs again stays alive instead, where there is room for it below a limit.

Between two runs of a value lies a *gap*, from its last use to its next run; the first one begins in forward. A gap is
*bridged* by keeping the value alive across it, which spares a run and takes its bytes all the way:

    f ......... f' ... f'' ...        all gaps of f: f is saved               saves two runs
    f ─────────                       the first: it is saved, and forgotten   saves one
                f' ────────           another: it is not forgotten            saves one

The room at every step is the limit less what is alive there. Filling bridges gaps by time spared per byte, as long as
there is room at every step of a gap. Where it starts from does the rest: from a plan far below the limit it makes the
most of the limit, and from the plan that forgets everything at once (`forgetful`) it finds what to keep in between.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import decide
from remat_pass.search import Proposal, Search, Simulated

_LIMITS = 16
"""Into how many steps the range of peaks is divided at first."""
_ROUNDS = 4
"""How often these steps are halved."""
_STARTS = (0, 1, 3)
"""Which candidates below a limit to start from, counted from the fastest."""
_LONGEST = 4
"""A plan that forgets everything runs at most this many times the values of the graph."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """Gaps of a value, or of all parts of an op, that are bridged together."""

    value: int
    """The op that is run less often."""
    gain_ns: int
    size_bytes: int
    is_saved: bool
    """Whether it bridges the first gap, so that the value is saved."""
    is_whole: bool
    """Whether it bridges all gaps, so that the value is never run again."""
    gaps: tuple[tuple[int, int, int], ...]
    """(value, first free position, position of the next run)."""


def fill_up(search: Search) -> None:
    """Fill candidates up to limits spread over the frontier, coarsely at first, as long as there is effort left."""
    starts = search.frontier()
    least, most = starts[-1].peak_bytes, starts[0].peak_bytes
    known: dict[int, Gaps] = {}
    for steps in (_LIMITS << k for k in range(_ROUNDS)):
        for k in range(steps + 1):
            if k % 2 or steps == _LIMITS:
                limit = least + (most - least) * k // steps
                below = [c for c in starts if c.peak_bytes <= limit]
                for start in (below[i] for i in _STARTS if i < len(below)):
                    if id(start) not in known:
                        simulated = search.again(start)
                        if simulated is None:
                            return
                        known[id(start)] = gaps_of(search, simulated)
                    fill(search, known[id(start)], limit)


def forgetful(problem: RematProblem, keep: frozenset[int]) -> Proposal | None:
    """What is not kept is run anew for every backward value that reads it; None if that takes too long."""
    recomputed = set(decide(problem, keep).recomputed)
    forgotten: dict[int, frozenset[int]] = {}
    runs = 0
    for reader, wanted in problem.backward_steps:
        if problem.values[reader].waits:  # what is there is for the next one
            continue
        origin = [r for r in wanted if r in recomputed]
        found = set(origin)
        for v in origin:  # grows
            new = [r for r in problem.origins[v] if r in recomputed and r not in found]
            found.update(new)
            origin += new
        runs += len(origin)
        if runs > _LONGEST * len(problem.values):
            return None
        if origin:
            forgotten[reader] = frozenset(origin)
    return Proposal(keep, forgotten)


def bridges(problem: RematProblem, simulated: Simulated) -> list[Bridge]:
    """All ways to spare runs of one value, those that spare most time per byte first."""
    values, program = problem.values, simulated.program
    end = program.forward_end
    runs: dict[int, list[int]] = {}
    for p in (end + np.flatnonzero(program.copies[end:])).tolist():
        runs.setdefault(program.values[p], []).append(p)
    in_forward = {v: p for p, v in enumerate(program.values[:end])}
    free = (simulated.liveness.last_use + 1).tolist()
    found: list[Bridge] = []
    for v, at in runs.items():
        if not values[v].recompute_ns or values[v].kind is Kind.PART:  # a part comes with its op
            continue
        members = [m for m in problem.parts.get(v, (v,)) if m in runs and values[m].size.hint]
        if not members:
            continue
        size, ns = sum([values[m].size.hint for m in members]), values[v].recompute_ns
        save_ns = sum([values[m].save_ns for m in members])
        if v in in_forward and not any([values[m].cannot_save for m in members]):
            # Forward runs a part that nothing reads there only if it is saved.
            first = [free[in_forward[m]] if m in in_forward else in_forward[v] + 1 for m in members]
            gaps = [(m, a, runs[m][0]) for m, a in zip(members, first, strict=True)]
            if len(at) > 1:
                found.append(Bridge(v, ns - save_ns, size, True, False, tuple(gaps)))
            gaps += [(m, free[p], q) for m in members for p, q in pairwise(runs[m])]
            found.append(Bridge(v, len(at) * ns - save_ns, size, True, True, tuple(gaps)))
        if len(at) > 1 and all(len(runs[m]) == len(at) for m in members):
            for k in range(1, len(at)):
                gaps = [(m, free[runs[m][k - 1]], runs[m][k]) for m in members]
                found.append(Bridge(v, ns, size, False, False, tuple(gaps)))
    return sorted((b for b in found if b.gain_ns > 0), key=lambda b: (-b.gain_ns / b.size_bytes, b.value, b.gaps))


def bridged(problem: RematProblem, simulated: Simulated, chosen: list[Bridge]) -> Proposal:
    """The plan with some gaps bridged."""
    proposal, program = simulated.candidate.proposal, simulated.program
    saved = _members(problem, (b for b in chosen if b.is_saved))
    whole = _members(problem, (b for b in chosen if b.is_whole))
    ranges: dict[int, list[range]] = {}
    for m, first, run in (gap for b in chosen if not b.is_whole for gap in b.gaps):
        # It is forgotten after its last use or later; its op, if it is a part, counts as a part.
        ranges.setdefault(m, []).append(range(first - 1, run))
        if problem.values[m].kind is Kind.PART:
            ranges.setdefault(problem.values[m].reads[0], []).append(range(first - 1, run))
    forgotten = proposal.forgotten
    if ranges:
        position = {v: p for p, v in enumerate(program.values)}
        forgotten = {
            reader: frozenset(v for v in gone if not any(position[reader] in r for r in ranges.get(v, ())))
            for reader, gone in forgotten.items()
        }
    return replace(proposal, keep=proposal.keep | saved, forgotten=forgotten).saving(whole)


def _members(problem: RematProblem, chosen: Iterable[Bridge]) -> frozenset[int]:
    return frozenset(m for b in chosen for m in problem.parts.get(b.value, (b.value,)))


@dataclass(frozen=True, slots=True)
class Gaps:
    """A plan and the ways to spare runs in it, those that the user does not forbid."""

    simulated: Simulated
    bridges: list[Bridge]
    needed_bytes: np.ndarray
    """The limit from which on each bridge fits by itself; shape (bridges,), int64."""


def gaps_of(search: Search, simulated: Simulated) -> Gaps:
    """What there is to bridge in a plan, and how much room each bridge takes by itself."""
    found = [b for b in bridges(search.problem, simulated) if not b.is_saved or search.may_save(m for m, *_ in b.gaps)]
    gaps = [(k, a, b, search.problem.values[m].size.hint) for k, bridge in enumerate(found) for m, a, b in bridge.gaps]
    which, first, run, size = np.array(gaps, dtype=np.int64).reshape(-1, 4).T
    alive = np.append(simulated.liveness.alive_bytes, 0)  # so that a gap may end with the program
    # reduceat yields the largest from one index up to the next: every other one is that of a gap.
    highest = np.maximum.reduceat(alive, np.stack((first, run), 1).ravel())[::2] if len(gaps) else first
    needed = np.zeros(len(found), dtype=np.int64)
    np.maximum.at(needed, which, np.where(first < run, highest + size, 0))
    return Gaps(simulated, found, needed)


def fill(search: Search, start: Gaps, limit_bytes: int) -> None:
    """Bridge what fits below a limit, again and again, as long as that leaves runs to spare."""
    while filled := _filled(search, start, limit_bytes):
        start = gaps_of(search, filled)


def _filled(search: Search, start: Gaps, limit_bytes: int) -> Simulated | None:
    """The start with more of its gaps bridged, or None if there are none that fit."""
    chosen = list(_fitting(search.problem, start, limit_bytes))
    while chosen:
        filled = search.spend(bridged(search.problem, start.simulated, chosen))
        if filled is None or filled.candidate.peak_bytes <= limit_bytes:
            return filled
        # What fits in bytes alive may not fit once kernels are fused anew.
        chosen = chosen[: len(chosen) // 2]
    return None


def _fitting(problem: RematProblem, start: Gaps, limit_bytes: int) -> Iterator[Bridge]:
    """Bridges that fit below a limit, all together."""
    room = limit_bytes - start.simulated.liveness.alive_bytes
    saved: set[int] = set()
    for k in np.flatnonzero(start.needed_bytes <= limit_bytes).tolist():
        bridge = start.bridges[k]
        gaps = [(slice(a, b), problem.values[m].size.hint) for m, a, b in bridge.gaps if a < b]
        if bridge.value not in saved and all(room[gap].min() >= size for gap, size in gaps):
            for gap, size in gaps:
                room[gap] -= size
            if bridge.is_whole:
                saved.add(bridge.value)
            yield bridge
