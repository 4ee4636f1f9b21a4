"""The planner: from a problem to the frontier of peak against recompute time.

    1. cuts      one min cut per price of memory (`mincut`)
    2. chains    checkpoints, reruns and what to save in between, by dynamic programming over forward cut into blocks,
                 between which few bytes cross (`waists`, `chain`)
    3. mixes     two neighbours on the frontier at a position of the joint graph: one's decisions before it, the
                 other's after it; identical layers, which flip together in a cut, are told apart here
    4. filling   what a candidate recomputes is saved instead where that leaves its peak as it is; on small graphs also
                 single changes of every candidate on the frontier

Every candidate is judged by the peak of its own schedule (`schedule`, `liveness`), never by a sum of bytes. Candidates
do not depend on the budget, so a smaller budget chooses from a subset: the peak never rises when the budget falls. Ties
are broken by peak, then by order of generation; nothing iterates over a set.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from remat_pass.chain import Proposal, propose
from remat_pass.contract import Contracted, contract
from remat_pass.liveness import Liveness, simulate
from remat_pass.mincut import cheapest_saved_sets
from remat_pass.problem import RematProblem
from remat_pass.schedule import Decisions, Program, added_ns, decide, lay_out, repeats
from remat_pass.waists import (
    Blocks,
    cheap_to_repeat,
    cut_into_blocks,
    measure_forward,
    narrow_waists,
    narrowest,
    thin_out,
)

_PRICES = 16
_MOST_BLOCKS = 80
_FEW_WAISTS = 8
"""With fewer waists than this, forward is also cut at evenly spaced positions."""
_STRIDES = (1, 2, 4)
"""Every waist, every second one, ...: a block can then save less than all that crosses it."""
_MOST_PROPOSALS = 48
_MIX_ROUNDS = 3
_MIX_POSITIONS = 24
_STEPS_TO_SIMULATE = 1_000_000
"""Effort of planning: candidates times graph size, after cuts and chains. Keeps planning in seconds for any graph."""
_FUSED_EFFORT = 3
"""How much longer it takes to simulate a step where the lowering fuses."""


@dataclass(frozen=True)
class Candidate:
    """One way to plan a graph, judged by simulation."""

    proposal: Proposal
    peak_bytes: int
    recompute_ns: int
    problem: RematProblem = field(repr=False, compare=False)

    @cached_property
    def decisions(self) -> Decisions:
        """What it saves and recomputes."""
        return decide(self.problem, self.proposal.keep, self.proposal.forgotten)


def frontier(
    problem: RematProblem, *, extra: Iterable[frozenset[int]] = (), honour_wishes: bool = True
) -> tuple[Candidate, ...]:
    """The planner's best trade-offs.

    Args:
        problem: The graph to plan.
        extra: Further sets of values to keep that are to be judged too (the plan of another partitioner).
        honour_wishes: Whether the user's tags bind.

    Returns:
        Candidates by falling peak and rising recompute time, the fastest first, none dominated by another.
    """
    small = contract(problem)
    within = {v: i for i, v in enumerate(small.original)}
    found = _frontier(
        small.problem, [frozenset(within[v] for v in keep if v in within) for keep in extra], honour_wishes
    )
    return tuple(Candidate(_expanded(small, c.proposal), c.peak_bytes, c.recompute_ns, problem) for c in found)


def _expanded(small: Contracted, proposal: Proposal) -> Proposal:
    forgotten = {
        small.original[reader]: small.expand(values, with_views=True) for reader, values in proposal.forgotten.items()
    }
    return Proposal(small.expand(proposal.keep), forgotten)


def _frontier(problem: RematProblem, extra: list[frozenset[int]], honour_wishes: bool) -> tuple[Candidate, ...]:
    judge = _Judge(problem, honour_wishes)
    prices = _prices(problem)
    everything = _everything(problem)
    for keep in (everything, *extra, *cheapest_saved_sets(problem, prices, honour_wishes=honour_wishes)):
        judge.add(Proposal(keep))
    for blocks in _chains(problem):
        forced = cheapest_saved_sets(problem, prices, forced=blocks.waists, honour_wishes=honour_wishes)
        count = min(_MOST_PROPOSALS, 12 + judge.effort // (32 * judge.cost))
        for proposal in propose(problem, blocks, list(dict.fromkeys([everything, *forced])), count):
            judge.add(proposal)
    for _ in range(_MIX_ROUNDS):
        share = judge.effort // (2 * _MIX_ROUNDS)
        for proposal in list(_mixes(problem, judge.frontier(), share // judge.cost)):
            judge.spend(proposal)
    for candidate in judge.frontier():
        judge.fill(candidate)
    judge.refine()
    return judge.frontier()


def fastest_within(candidates: tuple[Candidate, ...], limit_bytes: int) -> Candidate | None:
    """The fastest candidate whose simulated peak is at most the limit, or None."""
    return next((c for c in candidates if c.peak_bytes <= limit_bytes), None)


def evaluate(problem: RematProblem, proposal: Proposal) -> Candidate:
    """Judge one proposal."""
    return _simulated(problem, proposal)[0]


def _simulated(problem: RematProblem, proposal: Proposal) -> tuple[Candidate, Program, Liveness]:
    decisions = decide(problem, proposal.keep, proposal.forgotten)
    program = lay_out(problem, decisions)
    liveness = simulate(problem, program)
    recompute_ns = added_ns(problem, decisions.saved, repeats(program))
    return Candidate(proposal, liveness.peak_bytes, recompute_ns, problem), program, liveness


class _Judge:
    """Candidates seen so far; judges each distinct decision once."""

    def __init__(self, problem: RematProblem, honour_wishes: bool) -> None:
        self.problem = problem
        self.wish_save: frozenset[int] = frozenset()
        self.wish_recompute: frozenset[int] = frozenset()
        if honour_wishes:
            self.wish_save = frozenset(i for i, v in enumerate(problem.values) if v.wish == "save")
            self.wish_recompute = frozenset(i for i, v in enumerate(problem.values) if v.wish == "recompute")
        self.seen: set[object] = set()
        self.candidates: list[Candidate] = []
        self.effort = _STEPS_TO_SIMULATE
        self.cost = max(1, len(problem.values)) * (_FUSED_EFFORT if problem.fuses else 1)

    def add(self, proposal: Proposal) -> Candidate | None:
        keep = (proposal.keep | self.wish_save) - self.wish_recompute
        proposal = Proposal(keep, proposal.forgotten)
        key = (decide(self.problem, keep).saved, tuple(sorted(proposal.forgotten.items())))
        if key in self.seen:
            return None
        self.seen.add(key)
        self.candidates.append(evaluate(self.problem, proposal))
        return self.candidates[-1]

    def spend(self, proposal: Proposal) -> Candidate | None:
        """Judge a proposal if there is effort left for it."""
        return self.add(proposal) if self._take_effort() else None

    def _take_effort(self) -> bool:
        """Pay for one simulation; False if that is no longer possible."""
        if self.effort < self.cost:
            return False
        self.effort -= self.cost
        return True

    def frontier(self) -> tuple[Candidate, ...]:
        best: list[Candidate] = []
        for candidate in sorted(self.candidates, key=lambda c: (c.recompute_ns, c.peak_bytes)):
            if not best or candidate.peak_bytes < best[-1].peak_bytes:
                best.append(candidate)
        return tuple(best)

    def fill(self, candidate: Candidate) -> None:
        """Save more of what a candidate recomputes, as long as its peak stays."""
        if not self._take_effort():
            return
        _, program, liveness = _simulated(self.problem, candidate.proposal)
        more = _fits_below_peak(self.problem, program, liveness)
        while more:
            filled = self.spend(Proposal(candidate.proposal.keep | frozenset(more), candidate.proposal.forgotten))
            if filled is None or filled.peak_bytes <= candidate.peak_bytes:
                return
            more = more[: len(more) // 2]

    def refine(self) -> None:
        """Change single decisions of the frontier, as long as that makes it better and there is effort left."""
        tried: set[int] = set()
        while fresh := [c for c in self.frontier() if id(c) not in tried]:
            for candidate in fresh:
                tried.add(id(candidate))
                for proposal in _single_changes(self.problem, candidate):
                    if self.effort < self.cost:
                        return
                    self.spend(proposal)


def _everything(problem: RematProblem) -> frozenset[int]:
    return frozenset(i for i, v in enumerate(problem.values) if problem.runs_in_forward[i] and v.cannot_save is None)


def _chains(problem: RematProblem) -> Iterator[Blocks]:
    """Forward cut at its narrow waists, and, if these are few, at evenly spaced positions."""
    forward = measure_forward(problem)
    waists = narrow_waists(problem, forward)
    cuts = [thin_out(forward, waists[::stride], _MOST_BLOCKS - 1) for stride in _STRIDES]
    if len(waists) < _FEW_WAISTS:
        cuts.append(narrowest(forward, _MOST_BLOCKS))
    repeated = cheap_to_repeat(problem, forward)
    for steps in cuts:
        if len(steps) > 1:
            yield cut_into_blocks(problem, forward, steps)
            if repeated:
                yield cut_into_blocks(problem, forward, steps, repeated)


def _prices(problem: RematProblem) -> list[float]:
    """From "a byte is worth nothing" to "any byte is worth recomputing everything", in nanoseconds per byte."""
    ratios = [
        v.recompute_ns / v.size.hint for v in problem.values if v.recompute_ns and v.size.hint and not v.needs_tangent
    ]
    if not ratios:
        return [0.0]
    total_ns = sum(v.recompute_ns for v in problem.values if not v.needs_tangent)
    largest = max(v.size.hint for v in problem.values)
    low, high = min(ratios) / 4, max(max(ratios), total_ns / largest) * 4
    step = (high / low) ** (1 / (_PRICES - 1))
    return [low * 1e-3, *(low * step**i for i in range(_PRICES))]


def _mixes(problem: RematProblem, candidates: tuple[Candidate, ...], effort: int) -> Iterator[Proposal]:
    """Neighbours on the frontier, and neighbours but one, mixed at evenly spaced positions both ways round."""
    forward = [i for i in range(len(problem.values)) if problem.runs_in_forward[i]]
    if len(candidates) < 2 or not forward:
        return
    pairs = [(i, i + d) for d in (1, 2) for i in range(len(candidates) - d)]
    spread = candidates[0].peak_bytes - candidates[-1].peak_bytes
    # Wide gaps first: where the frontier is already dense, mixing adds nothing a user would notice.
    pairs.sort(key=lambda p: (candidates[p[1]].peak_bytes - candidates[p[0]].peak_bytes, p))
    pairs = [(i, j) for i, j in pairs if candidates[i].peak_bytes - candidates[j].peak_bytes > spread / 100]
    positions = min(_MIX_POSITIONS, max(4, math.ceil(effort / max(1, 2 * len(pairs)))))
    for i, j in pairs[: effort // (2 * positions)]:
        for k in range(1, positions):
            at = forward[len(forward) * k // positions]
            yield _mixed(candidates[i].proposal, candidates[j].proposal, at)
            yield _mixed(candidates[j].proposal, candidates[i].proposal, at)


def _mixed(first: Proposal, second: Proposal, at: int) -> Proposal:
    """One's decisions on values before a position, the other's from there on."""
    forgotten = {
        reader: frozenset(
            [v for v in first.forgotten.get(reader, ()) if v < at]
            + [v for v in second.forgotten.get(reader, ()) if v >= at]
        )
        for reader in sorted({*first.forgotten, *second.forgotten})
    }
    return Proposal(frozenset([v for v in first.keep if v < at] + [v for v in second.keep if v >= at]), forgotten)


def _fits_below_peak(problem: RematProblem, program: Program, liveness: Liveness) -> list[int]:
    """Recomputed values that could be saved in the room that the plan leaves below its peak, most time saved first."""
    values, end = problem.values, program.forward_end
    room = liveness.peak_bytes - liveness.alive_bytes
    runs: dict[int, list[int]] = {}
    for p in range(end, len(program.values)):
        if program.copies[p]:
            runs.setdefault(program.values[p], []).append(p)
    in_forward = {v: p for p, v in enumerate(program.values[:end])}
    gains = {
        v: len(at) * values[v].recompute_ns - values[v].save_ns
        for v, at in runs.items()
        if v in in_forward and values[v].cannot_save is None and values[v].size.hint
    }
    chosen = []
    for v in sorted((v for v, gain in gains.items() if gain > 0), key=lambda v: (-gains[v] / values[v].size.hint, v)):
        size = values[v].size.hint
        # Alive anew from its last use to its next run, again and again.
        free = [liveness.last_use[p] + 1 for p in (in_forward[v], *runs[v][:-1])]
        spans = [slice(int(a), b) for a, b in zip(free, runs[v], strict=True) if a < b]
        if all(room[span].min() >= size for span in spans):
            for span in spans:
                room[span] -= size
            chosen.append(v)
    return chosen


def _single_changes(problem: RematProblem, candidate: Candidate) -> Iterator[Proposal]:
    """The candidate with one value more or less to save, or one forgotten earlier than its last use."""
    keep, forgotten = candidate.proposal.keep, candidate.proposal.forgotten
    values, recomputed = problem.values, set(candidate.decisions.recomputed)
    for v in (*candidate.decisions.saved, *candidate.decisions.recomputed):
        value = values[v]
        if not value.is_input and not value.cannot_recompute and not value.cannot_save and value.size.hint:
            yield Proposal(keep ^ {v}, forgotten)
    for reader in problem.runs_in_backward:
        for v in values[reader].reads:
            if v in recomputed and values[v].size.hint and v not in forgotten.get(reader, ()):
                yield Proposal(keep, {**forgotten, reader: forgotten.get(reader, frozenset()) | {v}})
