"""Asks the rig what a GPU would do: peaks of the generated CUDA code, kernels, and a modelled time, without a GPU.

One rig process per setting, because it captures a model once; a request that kills it makes a row, and the next one
gets a new process. The anchor goes first: modelled times are ratios to its own.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contest import results
from benchmarks.contest.channel import Worker, WorkerFailed, without_paths
from benchmarks.contest.driver import Watcher
from benchmarks.contest.results import Journal, Modelled, Row
from benchmarks.contest.tasks import ANCHOR, Setting, Task

if TYPE_CHECKING:
    from benchmarks.contest.contestants import Contestant

RIG = (sys.executable, "-m", "tests.support.gpu_rig")

_UNAVAILABLE = "Unavailable: "


class Lowering:
    """The rig and the rows that come from it."""

    def __init__(
        self,
        journal: Journal,
        scratch: Path,
        watcher: Watcher,
        contestants: "Mapping[str, Contestant]",
        *,
        timeout_seconds: float,
        command: Sequence[str] = RIG,
    ) -> None:
        """Nothing is started yet; `timeout_seconds` is for one point."""
        self._journal, self._scratch, self._watcher = journal, scratch, watcher
        self._contestants, self._timeout_seconds, self._command = contestants, timeout_seconds, command
        self._rig: Worker | None = None

    def run(self, setting: Setting, tasks: Sequence[Task], matched: Callable[[Sequence[Row]], Sequence[Task]]) -> None:
        """A row for each task that has none, then for those that are matched to the peaks of others."""
        try:
            for task in sorted(tasks, key=lambda task: task.contestant != ANCHOR):
                self._run(task)
            for task in matched([row for row in self._journal.rows if row.setting == setting]):
                self._run(task)
        finally:
            self._end()

    def _run(self, task: Task) -> None:
        if self._journal.find(task) is not None:
            return
        self._watcher.doing(f"{task.setting}: {task.title}")
        try:
            answer = self._ask(task)
            row = _row(task, answer["result"], answer["report"], self._anchor_seconds(task))
        except WorkerFailed as failure:
            state = results.UNAVAILABLE if failure.unavailable else results.FAILED
            row = results.row_of(task, state, why=str(failure))
        self._watcher.done(self._journal.add(row))

    def _ask(self, task: Task) -> dict[str, Any]:
        if self._rig is None:
            logs = self._scratch / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            environment = {"TORCHINDUCTOR_CACHE_DIR": str(self._scratch / "caches" / "rig"), "KINETO_LOG_LEVEL": "6"}
            log = logs / f"rig_{task.setting.model}_{task.setting.precision}_{len(self._journal.rows)}.log"
            self._rig = Worker(self._command, environment, log)
        try:
            answer = self._rig.ask(self._request(task), self._timeout_seconds)
        except WorkerFailed:
            self._end()
            raise
        if not answer["ok"]:
            error = without_paths(answer["error"].strip().splitlines()[0])
            raise WorkerFailed(error.removeprefix(_UNAVAILABLE), unavailable=error.startswith(_UNAVAILABLE))
        return answer

    def _request(self, task: Task) -> dict[str, Any]:
        describe = self._contestants[task.contestant].gpu
        assert describe is not None, f"{task.contestant} does not go through Inductor"
        contestant = describe(task.options)
        arguments = {"model": task.setting.model}
        if contestant["kind"] == "wrap":  # edits need the model's name, which the rig does not know
            arguments["edit"], contestant = contestant["function"], {"kind": "default"}
        return {
            "model": "benchmarks.contest.gpu_side:build",
            "arguments": arguments,
            "precision": task.setting.precision,
            "contestant": contestant,
        }

    def _anchor_seconds(self, task: Task) -> float | None:
        for row in self._journal.rows:
            if row.setting == task.setting and row.contestant == ANCHOR and row.modelled is not None:
                return row.modelled.seconds
        return None

    def _end(self) -> None:
        if self._rig is not None:
            self._rig.__exit__()
            self._rig = None


def _row(task: Task, result: Mapping[str, Any], report: Mapping[str, Any] | None, anchor_seconds: float | None) -> Row:
    def both(figure: str) -> int:
        return result[f"forward_{figure}"] + result[f"backward_{figure}"]

    seconds = both("modelled_ns") / 1e9
    if task.contestant == ANCHOR:
        anchor_seconds = seconds
    modelled = Modelled(
        seconds=seconds,
        ratio=seconds / anchor_seconds if anchor_seconds else None,
        kernels=both("triton_kernels") + both("extern_kernels"),
        flops=both("flops"),
        moved_bytes=both("moved_bytes"),
    )
    return results.row_of(
        task,
        peak_bytes=result["peak_bytes"],
        gradient_bytes=result["returned_gradient_bytes"],
        plan=None if report is None else dict(report),
        modelled=modelled,
    )
