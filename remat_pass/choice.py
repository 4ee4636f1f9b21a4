"""From a frontier and a budget to one plan.

Without a budget the incumbent, torch's own partition, stays, unless it needs more memory than the model would run op by
op, and a plan is clearly better: the fastest whose peak is not above its own, or not above that of what it saves in our
order. It may be a little slower where the model has checkpoints inside. If the incumbent's gradients may be wrong, the
fastest plan found that takes no more memory replaces it. There is no incumbent under eager lowering:
nothing is recomputed then. With a budget the fastest plan wins whose peak, prediction error included, fits. What the
user's checkpointing asks for binds both, and gives way only to a budget that cannot be met with it.

The frontier is ordered by *simulated* peaks. Whether a plan fits is for a `Judge` to say: the simulation itself under
eager lowering, where it is exact, and where it is believed for now (`compilation`); else Inductor's own scheduler
(`inductor_peak`), at a tenth of the compile time for each plan. Where the two differ the search tries candidates, a
bounded number of times, and learns from each how the two go together (`_search`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, partial

from remat_pass.breakdown import GRADIENTS, break_down
from remat_pass.errors import InfeasibleBudgetError
from remat_pass.liveness import simulate
from remat_pass.problem import Kind, RematPlan, RematProblem
from remat_pass.schedule import plan_ns, plan_of, program_of
from remat_pass.search import Candidate, Proposal, evaluate
from remat_pass.solver import fastest_within, frontier
from remat_pass.units import format_bytes


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a plan will really be like under its lowering."""

    peak_bytes: int
    step_ns: int
    """Estimated time of forward and backward."""


Judge = Callable[[RematPlan], Judgement]

_SAME_TIME = 0.001
"""Share of the step by which two estimated times may differ and still be called equal."""

_SLOWER = 0.02
"""The same where the model has checkpoints inside: that it may be slower without a budget if it takes less memory."""

_CLEAR = 0.1
"""Share of the step or of the peak by which a plan must be better than torch's own to replace it without a budget. What
is judged is no more certain than that: plans judged up to 3% better were 25% slower (ResNet on CPU) or 5% larger (with
Inductor's reuse of buffers, which is on without a budget and not foreseen)."""

_MAX_TRIALS = 4
CLOSE = 0.98
"""A judged peak of this share of the limit makes the most of it: the next trial would gain little. Nor is it below this
share of the simulated one."""
_LAST_RESORTS = 7
"""How many candidates of low simulated peak are judged before a budget is refused: the order may be another one. Where
the judged peak of GPT-2 in GPU code is least, the simulated one is 17% above its least."""
_RESORTS_APART = 1.03
"""By what factor the simulated peaks of two of them differ at least: near ones are nearly the same plan."""


class Effort(IntEnum):
    """How far the search for a plan within a budget goes."""

    TRIALS = 0
    """A few candidates are judged that should just fit."""
    LOW_PEAKS = 1
    """And those of low simulated peak."""
    WITHOUT_TAGS = 2
    """And the same of plans that do not follow the user's tags."""


@dataclass(frozen=True, slots=True)
class IncumbentPlan:
    """What is to be known of torch's own partition."""

    keep: frozenset[int]
    """The values it saves."""
    judgement: Judgement
    """Of its graphs, in its order."""
    is_estimated: bool = False
    """Whether that is by simulation alone."""
    is_wrong: bool = False
    """Whether its gradients may be wrong: a plan of ours then takes its place, and no more memory."""


