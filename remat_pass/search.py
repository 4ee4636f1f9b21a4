"""What the planner has tried: candidates, each judged once by the peak of its own schedule, and the effort left.

Effort is simulated steps, not seconds: equal graphs get equal plans on every machine.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from remat_pass.liveness import Liveness, simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import Decisions, Program, added_ns, decide, lay_out, repeats

_STEPS_TO_SIMULATE = 700_000
"""Effort of planning: candidates times graph size, after cuts and chains. Keeps planning in seconds for any graph."""
_FEWEST_STEPS = 100
"""What a smaller graph counts as: simulating any takes some time."""
_FUSED_EFFORT = 4
"""How much longer it takes to judge a step where the lowering fuses."""
_KEPT_STEPS = 1_000_000
"""Of simulations that are kept in case they are asked for again; some 100 bytes each."""


@dataclass(frozen=True)
class Proposal:
    """A set of values to keep, and what to forget and to compute early when (`Decisions`)."""

    keep: frozenset[int]
    forgotten: dict[int, frozenset[int]] = field(default_factory=dict)
    early: dict[int, frozenset[int]] = field(default_factory=dict)
    depth_first: bool = False
    """Order of forward (`Decisions.depth_first`)."""

    def decisions(self, problem: RematProblem) -> Decisions:
        """What follows from it."""
        return decide(problem, self.keep, self.forgotten, early=self.early, depth_first=self.depth_first)

    def saving(self, values: frozenset[int]) -> "Proposal":
        """The same with more values kept, to the end."""
        forgotten = self.forgotten
        if any(not values.isdisjoint(gone) for gone in forgotten.values()):
            forgotten = {reader: gone - values for reader, gone in forgotten.items()}
        return replace(self, keep=self.keep | values, forgotten=forgotten)


@dataclass(frozen=True)
class Candidate:
    """One way to plan a graph, judged by simulation."""

    proposal: Proposal
    peak_bytes: int
    recompute_ns: int
    peaks_in_forward: bool
    """Whether more is alive at some step of forward than ever in backward."""
    steps_at_peak: int = field(repr=False, compare=False)
    """At how many steps that much is alive; views may be left out."""
    problem: RematProblem = field(repr=False, compare=False)

    @cached_property
    def decisions(self) -> Decisions:
        """What it saves and recomputes."""
        return self.proposal.decisions(self.problem)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A candidate with its schedule and the bytes alive in it."""

    candidate: Candidate
    decisions: Decisions
    program: Program
    liveness: Liveness


def evaluate(problem: RematProblem, proposal: Proposal, decisions: Decisions | None = None) -> Simulated:
    """Judge one proposal; its decisions are worked out if they are not known."""
    decisions = decisions or proposal.decisions(problem)
    program = lay_out(problem, decisions)
    liveness = simulate(problem, program)
    recompute_ns = added_ns(problem, (program.values[p] for p in program.saved), repeats(program))
    in_backward = int(liveness.alive_bytes[program.forward_end :].max(initial=0))
    steps_at_peak = int(np.count_nonzero(liveness.alive_bytes == liveness.peak_bytes))
    in_forward = in_backward < liveness.peak_bytes
    candidate = Candidate(proposal, liveness.peak_bytes, recompute_ns, in_forward, steps_at_peak, problem)
    return Simulated(candidate, decisions, program, liveness)


class Search:
    """Candidates seen so far."""

    def __init__(
        self, problem: RematProblem, *, honour_wishes: bool, depth_first: bool = False, share: float = 1.0
    ) -> None:
        self.problem = problem
        self._depth_first = depth_first
        wishes = [(i, v.wish) for i, v in enumerate(problem.values) if v.wish and honour_wishes]
        self._wish_save = frozenset(i for i, wish in wishes if wish == "save")
        self._wish_recompute = frozenset(i for i, wish in wishes if wish == "recompute")
        self._seen: set[object] = set()
        self._programs: set[bytes] = set()
        self._kept: dict[object, Simulated] = {}
        self._room = _KEPT_STEPS
        self.candidates: list[Candidate] = []
        """All that were judged, one for each program, in order."""
        self._best: tuple[Candidate, ...] = ()
        self._compared = 0
        self._effort = int(share * _STEPS_TO_SIMULATE)

    @property
    def trials(self) -> int:
        """About how many proposals there is effort left for."""
        return max(0, self._effort) // self._cost(len(self.problem.values))

    def may_save(self, values: Iterable[int]) -> bool:
        """Whether the user's wishes let the values be saved."""
        return self._wish_recompute.isdisjoint(values)

    def may_recompute(self, value: int) -> bool:
        """Whether the user's wishes let a value be recomputed."""
        return value not in self._wish_save

    def add(self, proposal: Proposal) -> Simulated:
        """Judge a proposal, as changed by what the user wishes; without effort."""
        proposal = self._as_wished(proposal)
        decisions = proposal.decisions(self.problem)
        key = _key(decisions)
        return self._kept.get(key) or self._simulate(proposal, decisions, key)

    def spend(self, proposal: Proposal) -> Simulated | None:
        """Judge a proposal if it is a new one and there is effort left for it."""
        if not self.trials:
            return None
        proposal = self._as_wished(proposal)
        decisions = proposal.decisions(self.problem)
        key = _key(decisions)
        return None if key in self._seen else self._paid(self._simulate(proposal, decisions, key))

    def again(self, candidate: Candidate) -> Simulated | None:
        """The simulation of a candidate if there is effort left; it takes some unless it has been kept."""
        if not self.trials:
            return None
        key = _key(candidate.decisions)
        return self._kept.get(key) or self._paid(self._simulate(candidate.proposal, candidate.decisions, key))

    def frontier(self) -> tuple[Candidate, ...]:
        """The best so far, by falling peak and rising time."""
        self._best = undominated((*self._best, *self.candidates[self._compared :]))
        self._compared = len(self.candidates)
        return self._best

    def _paid(self, simulated: Simulated) -> Simulated:
        self._effort -= self._cost(len(simulated.program.values))
        return simulated

    def _cost(self, steps: int) -> int:
        return max(_FEWEST_STEPS, steps) * (_FUSED_EFFORT if self.problem.fuses else 1)

    def _as_wished(self, proposal: Proposal) -> Proposal:
        saving = proposal.saving(self._wish_save) if self._wish_save else proposal
        return replace(saving, keep=saving.keep - self._wish_recompute, depth_first=self._depth_first)

    def _simulate(self, proposal: Proposal, decisions: Decisions, key: object) -> Simulated:
        simulated = evaluate(self.problem, proposal, decisions)
        if key not in self._seen:
            self._seen.add(key)
            program = hashlib.sha256(simulated.program.steps.tobytes()).digest()
            if program not in self._programs:
                self._programs.add(program)
                self.candidates.append(simulated.candidate)
        self._kept[key] = simulated
        self._room -= len(simulated.program.values)
        while self._room < 0:
            self._room += len(self._kept.pop(next(iter(self._kept))).program.values)
        return simulated


def undominated(
    candidates: Iterable[Candidate], *, height: Callable[[Candidate], Any] = lambda c: c.peak_bytes
) -> tuple[Candidate, ...]:
    """The best of the candidates, by falling height and rising time; of equal ones the first."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.recompute_ns, height(c))):
        if not best or height(candidate) < height(best[-1]):
            best.append(candidate)
    return tuple(best)


def _key(decisions: Decisions) -> object:
    return decisions.saved, tuple(sorted(decisions.forgotten.items())), tuple(sorted(decisions.early.items()))
