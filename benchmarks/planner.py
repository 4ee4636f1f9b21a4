"""The planner benchmark: how good its plans are, how long they take, and what they hold on real models.

    python -m benchmarks.planner                          # everything, about half an hour on 2 cores
    python -m benchmarks.planner --only gaps chains       # some sections; the others stay in the results
    python -m benchmarks.planner --keep                   # go on with what a run of this commit has not measured yet

Tables are printed and come, with the rows as JSON, to `benchmarks/results/planner.md` and `planner.json`. Sections are
the files of `benchmarks/planning/`.
"""

import argparse
import datetime
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table as RichTable

from benchmarks.contest import machine
from benchmarks.contest.channel import WorkerFailed
from benchmarks.contest.results import Meta
from benchmarks.planning import chains, deep, determinism, draws, gaps, gpu, results, sizes
from benchmarks.planning.results import Measured
from benchmarks.planning.section import Run, Section

SECTIONS = {module.SECTION.name: module.SECTION for module in (gaps, draws, chains, sizes, deep, gpu, determinism)}
_RESULTS = Path(__file__).parent / "results"
_FILE_WIDTH = 140
"""Columns of tables that are not printed on a terminal."""
_COLORS = {True: "green", False: "bold red", None: "dim"}


def main() -> int:
    """Measure and print; 1 if a section failed, whatever its goals say."""
    arguments = _parse_arguments()
    # Ends by way of an exception, so that workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    described = machine.describe("cpu")
    meta: Meta = {
        "command": shlex.join(["python", "-m", "benchmarks.planner", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": described,
    }
    identity = {**machine.identity(described), "trial": arguments.trial}
    measured = results.read(arguments.output / "planner.json")
    console, progress = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH), Console(stderr=True)
    failed = False
    for name in arguments.only or SECTIONS:
        if arguments.keep and name in measured and measured[name].identity == identity:
            progress.print(f"{name}: kept")
        else:
            rows, seconds, why = _measure(SECTIONS[name], arguments, progress)
            failed |= why is not None
            if why is not None:
                progress.print(f"{name}: [bold red]failed[/]: {escape(why)}")
                continue
            measured[name] = Measured(meta, identity, seconds, rows)
            results.write(arguments.output, meta, measured, tuple(SECTIONS.values()))
        _print(console, SECTIONS[name], measured[name])
    return int(failed)


def _measure(section: Section, arguments: argparse.Namespace, progress: Console) -> tuple[list[Any], float, str | None]:
    """Rows, seconds, and why there are no rows, or None."""
    begin = time.monotonic()
    with Status(section.name, console=progress) as status:

        def doing(what: str) -> None:
            text = f"{section.name}: {what}"
            # A status shows on terminals only.
            status.update(escape(text)) if progress.is_terminal else progress.print(escape(text), highlight=False)

        try:
            rows = section.measure(Run(arguments.trial, _scratch(arguments.output), doing))
        except WorkerFailed as error:
            return [], time.monotonic() - begin, str(error)
    return rows, time.monotonic() - begin, None


def _scratch(output: Path) -> Path:
    """The folder for logs and caches, beside the results and out of git's sight."""
    folder = output / "planner.scratch"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def _print(console: Console, section: Section, measured: Measured) -> None:
    console.rule(section.title)
    for found in section.tables(measured.rows):
        table = RichTable(*found.headings, title=found.title, caption=escape(found.note))
        for row in found.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    goals = RichTable(*results.GOAL_HEADINGS)
    for goal in section.goals(measured.rows):
        *cells, met = results.goal_cells(goal)
        goals.add_row(*map(escape, cells), f"[{_COLORS[goal.met]}]{met.strip('*')}[/]")
    console.print(goals)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=(__doc__ or "").partition("\n")[0]
    )
    add: Any = parser.add_argument
    add("--output", type=Path, default=_RESULTS, help="folder for planner.md and planner.json")
    add("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    add("--keep", action="store_true", help="reuse sections that this commit, machine and version have measured")
    add("--trial", action="store_true", help="small sizes, to see that it works; give another --output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
