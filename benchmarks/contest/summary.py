"""What the rows say: ours against every point of everyone else, per setting; torch-free.

Contestants that go through Inductor are compared with ours under Inductor, the others with all of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contest import curve
from benchmarks.contest.curve import Comparison, Numbers
from benchmarks.contest.results import MEASURED, Row
from benchmarks.contest.tasks import ANCHOR, OURS, Setting


@dataclass(frozen=True, slots=True)
class Summary:
    """One setting: everybody's rows and what they amount to."""

    setting: Setting
    rows: tuple[Row, ...]
    anchor: Row | None
    comparisons: tuple[Comparison, ...]
    numbers: Numbers

    @property
    def at_or_below(self) -> int:
        """How many of the others' points our curve is at or below."""
        return sum(comparison.at_or_below for comparison in self.comparisons)

    @property
    def remarks(self) -> list[Row]:
        """Rows with something to say: most are no points, as they failed, do not apply or have wrong gradients."""
        return [row for row in self.rows if row.state != MEASURED or row.why is not None]


def summaries(rows: Sequence[Row], allocator: str) -> list[Summary]:
    """One per setting, in the order of the rows."""
    return [
        _summary(setting, [row for row in rows if row.setting == setting], allocator)
        for setting in dict.fromkeys(row.setting for row in rows)
    ]


def _summary(setting: Setting, rows: Sequence[Row], allocator: str) -> Summary:
    found = curve.points(rows, allocator)
    ours = [p for p in found if p.row.family == OURS]
    compiled = [p for p in ours if p.row.through_inductor]
    others = [p for p in found if p.row.family != OURS]
    comparisons = tuple(curve.compare(compiled if p.row.through_inductor else ours, p) for p in others)
    numbers = curve.numbers(compiled, [p for p in others if p.row.through_inductor])
    anchor = next((row for row in rows if row.contestant == ANCHOR), None)
    return Summary(setting, tuple(rows), anchor, comparisons, numbers)
