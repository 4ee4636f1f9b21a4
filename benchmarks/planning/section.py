"""What a section of the planner benchmark is: a measurement that gives rows, and what is read off the rows.

    measure(run) ─► rows, JSON objects ─► tables(rows), goals(rows)

Rows are all that is stored, so that tables and goals can be made again from a results file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest.goals import Goal

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What a measurement is given.

    Attributes:
        trial: Small sizes, to see that it works; figures mean nothing then.
        scratch: A folder for logs and caches.
        doing: Says what happens now.
    """

    trial: bool
    scratch: Path
    doing: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, below a line that says how to read them."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One question about the planner."""

    name: str
    title: str
    measure: Callable[[Run], list[Row]]
    tables: Callable[[Sequence[Row]], list[Table]]
    goals: Callable[[Sequence[Row]], list[Goal]]


def at_most(goal: str, where: str, value: float | None, limit: float, form: str = "{:.1f}") -> Goal:
    """The goal that a value is at most a limit; undecided if nothing was measured."""
    if value is None:
        return Goal(goal, where, "not measured", None)
    return Goal(goal, where, form.format(value), value <= limit)


def none_of(goal: str, where: str, bad: Sequence[str], count: int) -> Goal:
    """The goal that something never happens, over `count` cases; names the first that break it."""
    if not count:
        return Goal(goal, where, "not measured", None)
    named = f": {'; '.join(bad[:3])}" if bad else ""
    return Goal(goal, where, f"{len(bad)} of {count}{named}", not bad)


def mb(count: float | None) -> str:
    """10^6 bytes with one decimal, or a dash."""
    return "–" if count is None else f"{count / 1e6:,.1f}"


def share(ratio: float | None, digits: int = 2) -> str:
    """A ratio in percent, or a dash."""
    return "–" if ratio is None else f"{100 * ratio:.{digits}f}%"
