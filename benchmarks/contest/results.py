"""Rows of results: one per point of a contestant's curve, in a journal while they are made and in one file at the end.

The journal (`NAME.scratch/journal.jsonl` beside `NAME.json`) gets a line as soon as a row is known, so that a run that
crashes goes on where it stopped. Every row says what it holds for; those of another commit, torch, machine or device
are not reused unless that is asked for.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest.tasks import Setting, Task

MEASURED = "measured"
FAILED = "failed"
UNAVAILABLE = "not available"
WRONG = "wrong gradients"

Meta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Step times of one point under one allocator, beside those of the anchor of its group."""

    rounds: int
    median_seconds: float
    quartile_seconds: tuple[float, float]
    ratio: float | None
    """To the anchor, median over rounds; None if the anchor failed."""
    quartile_ratios: tuple[float, float] | None
    page_faults: float
    """Median per step: memory taken anew from the system, which a caching allocator hardly does."""

    @property
    def noise(self) -> float:
        """Twice the standard error of `ratio`, if rounds were normal: 1.25 sigma / sqrt(n), sigma = IQR / 1.35."""
        if self.quartile_ratios is None or self.rounds < 2:
            return 0.0
        low, high = self.quartile_ratios
        return 2 * 1.2533 * (high - low) / 1.349 / self.rounds**0.5


@dataclass(frozen=True, slots=True)
class Modelled:
    """What the rig says of the kernels generated for a GPU."""

    seconds: float
    ratio: float | None
    """To the anchor's seconds."""
    kernels: int | None = None
    flops: int | None = None
    moved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One point: what it is, what became of it, and its figures. Bytes are of one step, forward plus backward."""

    model: str
    precision: str
    target: str
    contestant: str
    family: str
    through_inductor: bool
    point: str
    options: dict[str, Any]
    state: str
    """One of the four states above; only measured rows are points of a curve."""
    why: str | None = None
    """One line, unless it was measured."""
    peak_bytes: int | None = None
    gradient_bytes: int | None = None
    """Returned gradients: a part of the peak that nobody can save."""
    compile_seconds: float | None = None
    """The first step with empty caches."""
    plan: dict[str, Any] | None = None
    """What our backend predicted; None for everyone else."""
    gradients: dict[str, Any] | None = None
    times: dict[str, Timing] = field(default_factory=dict)
    """By allocator."""
    modelled: Modelled | None = None
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """Equal to that of the task that the row answers."""
        return (self.model, self.precision, self.target, self.contestant, self.point)

    @property
    def setting(self) -> Setting:
        return Setting(self.model, self.precision, self.target)

    @property
    def title(self) -> str:
        """For people: contestant and point."""
        return f"{self.contestant} {self.point}".strip()

    @property
    def activation_peak_bytes(self) -> int | None:
        """The peak with returned gradients taken off."""
        if self.peak_bytes is None or self.gradient_bytes is None:
            return None
        return self.peak_bytes - self.gradient_bytes

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Row":
        times = {
            allocator: Timing(**{name: tuple(v) if isinstance(v, list) else v for name, v in timing.items()})
            for allocator, timing in fields["times"].items()
        }
        modelled = None if fields["modelled"] is None else Modelled(**fields["modelled"])
        return cls(**{**fields, "times": times, "modelled": modelled})


def row_of(task: Task, state: str = MEASURED, **figures: Any) -> Row:
    """A row that answers a task."""
    setting = task.setting
    return Row(
        model=setting.model,
        precision=setting.precision,
        target=setting.target,
        contestant=task.contestant,
        family=task.family,
        through_inductor=task.through_inductor,
        point=task.point,
        options=task.options,
        state=state,
        **figures,
    )


def timing(steps: Sequence[Mapping[str, Any]], anchor_steps: Sequence[Mapping[str, Any]]) -> Timing:
    """The times of one member of a group; rounds are paired, and the anchor may have fewer if it died."""
    seconds = [step["seconds"] for step in steps]
    ratios = [step["seconds"] / anchor["seconds"] for step, anchor in zip(steps, anchor_steps, strict=False)]
    return Timing(
        rounds=len(seconds),
        median_seconds=statistics.median(seconds),
        quartile_seconds=quartiles(seconds),
        ratio=statistics.median(ratios) if ratios else None,
        quartile_ratios=quartiles(ratios) if ratios else None,
        page_faults=statistics.median(step["page_faults"] for step in steps),
    )


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third, interpolated; a single value is both."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def merge(rows: Iterable[Row]) -> list[Row]:
    """One row per key, in the order of their first: later ones add times, and a failure stays one."""
    merged: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first = merged.get(row.key)
        if first is None:
            merged[row.key] = row
        elif first.state == MEASURED and row.state == MEASURED:
            merged[row.key] = dataclasses.replace(first, times={**first.times, **row.times})
        elif first.state == MEASURED:
            merged[row.key] = dataclasses.replace(first, why=f"under another allocator: {row.why}")
    return list(merged.values())


class Journal:
    """Rows on disk as they are made; `rows` holds what is reused and what was added."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, keep: bool = False) -> None:
        """Open or begin a journal.

        Args:
            path: The file; its folder is made if missing.
            identity: What rows hold for, such as commit and versions.
            keep: Reuse rows of another identity too.
        """
        self.identity = dict(identity)
        self.rows: list[Row] = []
        self.dropped = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            row = _read_line(line)
            if row is not None and (keep or row.made_by == self.identity):
                self.rows.append(row)
            else:
                self.dropped += 1
        # Written anew, so that a line cut off by a crash, or rows that hold for something else, are gone.
        self._path = path
        path.write_text("".join(_line(row) for row in self.rows))

    def add(self, row: Row) -> Row:
        """Remember a row; returns it with what made it."""
        row = dataclasses.replace(row, made_by=self.identity)
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(_line(row))
        return row

    def find(self, task: Task, allocator: str | None = None) -> Row | None:
        """The row of a task, or None if there is none; with an allocator, one timed under it or one that failed."""
        for row in self.rows:
            if row.key == task.key and (allocator is None or row.state != MEASURED or allocator in row.times):
                return row
        return None


def write(path: Path, meta: Meta, rows: Sequence[Row]) -> None:
    """The results file."""
    path.write_text(json.dumps({"meta": meta, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")


def read(path: Path) -> tuple[Meta, list[Row]]:
    """What `write` wrote.

    Raises:
        ValueError: The file is no results file.
    """
    try:
        content = json.loads(path.read_text())
        return content["meta"], [Row.from_json(fields) for fields in content["rows"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of benchmarks.frontier: {error}") from error


def _line(row: Row) -> str:
    return json.dumps(row.to_json()) + "\n"


def _read_line(line: str) -> Row | None:
    """None for a line that was cut off, or written by a version with other fields."""
    try:
        return Row.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return None