class Frontiers:
    """Of one problem, each made when it is first asked for."""

    def __init__(self, problem: RematProblem, incumbent: IncumbentPlan | None, share: float = 1.0) -> None:
        self._problem = problem
        extra = () if incumbent is None else (incumbent.keep,)
        self._frontier = partial(frontier, problem, extra=extra, share=share)

    @cached_property
    def honouring(self) -> tuple[Candidate, ...]:
        """With the user's tags."""
        return self._frontier()

    @cached_property
    def free(self) -> tuple[Candidate, ...]:
        """Without them; nothing where there are none."""
        tagged = any(v.wish for v in self._problem.values)
        return self._frontier(honour_wishes=False) if tagged else ()

    def least(self, effort: Effort) -> Candidate:
        """The one of least simulated peak that is looked at."""
        ends = [self.honouring[-1], *(self.free[-1:] if effort is Effort.WITHOUT_TAGS else ())]
        return min(ends, key=lambda c: c.peak_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate, and what the report says about the others."""

    candidate: Candidate
    budget_bytes: int | None
    unconstrained: Judgement
    """Of the plan without a budget."""
    unconstrained_is_estimated: bool
    """Whether that is by simulation alone."""
    least_peak_bytes: int
    """Smallest budget that is accepted, prediction error included: judged if a budget was refused, else simulated."""
    is_incumbent: bool
    fits: bool
    overruled: tuple[int, ...]
    """Values whose tag the budget made us ignore, in joint-graph order."""
    frontier: tuple[Candidate, ...]
    """All there was to choose from with the tags honoured, by falling simulated peak and rising time."""

    @property
    def unconstrained_peak_bytes(self) -> int:
        """What fractions are of."""
        return self.unconstrained.peak_bytes


def choose(
    problem: RematProblem,
    memory_budget: float | int | None,
    incumbent: IncumbentPlan | None = None,
    judge: Judge | None = None,
    *,
    effort: Effort = Effort.WITHOUT_TAGS,
    slack_permille: int = 0,
    frontiers: Frontiers | None = None,
) -> Choice:
    """Pick the plan for a budget.

    The fraction 1.0 is always accepted, even where no plan peaks lower by the prediction error.

    Args:
        problem: The graph.
        memory_budget: None, a fraction of the unconstrained peak (float), or bytes (int).
        incumbent: Torch's own partition; None where there is none.
        judge: Tells the real peak of a plan; None: the simulated one is believed.
        effort: How far to go if no plan is found.
        slack_permille: Thousandths of what the budget allows that are kept free besides.
        frontiers: Of the problem, if they may be at hand.
    """
    of_plan = judge or simulated_judge(problem)

    def judged(candidate: Candidate) -> Judgement:
        return of_plan(plan_of(problem, candidate.decisions))

    def peak_of(candidate: Candidate) -> int:
        return judged(candidate).peak_bytes

    frontiers = frontiers or Frontiers(problem, incumbent)
    honouring = frontiers.honouring
    unconstrained, is_incumbent = _without_budget(problem, honouring, incumbent, judged)
    without_budget = incumbent.judgement if incumbent and is_incumbent else judged(unconstrained)
    unconstrained_bytes = without_budget.peak_bytes
    # The incumbent's order is another one, and says nothing about ours.
    known = {} if is_incumbent else {unconstrained.peak_bytes: unconstrained_bytes}
    budget_bytes = _in_bytes(memory_budget, unconstrained_bytes)
    chosen: Candidate | None = unconstrained
    if budget_bytes is not None:
        limit = problem.without_margin(budget_bytes) * (1000 - slack_permille) // 1000
        if unconstrained_bytes > limit:
            chosen = _search(honouring, limit, peak_of, known, effort)
        if chosen is None and memory_budget == 1.0 and isinstance(memory_budget, float):
            chosen = unconstrained  # the plan that defines the fraction 1.0 is not refused for its prediction error
        if effort is Effort.WITHOUT_TAGS:
            chosen = chosen or _search(frontiers.free, limit, peak_of, known, effort)
    if chosen is None and effort > Effort.TRIALS:
        others = _last_resorts(frontiers.free) if effort is Effort.WITHOUT_TAGS else ()
        candidate = _least((*_last_resorts(honouring), *others), peak_of)
        least_bytes = peak_of(candidate)
    else:
        least = frontiers.least(Effort.WITHOUT_TAGS if chosen else effort)
        candidate, least_bytes = chosen or least, least.peak_bytes
        if chosen is not None:
            chosen_bytes = unconstrained_bytes if chosen is unconstrained else peak_of(chosen)
            least_bytes = chosen_bytes if chosen is least else min(chosen_bytes, least_bytes)
    return Choice(
        candidate=candidate,
        budget_bytes=budget_bytes,
        unconstrained=without_budget,
        unconstrained_is_estimated=incumbent is not None and incumbent.is_estimated,
        least_peak_bytes=problem.with_margin(least_bytes),
        is_incumbent=is_incumbent and chosen is unconstrained,
        fits=chosen is not None,
        overruled=_overruled(problem, candidate),
        frontier=honouring,
    )


def infeasible(problem: RematProblem, choice: Choice) -> InfeasibleBudgetError:
    """The error that says what is reachable and what stands in the way."""
    assert choice.budget_bytes is not None
    peak = break_down(problem, plan_of(problem, choice.candidate.decisions))
    where = f"in {peak.program} at {peak.value}" + (f" ({peak.source})" if peak.source else "")
    fraction = _enough(choice.least_peak_bytes, choice.unconstrained_peak_bytes)
    or_fraction = f" or {fraction}" if fraction <= 1 else ""
    floor = (
        "Gradients that backward returns cannot be recomputed away. " if GRADIENTS in dict(peak.bytes_by_role) else ""
    )
    margin = f" (prediction error of {problem.margin_permille / 10:g}% included)" if problem.margin_permille else ""
    return InfeasibleBudgetError(
        f"no plan fits {format_bytes(choice.budget_bytes)}: the least reachable peak of this graph is "
        f"{format_bytes(choice.least_peak_bytes)}{margin}, {where}: {peak.describe()}. "
        f"{floor}Raise memory_budget to at least {choice.least_peak_bytes} bytes{or_fraction}, "
        'or pass on_infeasible="warn" for the least-peak plan.',
        budget_bytes=choice.budget_bytes,
        least_peak_bytes=choice.least_peak_bytes,
    )


def simulated_judge(problem: RematProblem) -> Judge:
    """The judge of a lowering that runs a plan as it is."""

    def judge(plan: RematPlan) -> Judgement:
        peak_bytes = simulate(problem, program_of(problem, plan)).peak_bytes
        once_ns = sum(v.recompute_ns for v in problem.values)
        return Judgement(peak_bytes, once_ns + plan_ns(problem, plan))

    return judge


def _search(
    candidates: tuple[Candidate, ...],
    limit: int,
    peak_of: Callable[[Candidate], int],
    known: Mapping[int, int],
    effort: Effort,
) -> Candidate | None:
    """The fastest candidate found whose judged peak is at most the limit, or None.

    Each trial aims at the simulated peak that should just fit, between those of the judged peaks next to the limit, and
    at the least one there is where even that is higher. The candidates of low simulated peaks are the last resort.

    Args:
        candidates: By falling simulated peak and rising time.
        limit: In bytes.
        peak_of: The judged peak of a candidate.
        known: Judged peaks, by simulated ones, to begin with.
        effort: From `LOW_PEAKS` on those are tried.
    """
    judged = dict(known)
    best: Candidate | None = None
    tried: set[int] = set()
    least = candidates[-1] if fastest_within(candidates, limit) else None
    for _ in range(_MAX_TRIALS):
        candidate = fastest_within(candidates, _aim(judged, limit)) or least
        if candidate is None or id(candidate) in tried:
            break
        tried.add(id(candidate))
        peak = judged[candidate.peak_bytes] = peak_of(candidate)
        if peak <= limit and (best is None or candidate.recompute_ns < best.recompute_ns):
            best = candidate
        if peak == candidate.peak_bytes or limit * CLOSE <= peak <= limit:
            break
    resorts = _last_resorts(candidates) if effort > Effort.TRIALS else []
    for candidate in resorts:
        if best is None and candidate.peak_bytes * CLOSE <= limit and peak_of(candidate) <= limit:
            best = candidate
    if best is None and resorts:
        # What would be named as the least reachable peak is accepted.
        lowest = _least(resorts, peak_of)
        best = lowest if peak_of(lowest) <= limit else None
    return best


def _least(candidates: Sequence[Candidate], peak_of: Callable[[Candidate], int]) -> Candidate:
    """The one of least judged peak. What is simulated to need more than another one really does is not judged."""
    least: Candidate | None = None
    for candidate in sorted(candidates, key=lambda c: c.peak_bytes):
        if least is None or (candidate.peak_bytes * CLOSE < peak_of(least) and peak_of(candidate) < peak_of(least)):
            least = candidate
    assert least is not None
    return least


def _last_resorts(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """Some of low simulated peak, that of the least last."""
    resorts: list[Candidate] = []
    for candidate in reversed(candidates):
        if not resorts or candidate.peak_bytes >= _RESORTS_APART * resorts[-1].peak_bytes:
            resorts.append(candidate)
    return resorts[:_LAST_RESORTS][::-1]


def _aim(judged: Mapping[int, int], limit: int) -> int:
    """The simulated peak whose judged peak should be the limit, by what is known; `judged` is by simulated peak."""
    if limit in judged.values():
        return max(simulated for simulated, peak in judged.items() if peak == limit)
    below = max(((peak, simulated) for simulated, peak in judged.items() if peak < limit), default=None)
    # Of several the one simulated lowest, so that each trial that does not fit is followed by a lower one.
    above = min(((p, s) for s, p in judged.items() if p > limit), key=lambda point: point[1], default=None)
    if below and above and below[1] < above[1]:
        return below[1] + (limit - below[0]) * (above[1] - below[1]) // (above[0] - below[0])
    nearest = below or above
    return limit + nearest[1] - nearest[0] if nearest else limit


def _without_budget(
    problem: RematProblem,
    candidates: tuple[Candidate, ...],
    incumbent: IncumbentPlan | None,
    judged: Callable[[Candidate], Judgement],
) -> tuple[Candidate, bool]:
    """The plan of the module docstring, and whether it is the incumbent's, unchanged."""
    if incumbent is None:
        return candidates[0], False
    limit = incumbent.judgement
    if incumbent.is_wrong:
        return _no_larger(candidates, limit.peak_bytes, judged), False
    reordered = evaluate(problem, Proposal(incumbent.keep)).candidate
    if incumbent.is_estimated or limit.peak_bytes <= op_by_op_peak(problem):
        return reordered, True
    rivals = [fastest_within(candidates, peak) for peak in (limit.peak_bytes, reordered.peak_bytes)]
    # Who checkpoints has chosen memory over time.
    slower = _SLOWER if any(v.wish == "recompute" for v in problem.values) else _SAME_TIME
    better: tuple[int, int, Candidate] | None = None
    for rival in (c for c in rivals if c):
        found = judged(rival)
        gained_ns = limit.step_ns - found.step_ns
        no_worse = found.peak_bytes <= limit.peak_bytes and gained_ns >= -slower * limit.step_ns
        is_clear = gained_ns > _CLEAR * limit.step_ns or found.peak_bytes < (1 - _CLEAR) * limit.peak_bytes
        if no_worse and is_clear and (better is None or (found.step_ns, found.peak_bytes) < better[:2]):
            better = found.step_ns, found.peak_bytes, rival
    return (reordered, True) if better is None else (better[2], False)


def _no_larger(candidates: tuple[Candidate, ...], limit: int, judged: Callable[[Candidate], Judgement]) -> Candidate:
    """The fastest candidate where it takes at most so many bytes, or else one found that does, best clearly so."""
    fastest = candidates[0]
    known = {fastest.peak_bytes: judged(fastest).peak_bytes}
    if known[fastest.peak_bytes] <= limit:
        return fastest
    for bound in (int(limit * (1 - _CLEAR)), limit):
        if found := _search(candidates, bound, lambda c: judged(c).peak_bytes, known, Effort.TRIALS):
            return found
    return fastest


def op_by_op_peak(problem: RematProblem) -> int:
    """Of the model as it stands: only what its checkpointing asks for is computed again, and nothing is fused.

    What backward needs and forward does not, such as the slope of an activation, is computed there, but for parts of
    what forward runs, such as the indices of a pooling.
    """
    runs = problem.runs_in_forward
    in_forward = (runs[v.reads[0]] if v.kind is Kind.PART else runs[i] for i, v in enumerate(problem.values))
    keep = frozenset(
        i
        for i, (v, is_run) in enumerate(zip(problem.values, in_forward, strict=True))
        if is_run and v.wish != "recompute" and not v.cannot_save
    )
    return evaluate(replace(problem, fuses=False), Proposal(keep)).candidate.peak_bytes


def replaceable_above(op_by_op_bytes: int) -> int:
    """The peak of torch's own partition above which a plan that takes no more than op by op is clearly better."""
    return int(op_by_op_bytes / (1 - _CLEAR))


def _in_bytes(memory_budget: float | int | None, unconstrained_bytes: int) -> int | None:
    if memory_budget is None or isinstance(memory_budget, int):
        return memory_budget
    return int(memory_budget * unconstrained_bytes)


def _enough(least_bytes: int, unconstrained_bytes: int) -> float:
    """The smallest fraction in thousandths that is enough, to the byte."""
    thousandths = -(-least_bytes * 1000 // unconstrained_bytes)
    while int(thousandths / 1000 * unconstrained_bytes) < least_bytes:
        thousandths += 1
    return thousandths / 1000


def _overruled(problem: RematProblem, chosen: Candidate) -> tuple[int, ...]:
    saved, recomputed = set(chosen.decisions.saved), set(chosen.decisions.recomputed)
    return tuple(
        i
        for i, v in enumerate(problem.values)
        if not v.is_free
        and not v.cannot_recompute
        and ((v.wish == "save" and i in recomputed) or (v.wish == "recompute" and i in saved))
    )
