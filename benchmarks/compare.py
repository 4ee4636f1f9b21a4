"""What got better or worse between two results files, beyond the noise.

    python -m benchmarks.compare OLD.json NEW.json [--family remat]

Peaks are exact, so they compare exactly. Times compare as ratios to the anchor of their own group, and count once they
differ by more than both noises together (`Timing.noise` and the constants of `benchmarks/contest/curve.py`). Exit
status 1 says that something got worse.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.contest import results
from benchmarks.contest.curve import Point, points
from benchmarks.contest.results import MEASURED, Row

BETTER, WORSE = "better", "worse"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one row that differs."""

    row: Row
    figure: str
    old: str
    new: str
    verdict: str


def main() -> int:
    """Print the changes; 1 if something got worse."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--family", help='only contestants of one family, such as "remat"')
    arguments = parser.parse_args()
    (old_meta, old), (_, new) = results.read(arguments.old), results.read(arguments.new)
    chosen = [[row for row in rows if arguments.family in (None, row.family)] for rows in (old, new)]
    changes, compared = compare(*chosen, allocator=old_meta["allocators"][0]["name"])
    _print(changes, compared)
    return int(any(change.verdict == WORSE for change in changes))


def compare(old: Sequence[Row], new: Sequence[Row], *, allocator: str) -> tuple[list[Change], int]:
    """The changes of rows that both files have, worse ones first, and how many rows both have."""
    after = {row.key: row for row in new}
    pairs = [(row, after[row.key]) for row in old if row.key in after]
    changes = [change for before, now in pairs for change in _changes(before, now, allocator)]
    return sorted(changes, key=lambda change: change.verdict == BETTER), len(pairs)


def _changes(old: Row, new: Row, allocator: str) -> list[Change]:
    if old.state != new.state:
        verdict = BETTER if new.state == MEASURED else WORSE if old.state == MEASURED else "changed"
        return [Change(new, "state", old.state, f"{new.state} ({new.why})" if new.why else new.state, verdict)]
    if new.state != MEASURED:
        return []
    changes = []
    if old.peak_bytes and new.peak_bytes and old.peak_bytes != new.peak_bytes:
        verdict = BETTER if new.peak_bytes < old.peak_bytes else WORSE
        text = f"{new.peak_bytes / 1e6:,.2f} MB ({new.peak_bytes / old.peak_bytes - 1:+.2%})"
        changes.append(Change(new, "peak", f"{old.peak_bytes / 1e6:,.2f} MB", text, verdict))
    before, now = (next(iter(points([row], allocator)), None) for row in (old, new))
    if before is not None and now is not None:
        changes += _time_change(before, now)
    return changes


def _time_change(old: Point, new: Point) -> list[Change]:
    noise = (old.noise**2 + new.noise**2) ** 0.5
    difference = new.slowdown - old.slowdown
    if abs(difference) <= noise:
        return []
    verdict = BETTER if difference < 0 else WORSE
    figure = "modelled time" if new.row.modelled else "time"
    return [Change(new.row, figure, f"{old.slowdown:+.1%}", f"{new.slowdown:+.1%} (noise {noise:.1%})", verdict)]


def _print(changes: Sequence[Change], compared: int) -> None:
    console = Console()
    table = Table("", "model, precision, target", "point", "figure", "old", "new", box=None)
    for change in changes:
        color = {BETTER: "green", WORSE: "bold red"}.get(change.verdict, "yellow")
        cells = (str(change.row.setting), change.row.title, change.figure, change.old, change.new)
        table.add_row(f"[{color}]{change.verdict}[/]", *map(escape, cells))
    if changes:
        console.print(table)
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in (WORSE, BETTER)}
    console.print(f"{compared} rows in both; {counts[WORSE]} figures got worse, {counts[BETTER]} better.")


if __name__ == "__main__":
    sys.exit(main())
