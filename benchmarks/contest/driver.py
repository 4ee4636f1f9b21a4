"""Runs the contest on CPU or CUDA: workers in groups, steps in turns, a row for everything that happens.

    for each setting (model, precision)
        the reference gradients, by eager (or, where dropout draws, by the anchor)
        for each allocator
            groups of tasks: prepare (two at once) ─► check gradients and peak ─► warm up ─► rounds of steps in turns
            the points that are matched to others' peaks, once those are known

A worker that fails, dies or hangs makes a row that says why, and the others go on. A group takes in workers as long as
the memory they are seen to take is free; who has to stay outside comes in the next group.
"""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.contest import results
from benchmarks.contest.allocators import Allocator
from benchmarks.contest.channel import Worker, WorkerFailed
from benchmarks.contest.results import Journal, Row
from benchmarks.contest.tasks import ANCHOR, REFERENCE, Setting, Task, in_groups, turn

WORKER = (sys.executable, "-m", "benchmarks.contest.worker")

_MEMORY_RESERVE = 1.3
"""Of what the largest worker so far took; compilers take some beside it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many, how often, how long."""

    alive: int = 6
    """Workers at a time, the anchor among them."""
    compiling: int = 2
    warm_up_steps: int = 3
    rounds: int = 20
    compile_timeout_seconds: float = 1800
    step_timeout_seconds: float = 300


class Watcher(Protocol):
    """Who is told how the run goes."""

    def doing(self, what: str) -> None:
        """What happens now."""

    def done(self, row: Row) -> None:
        """A task is finished under one allocator."""


@dataclass(slots=True)
class Member:
    """A living worker of a group: its task, what was found, and its steps so far."""

    task: Task
    worker: Worker
    found: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    failure: WorkerFailed | None = None

    def ask(self, question: str, timeout_seconds: float, **details: Any) -> dict[str, Any]:
        """The answer; nothing, and a failure noted, if it cannot be had. Who has failed is not asked again."""
        if self.failure is not None:
            return {}
        try:
            return self.worker.ask({"do": question, **details}, timeout_seconds)
        except WorkerFailed as failure:
            self.failure = failure
            self.worker.end()
            return {}


