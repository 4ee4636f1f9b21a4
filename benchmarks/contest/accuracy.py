"""How true our predictions are, from rows: peak, slowdown, what no budget costs, and compile time; torch-free."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from scipy.stats import spearmanr

from benchmarks.contest.goals import Goal
from benchmarks.contest.results import MEASURED, Row
from benchmarks.contest.tasks import ANCHOR, GPU_LOWERING, KNOB, OURS

_Key = TypeVar("_Key")

NO_BUDGET = "none"
"""The point of our backend without a budget."""


@dataclass(frozen=True, slots=True)
class PeakError:
    """A predicted peak beside the measured one."""

    row: Row
    predicted_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """(predicted - measured) / measured; below 0 more was needed than promised."""
        return (self.predicted_bytes - self.measured_bytes) / self.measured_bytes

    @property
    def is_refused(self) -> bool:
        """Whether no plan was found for the budget, and the one of least peak was taken."""
        budget_bytes = _planned(self.row)["budget_bytes"]
        return budget_bytes is not None and self.predicted_bytes > budget_bytes

    @property
    def exceeds_budget(self) -> bool:
        """Whether a budget that the plan was said to fit was exceeded."""
        budget_bytes = _planned(self.row)["budget_bytes"]
        return budget_bytes is not None and not self.is_refused and self.measured_bytes > budget_bytes


@dataclass(frozen=True, slots=True)
class SlowdownError:
    """Predicted and measured slowdown against the same model without a budget; 0.1 is 10%."""

    row: Row
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class CompileTime:
    """Seconds to the first step of one of our points, beside those of a point of PyTorch's."""

    row: Row
    theirs: Row

    @property
    def ratio(self) -> float:
        return (self.row.compile_seconds or 0.0) / (self.theirs.compile_seconds or 1.0)

    def share(self, what: str) -> float:
        """Of compile time what a field of the plan in seconds takes."""
        return float(_planned(self.row)[what]) / (self.row.compile_seconds or 1.0)


def peak_errors(rows: Iterable[Row]) -> list[PeakError]:
    """Of every point of ours under Inductor."""
    return [
        PeakError(row, _planned(row)["predicted_peak_bytes"], row.peak_bytes) for row in _ours(rows) if row.peak_bytes
    ]


def slowdown_errors(rows: Sequence[Row], allocator: str) -> list[SlowdownError]:
    """Of every timed point of ours with a budget; what comes from the rig is modelled, and not compared."""
    found = []
    for setting, ours in _grouped(_ours(rows), lambda row: row.setting).items():
        base = next((_ratio(row, allocator) for row in ours if row.point == NO_BUDGET), None)
        for row in ours:
            ratio = _ratio(row, allocator)
            if setting.target != GPU_LOWERING and row.point != NO_BUDGET and base and ratio:
                planned = _planned(row)
                predicted = planned["predicted_step_ns"] / planned["unconstrained_step_ns"] - 1
                found.append(SlowdownError(row, predicted, ratio / base - 1))
    return found


def of_plans(errors: Iterable[SlowdownError]) -> list[SlowdownError]:
    """One for each plan: budgets that lead to the same one measure it more than once, and the median counts.

    Noise between equals would say that their order was predicted wrongly.
    """
    found = []
    for same in _grouped(errors, _plan_key).values():
        found.append(replace(same[0], measured=statistics.median(e.measured for e in same)))
    return found


def _plan_key(error: SlowdownError) -> tuple[Any, ...]:
    planned = _planned(error.row)
    return error.row.setting, planned["predicted_peak_bytes"], planned["predicted_step_ns"]


def rank_correlation(errors: Sequence[SlowdownError]) -> float | None:
    """Spearman's; None for fewer than three points."""
    if len(errors) < 3:
        return None
    return float(spearmanr([e.predicted for e in errors], [e.measured for e in errors]).statistic)


