"""The results file of the planner benchmark, and the same as a page; torch-free.

A section is measured as a whole. Each says what it holds for, so that a run of some sections leaves the others in the
file, and a run that was cut off goes on with `--keep`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest.goals import Goal
from benchmarks.contest.markdown import source, table
from benchmarks.contest.results import Meta
from benchmarks.planning.section import Row, Section, Table

MET = {True: "met", False: "**not met**", None: "–"}
GOAL_HEADINGS = ("goal", "where", "figure", "")


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of one section.

    Attributes:
        meta: Command, machine and date they were measured with.
        identity: What has to be equal for them to be reused.
        seconds: How long it took.
    """

    meta: Meta
    identity: dict[str, Any]
    seconds: float
    rows: list[Row]


def read(path: Path) -> dict[str, Measured]:
    """The sections of a results file by name; none if there is no file.

    Raises:
        ValueError: The file is no results file.
    """
    if not path.exists():
        return {}
    try:
        return {name: Measured(**fields) for name, fields in json.loads(path.read_text())["sections"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no results file of benchmarks.planner: {error}; remove it") from error


def write(folder: Path, meta: Meta, measured: Mapping[str, Measured], sections: Sequence[Section]) -> None:
    """`planner.json` and `planner.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        name: {"meta": part.meta, "identity": part.identity, "seconds": part.seconds, "rows": part.rows}
        for name, part in measured.items()
    }
    (folder / "planner.json").write_text(json.dumps({"meta": meta, "sections": found}, indent=1) + "\n")
    (folder / "planner.md").write_text(page(meta, measured, sections))


def page(meta: Meta, measured: Mapping[str, Measured], sections: Sequence[Section]) -> str:
    """The whole page: all goals first, then section by section."""
    known = [(section, measured[section.name]) for section in sections if section.name in measured]
    goals = [goal for section, part in known for goal in section.goals(part.rows)]
    parts = ["# The planner", "", source(meta), "", summary(goals), ""]
    for section, part in known:
        parts += [f"## {section.title}", "", f"`--only {section.name}`, {part.seconds:.0f} s.", ""]
        if part.identity["commit"] != meta["machine"]["commit"] or part.meta["date"] != meta["date"]:
            parts += [f"Measured before: {source(part.meta)}", ""]
        for found in section.tables(part.rows):
            parts += [*_table(found), ""]
        parts += [*table(GOAL_HEADINGS, map(goal_cells, section.goals(part.rows))), ""]
    return "\n".join(parts).rstrip() + "\n"


def summary(goals: Sequence[Goal]) -> str:
    """How many goals are met, in one line."""
    counts = {met: sum(goal.met is met for goal in goals) for met in MET}
    return f"{counts[True]} goals met, {counts[False]} not met, {counts[None]} not measured."


def goal_cells(goal: Goal) -> tuple[str, ...]:
    return goal.goal, goal.where, goal.figure, MET[goal.met]


def _table(found: Table) -> list[str]:
    return [f"### {found.title}", "", *([found.note, ""] if found.note else []), *table(found.headings, found.rows)]
