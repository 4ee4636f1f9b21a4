"""From contestants, and from what others needed, to the tasks of a run; torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.contest.results import MEASURED, Row
from benchmarks.contest.tasks import ANCHOR, GPU_LOWERING, KNOB, OURS, Setting, Task, thin

if TYPE_CHECKING:
    from benchmarks.contest.contestants import Contestant, Point

_CLOSE = 1.01
"""Matched peaks this close share the smaller budget."""
_TIMES_LESS = (3, 5)
"""How much less activation memory the goals of a modelled step are for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which settings of a contestant take part: all, or some by their labels, or some spread evenly.

    Attributes:
        labels: Those that may, where a contestant has several; None for any.
        count: At most so many of them; None for all.
    """

    labels: frozenset[str] | None = None
    count: int | None = None

    def of(self, points: Sequence["Point"]) -> list["Point"]:
        """The points that take part, in their order; a contestant's only one always does."""
        allowed = [p for p in points if self.labels is None or p.label in self.labels or len(points) == 1]
        return thin(allowed, self.count)


def tasks_of(setting: Setting, contestants: Mapping[str, "Contestant"], size: str, choice: Choice) -> list[Task]:
    """Every point of every contestant that runs in this setting; the rig takes those that go through Inductor."""
    return [
        Task(setting, contestant.name, contestant.family, contestant.gpu is not None, point.label, point.options)
        for contestant in contestants.values()
        if contestant.gpu is not None or setting.target != GPU_LOWERING
        for point in choice.of(contestant.points(size))
    ]


def matched_tasks(
    rows: Sequence[Row], setting: Setting, contestants: Mapping[str, "Contestant"], size: str
) -> list[Task]:
    """Our backend with the peaks that others reached as budgets: "at their own points", measured.

    The prediction error that we keep free of a budget is added, or we would be held to a smaller peak than theirs.
    In the quick size others are PyTorch's knob, in the full one all that go through Inductor as we do; there, in
    code for a GPU, a third and a fifth of the anchor's activations are budgets, too, beside its gradients. Left out are
    peaks below the least that we have been seen to reach, peaks that our largest plan fits into, and peaks within 1%
    above another one.
    """
    backend = next((c for c in contestants.values() if c.family == OURS and c.gpu is not None), None)
    measured = [row for row in rows if row.setting == setting and row.state == MEASURED and row.peak_bytes]
    ours = [row for row in measured if row.family == OURS and row.through_inductor and not _is_matched(row)]
    if backend is None or not ours:
        return []
    least, largest = (choose(row.peak_bytes or 0 for row in ours) for choose in (min, max))
    margin_permille = (ours[0].plan or {})["margin_permille"]
    tasks: list[Task] = []
    matched_bytes = 0
    others = [r for r in measured if r.through_inductor and r.family != OURS and (size == "full" or r.family == KNOB)]
    targets = [(r.peak_bytes or 0, f"at {r.title}") for r in others]
    anchor = next((r for r in others if r.contestant == ANCHOR), None)
    if setting.target == GPU_LOWERING and anchor and anchor.activation_peak_bytes is not None:
        for times in _TIMES_LESS:
            left_bytes = (anchor.gradient_bytes or 0) + anchor.activation_peak_bytes // times
            targets.append((left_bytes, f"at 1/{times} of activations"))
    for peak_bytes, label in sorted(targets):
        if not max(least, matched_bytes * _CLOSE) <= peak_bytes < largest:
            continue
        matched_bytes = peak_bytes
        budget_bytes = peak_bytes * (1000 + margin_permille) // 1000
        options = {**backend.points("full")[0].options, "memory_budget": budget_bytes}
        tasks.append(Task(setting, backend.name, backend.family, True, label, options))
    return tasks


def _is_matched(row: Row) -> bool:
    return row.point.startswith("at ")