def without_budget(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(ours without a budget, the anchor) of every setting."""
    pairs = []
    for ours in _ours(rows):
        anchor = next((r for r in rows if r.setting == ours.setting and r.contestant == ANCHOR), None)
        if ours.point == NO_BUDGET and anchor is not None and anchor.state == MEASURED:
            pairs.append((ours, anchor))
    return pairs


def compile_times(rows: Sequence[Row]) -> list[CompileTime]:
    """Ours without a budget beside the anchor, and at each point of the knob, the one whose peak is nearest to it."""
    found = [CompileTime(*pair) for pair in without_budget(rows) if pair[0].compile_seconds]
    for ours in _grouped(_ours(rows), lambda row: row.setting).values():
        budgeted = [row for row in ours if row.point != NO_BUDGET and row.compile_seconds]
        for theirs in rows:
            is_knob = theirs.family == KNOB and theirs.peak_bytes and theirs.compile_seconds
            if budgeted and is_knob and theirs.setting == budgeted[0].setting:
                found.append(CompileTime(min(budgeted, key=lambda row: _distance(row, theirs)), theirs))
    return found


def goals(rows: Sequence[Row], allocator: str) -> list[Goal]:
    """What is asked of predictions, and whether it is so."""
    found: list[Goal] = []
    for (target, precision), some in _grouped(rows, lambda row: (row.target, row.precision)).items():
        where = f"{target}, {precision}"
        errors = peak_errors(some)
        if errors:
            sizes = [abs(e.error) for e in errors]
            worst = max(errors, key=lambda e: abs(e.error))
            least = f"{statistics.median(sizes):.2%} over {len(errors)} points"
            found.append(Goal("median error of the peak <= 1%", where, least, statistics.median(sizes) <= 0.01))
            most = f"{worst.error:+.2%} ({worst.row.model}, {worst.row.point})"
            found.append(Goal("worst error of the peak <= 3%", where, most, max(sizes) <= 0.03))
            over = [e for e in errors if e.exceeds_budget]
            refused = sum(e.is_refused for e in errors)
            figure = f"{len(over)} of {len(errors) - refused}, {refused} refused as too small"
            found.append(Goal("never measured above budget", where, figure, not over))
        pairs = without_budget(some)
        if pairs:
            model, ratio = max(((o.model, (o.peak_bytes or 0) / (a.peak_bytes or 1)) for o, a in pairs), key=_second)
            found.append(Goal("no budget: peak <= 1.00x inductor's", where, f"{ratio:.4f}x ({model})", ratio <= 1))
        times = [ratio for ours, _ in pairs if (ratio := _ratio(ours, allocator))]
        if times and target != GPU_LOWERING:
            median = statistics.median(times)
            found.append(Goal("no budget: step <= 1.02x inductor's (median)", where, f"{median:.3f}x", median <= 1.02))
        slow = of_plans(slowdown_errors(some, allocator))
        correlation = rank_correlation(slow)
        if correlation is not None:
            mean = statistics.mean(abs(e.predicted - e.measured) for e in slow)
            figure = f"{correlation:.2f} over {len(slow)} plans"
            found.append(Goal("rank correlation of slowdowns >= 0.9", where, figure, correlation >= 0.9))
            found.append(Goal("mean error of slowdowns <= 5 points", where, f"{100 * mean:.1f}", mean <= 0.05))
        found += _compile_goals(compile_times(some), where)
    return found


def _compile_goals(times: Sequence[CompileTime], where: str) -> list[Goal]:
    found = []
    free = [t for t in times if t.row.point == NO_BUDGET]
    budgeted = [t for t in times if t.row.point != NO_BUDGET]
    if free:
        median = statistics.median(t.ratio for t in free)
        found.append(
            Goal("no budget: compile time <= 1.10x inductor's (median)", where, f"{median:.2f}x", median <= 1.1)
        )
    if budgeted:
        median = statistics.median(t.ratio for t in budgeted)
        figure = f"{median:.2f}x over {len(budgeted)} points"
        found.append(Goal("compile time <= 1.15x the knob's (median)", where, figure, median <= 1.15))
        planning = statistics.median(t.share("planning_seconds") for t in budgeted)
        asked = [t.share("judging_seconds") for t in budgeted if "judging_seconds" in _planned(t.row)]
        if asked:
            share = statistics.median(asked)
            goal = "asking Inductor about plans <= 10% of compile time (median)"
            figure = f"{share:.0%}; with analysis and planning {planning:.0%}"
            found.append(Goal(goal, where, figure, share <= 0.1))
    return found


def _ours(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.family == OURS and r.through_inductor and r.state == MEASURED and r.plan is not None]


def _planned(row: Row) -> dict[str, Any]:
    assert row.plan is not None
    if "predicted_step_ns" not in row.plan:
        raise ValueError(f"{row.title} of {row.setting} was measured before predictions were recorded; measure it anew")
    return row.plan


def _grouped(rows: Iterable[Row], key: Callable[[Row], _Key]) -> dict[_Key, list[Row]]:
    found: dict[_Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _ratio(row: Row, allocator: str) -> float | None:
    return row.times[allocator].ratio if allocator in row.times else None


def _distance(row: Row, theirs: Row) -> int:
    return abs((row.peak_bytes or 0) - (theirs.peak_bytes or 0))


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