class Driver:
    """Measures the tasks of one setting after the other."""

    def __init__(
        self, journal: Journal, scratch: Path, pace: Pace, watcher: Watcher, *, command: Sequence[str] = WORKER
    ) -> None:
        """Nothing is started yet.

        Args:
            journal: Where rows go, and where finished ones are found.
            scratch: Folder for reference gradients, compiler caches and logs.
            pace: Limits.
            watcher: Is told of each step.
            command: Starts a worker.
        """
        self._journal, self._scratch, self._pace, self._watcher = journal, scratch, pace, watcher
        self._command = command
        self._held_bytes = 0
        self._free_bytes: int | None = None

    def run(
        self,
        setting: Setting,
        tasks: Sequence[Task],
        allocators: Sequence[Allocator],
        *,
        draws: bool,
        matched: Callable[[Sequence[Row]], Sequence[Task]],
    ) -> None:
        """All tasks of a setting under each allocator.

        Args:
            setting: What the tasks share.
            tasks: The anchor may be among them; it runs in every group anyway.
            allocators: The first also checks gradients and peaks; those that fail there do not run again.
            draws: Whether the model draws random numbers, so that only the anchor can be the reference.
            matched: From the rows so far to further tasks.
        """
        self._held_bytes = 0
        for allocator in allocators:
            self._run_all(setting, tasks, allocator, allocators[0], draws=draws)
            more = matched([row for row in self._journal.rows if row.setting == setting])
            self._run_all(setting, more, allocator, allocators[0], draws=draws)
        shutil.rmtree(self._caches(setting), ignore_errors=True)  # some megabytes for each task

    def _run_all(
        self, setting: Setting, tasks: Sequence[Task], allocator: Allocator, first: Allocator, *, draws: bool
    ) -> None:
        waiting = [task for task in tasks if not self._is_done(task, allocator, first)]
        while waiting:
            others = [task for task in waiting if task.contestant != ANCHOR]
            groups = in_groups(others, self._pace.alive - 1)
            started = self._run_group(setting, groups[0] if groups else [], allocator, first, draws=draws)
            waiting = [task for task in others if task.key not in started]

    def _is_done(self, task: Task, allocator: Allocator, first: Allocator) -> bool:
        if self._journal.find(task, allocator.name):
            return True
        # A point that was never compiled or checked under the first allocator is of no use under another.
        return allocator is not first and self._journal.find(task, first.name) is None

    def _run_group(
        self, setting: Setting, tasks: Sequence[Task], allocator: Allocator, first: Allocator, *, draws: bool
    ) -> set[tuple[str, ...]]:
        """Measure the anchor and as many tasks as memory holds; returns the keys of those that were started."""
        anchor_task = Task(setting, ANCHOR, ANCHOR, True, "")
        with ExitStack() as stack:
            self._refer(setting, draws=draws)
            checked = allocator is first
            anchor = self._start(anchor_task, allocator, stack, fresh=self._journal.find(anchor_task) is None)
            self._prepare(anchor, checked=checked, refers=draws)
            members = [anchor, *self._prepare_all(tasks, allocator, stack, checked=checked)]
            self._time(members)
            rows = [self._row(member, anchor, allocator) for member in members]
        for member, row in zip(members, rows, strict=True):
            if member is not anchor or not self._is_done(anchor_task, allocator, first):
                self._watcher.done(self._journal.add(row))
        return {member.task.key for member in members}

    def _refer(self, setting: Setting, *, draws: bool) -> None:
        """Reference gradients by eager, if there are none yet; a model that draws gets them from each anchor."""
        path = self._reference_path(setting)
        if draws or path.exists():
            return
        self._watcher.doing(f"{setting}: reference gradients")
        with ExitStack() as stack:
            member = self._start(Task(setting, REFERENCE, REFERENCE, False, ""), None, stack, fresh=False)
            self._ask_to_prepare(member)
            member.ask("refer", self._pace.compile_timeout_seconds, path=str(path), against=REFERENCE)

    def _prepare_all(
        self, tasks: Sequence[Task], allocator: Allocator, stack: ExitStack, *, checked: bool
    ) -> list[Member]:
        """Start and prepare workers, as many at once as may compile, until one would not fit into memory any more."""
        lock = threading.Lock()
        members: list[Member] = []

        def take_in(task: Task) -> None:
            with lock:
                if members and not self._fits():
                    return
                member = self._start(task, allocator, stack, fresh=checked)
                members.append(member)
            self._prepare(member, checked=checked)

        with ThreadPoolExecutor(self._pace.compiling) as pool:
            list(pool.map(take_in, tasks))
        return members

    def _fits(self) -> bool:
        """Whether another worker as large as the largest so far finds memory; one is always let in."""
        return self._free_bytes is None or self._held_bytes * _MEMORY_RESERVE <= self._free_bytes

    def _start(self, task: Task, allocator: Allocator | None, stack: ExitStack, *, fresh: bool) -> Member:
        """A worker with the allocator's environment and a compiler cache of its own, emptied if `fresh`."""
        name = "_".join("".join(c if c.isalnum() or c == "." else "-" for c in part) for part in task.key)
        cache = self._caches(task.setting) / name
        if fresh or not cache.exists():
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(self._probed_cache(), cache)
        label = f"{name}_{allocator.name if allocator else 'reference'}"
        return Member(task, stack.enter_context(self._worker(label, cache, allocator)))

    def _probed_cache(self) -> Path:
        """A cache that holds what Inductor finds out about the processor and nothing of any model."""
        cache = self._scratch / "caches" / "probed"
        if not cache.exists():
            self._watcher.doing("Inductor's checks of the processor")
            begun = cache.with_suffix(".new")
            begun.mkdir(parents=True, exist_ok=True)
            with self._worker("probe", begun, None) as worker:
                worker.ask({"do": "probe"}, self._pace.compile_timeout_seconds)
            begun.rename(cache)
        return cache

    def _worker(self, label: str, cache: Path, allocator: Allocator | None) -> Worker:
        logs = self._scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            # Waiting threads sleep: five workers wait while one runs.
            "OMP_WAIT_POLICY": "PASSIVE",
            # The profiler, which measures memory, would report each of its starts and stops.
            "KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "6"),
            **(allocator.environment if allocator else {}),
        }
        return Worker(self._command, environment, logs / f"{label}.log")

    def _prepare(self, member: Member, *, checked: bool, refers: bool = False) -> None:
        """Compile; then check gradients and peak. Runs in a thread of its own."""
        task, timeout = member.task, self._pace.compile_timeout_seconds
        self._watcher.doing(f"{task.setting}: compiling {task.title}")
        self._ask_to_prepare(member)
        path = str(self._reference_path(task.setting))
        if refers:
            member.ask("refer", timeout, path=path, against=ANCHOR)
        if checked:
            self._watcher.doing(f"{task.setting}: checking {task.title}")
            member.found |= member.ask("check", timeout, reference=path)

    def _ask_to_prepare(self, member: Member) -> None:
        task, setting = member.task, member.task.setting
        member.found = member.ask(
            "prepare",
            self._pace.compile_timeout_seconds,
            model=setting.model,
            contestant=task.contestant,
            options=task.options,
            precision=setting.precision,
            device=setting.target,
        )
        self._note_memory(member.found)

    def _note_memory(self, answer: Mapping[str, Any]) -> None:
        if "held_bytes" in answer:
            self._held_bytes = max(self._held_bytes, answer["held_bytes"])
            self._free_bytes = answer["free_bytes"]

    def _time(self, members: Sequence[Member]) -> None:
        """Warm everyone up, then steps in turns; a member that compiles anything meanwhile has failed."""
        pace = self._pace
        compiles = {}
        for member in members:
            answer = member.ask("warm_up", pace.step_timeout_seconds, steps=pace.warm_up_steps)
            self._note_memory(answer)
            compiles[member.task.key] = answer.get("compiles")
        for number in range(pace.rounds):
            self._watcher.doing(f"{members[0].task.setting}: {len(members)} in turns, round {number + 1}/{pace.rounds}")
            for member in turn(members, number):
                step = member.ask("step", pace.step_timeout_seconds)
                if step and step["compiles"] != compiles[member.task.key]:
                    member.failure = WorkerFailed(f"recompiled while it was timed, in round {number + 1}")
                elif step:
                    member.steps.append(step)

    def _row(self, member: Member, anchor: Member, allocator: Allocator) -> Row:
        found = member.found
        figures: dict[str, Any] = {
            name: found.get(name) for name in ("peak_bytes", "gradient_bytes", "compile_seconds", "plan")
        }
        checked = found.get("gradients")
        if member.failure is not None:
            state = results.UNAVAILABLE if member.failure.unavailable else results.FAILED
            return results.row_of(member.task, state, why=str(member.failure), gradients=checked, **figures)
        times = {allocator.name: results.timing(member.steps, anchor.steps)}
        if checked is not None and not checked["passed"]:
            why = (
                f"error {checked['error']:.1e} against {checked['against']}, {checked['allowed']:.0e} allowed, "
                f"{checked['where']}"
            )
            return results.row_of(member.task, results.WRONG, why=why, gradients=checked, times=times, **figures)
        return results.row_of(member.task, gradients=checked, times=times, **figures)

    def _caches(self, setting: Setting) -> Path:
        return self._scratch / "caches" / f"{setting.model}_{setting.precision}"

    def _reference_path(self, setting: Setting) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch / f"gradients_{setting.model}_{setting.precision}.pt"
