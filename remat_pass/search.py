"""What the planner has tried: candidates, each judged once by the peak of its own schedule, and the effort left.

Effort is simulated steps, not seconds: equal graphs get equal plans on every machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from remat_pass.liveness import Liveness, simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import Decisions, Program, added_ns, decide, lay_out, repeats

_STEPS_TO_SIMULATE = 800_000
"""Effort of planning: candidates times graph size, after cuts and chains. Keeps planning in seconds for any graph."""
_FEWEST_STEPS = 250
"""What a smaller graph counts as: simulating any takes some time."""
_FUSED_EFFORT = 3
"""How much longer it takes to simulate a step where the lowering fuses."""


@dataclass(frozen=True)
class Proposal:
    """A set of values to keep, and what to forget when (`Decisions.forgotten`)."""

    keep: frozenset[int]
    forgotten: dict[int, frozenset[int]] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Simulated:
    """A candidate with its schedule and the bytes alive in it."""

    candidate: Candidate
    decisions: Decisions
    program: Program
    liveness: Liveness


def evaluate(problem: RematProblem, proposal: Proposal) -> Simulated:
    """Judge one proposal."""
    return _simulated(problem, proposal, decide(problem, proposal.keep, proposal.forgotten))


def _simulated(problem: RematProblem, proposal: Proposal, decisions: Decisions) -> Simulated:
    program = lay_out(problem, decisions)
    liveness = simulate(problem, program)
    recompute_ns = added_ns(problem, decisions.saved, repeats(program))
    return Simulated(Candidate(proposal, liveness.peak_bytes, recompute_ns, problem), decisions, program, liveness)


class Search:
    """Candidates seen so far."""

    def __init__(self, problem: RematProblem, *, honour_wishes: bool) -> None:
        self.problem = problem
        wishes = [(i, v.wish) for i, v in enumerate(problem.values) if v.wish and honour_wishes]
        self._wish_save = frozenset(i for i, wish in wishes if wish == "save")
        self._wish_recompute = frozenset(i for i, wish in wishes if wish == "recompute")
        self._seen: set[object] = set()
        self._candidates: list[Candidate] = []
        self._effort = _STEPS_TO_SIMULATE
        self._cost = max(_FEWEST_STEPS, len(problem.values)) * (_FUSED_EFFORT if problem.fuses else 1)

    @property
    def trials(self) -> int:
        """How many proposals there is effort left for."""
        return self._effort // self._cost

    def may_save(self, values: Iterable[int]) -> bool:
        """Whether the user's wishes let the values be saved."""
        return self._wish_recompute.isdisjoint(values)

    def add(self, proposal: Proposal) -> Simulated:
        """Judge a proposal, as changed by what the user wishes; without effort."""
        simulated = evaluate(self.problem, self._as_wished(proposal))
        if self._is_new(simulated.decisions):
            self._candidates.append(simulated.candidate)
        return simulated

    def spend(self, proposal: Proposal) -> Simulated | None:
        """Judge a proposal if it is a new one and there is effort left for it."""
        proposal = self._as_wished(proposal)
        if not self.trials:
            return None
        decisions = decide(self.problem, proposal.keep, proposal.forgotten)
        if not self._is_new(decisions):
            return None
        self._effort -= self._cost
        simulated = _simulated(self.problem, proposal, decisions)
        self._candidates.append(simulated.candidate)
        return simulated

    def again(self, candidate: Candidate) -> Simulated | None:
        """Simulate a candidate once more if there is effort left for it."""
        if not self.trials:
            return None
        self._effort -= self._cost
        return evaluate(self.problem, candidate.proposal)

    def frontier(self) -> tuple[Candidate, ...]:
        """The best so far, by falling peak and rising time."""
        best: list[Candidate] = []
        for candidate in sorted(self._candidates, key=lambda c: (c.recompute_ns, c.peak_bytes)):
            if not best or candidate.peak_bytes < best[-1].peak_bytes:
                best.append(candidate)
        return tuple(best)

    def _as_wished(self, proposal: Proposal) -> Proposal:
        return Proposal((proposal.keep | self._wish_save) - self._wish_recompute, proposal.forgotten)

    def _is_new(self, decisions: Decisions) -> bool:
        key = (decisions.saved, tuple(sorted(decisions.forgotten.items())))
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new
