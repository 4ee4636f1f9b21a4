"""One run of the contest: its settings one after the other, each on the device and through the rig for GPU code.

Rows go to a journal as they are made, in a folder beside the results, so the same command goes on where a crash stopped
it. What becomes of the rows is for whoever runs it.
"""

import argparse
import datetime
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import machine
from benchmarks.contest.allocators import Allocator
from benchmarks.contest.contestants import Contestant
from benchmarks.contest.driver import Driver, Pace
from benchmarks.contest.jax_rows import jax_rows
from benchmarks.contest.lowering import Lowering
from benchmarks.contest.models import MODELS
from benchmarks.contest.progress import Display
from benchmarks.contest.results import Journal, Meta, Row, merge
from benchmarks.contest.selection import Choice, matched_tasks, tasks_of
from benchmarks.contest.tasks import GPU_LOWERING, Setting, Task

Write = Callable[[Meta, list[Row]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be measured, and where rows go."""

    size: str
    models: tuple[str, ...]
    contestants: dict[str, Contestant]
    jax: bool
    precisions: tuple[str, ...]
    device: str
    allocators: list[Allocator]
    on_device: bool
    gpu_lowering: bool
    choice: Choice
    pace: Pace
    output: Path
    keep: bool
    command: str

    def settings(self) -> list[Setting]:
        """In the order in which they run: each model on the device, if it is not too large, then through the rig."""
        targets = [self.device] * self.on_device + [GPU_LOWERING] * self.gpu_lowering
        settings = (Setting(m, p, t) for m in self.models for p in self.precisions for t in targets)
        return [s for s in settings if not (s.target == "cpu" and MODELS[s.model].needs_gpu)]

    def tasks(self, setting: Setting) -> list[Task]:
        """Those known beforehand."""
        return tasks_of(setting, self.contestants, self.size, self.choice)


def measure(run: Run, write: Write) -> None:
    """Measure what is not in the journal; `write` gets all rows after each setting, those of earlier runs too."""
    described = machine.describe(run.device)
    meta: Meta = {
        "command": run.command,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": described,
        "allocators": [{"name": a.name, "title": a.title} for a in run.allocators],
        "models": {model.name: model.title for model in MODELS.values()},
    }
    identity = machine.identity(described)
    folder = _scratch(run.output)
    journal = Journal(folder / "journal.jsonl", identity, keep=run.keep)
    scratch = _only(folder, hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8])
    with Display(_expected(run, journal)) as display:
        if journal.dropped:
            display.console.print(f"{journal.dropped} rows of another commit, version or machine are measured anew.")
        for setting in run.settings():
            _measure_setting(run, setting, journal, scratch, display)
            write(meta, merge(journal.rows))
        if run.jax and run.on_device and run.device == "cpu":
            for model in run.models:
                jax_rows(model, journal, display, timeout_seconds=run.pace.compile_timeout_seconds)
                write(meta, merge(journal.rows))


def positive(text: str) -> int:
    """For command lines: a number of rounds, points or workers."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 is needed")
    return value


def _measure_setting(run: Run, setting: Setting, journal: Journal, scratch: Path, display: Display) -> None:
    def matched(rows: Sequence[Row]) -> list[Task]:
        found = matched_tasks(rows, setting, run.contestants, run.size)
        display.expect(sum(journal.find(task) is None for task in found))
        return found

    if setting.target == GPU_LOWERING:
        lowering = Lowering(
            journal,
            scratch,
            display,
            run.contestants,
            at_once=run.pace.compiling,
            timeout_seconds=run.pace.compile_timeout_seconds,
        )
        lowering.run(setting, run.tasks(setting), matched)
        return
    driver = Driver(journal, scratch, run.pace, display)
    draws = MODELS[setting.model].draws
    driver.run(setting, run.tasks(setting), run.allocators, draws=draws, matched=matched)


def _expected(run: Run, journal: Journal) -> int:
    """Rows to be made, as far as is known beforehand."""
    count = 0
    for setting in run.settings():
        names = [None] if setting.target == GPU_LOWERING else [allocator.name for allocator in run.allocators]
        count += sum(journal.find(task, name) is None for task in run.tasks(setting) for name in names)
    return count


def _scratch(output: Path) -> Path:
    """The folder for the journal, caches and logs, beside the results and out of git's sight."""
    folder = output.with_name(f"{output.stem}.scratch")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def _only(folder: Path, name: str) -> Path:
    """The subfolder; others, with reference gradients and caches that hold for something else, are removed."""
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)
    return folder / name
