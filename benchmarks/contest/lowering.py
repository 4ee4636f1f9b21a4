"""Asks the rig what a GPU would do: peaks of the generated CUDA code, kernels, and a modelled time, without a GPU.

Some rig processes per setting, each of which captures the model once; a request that kills one makes a row, and the
next request gets a new process. The anchor goes first: modelled times are ratios to its own.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """The rigs and the rows that come from them."""

    def __init__(
        self,
        journal: Journal,
        scratch: Path,
        watcher: Watcher,
        contestants: "Mapping[str, Contestant]",
        *,
        at_once: int,
        timeout_seconds: float,
        command: Sequence[str] = RIG,
    ) -> None:
        """Nothing is started yet; `at_once` points are compiled side by side, `timeout_seconds` is for one."""
        self._journal, self._scratch, self._watcher = journal, scratch, watcher
        self._contestants, self._timeout_seconds, self._command = contestants, timeout_seconds, command
        self._at_once = at_once
        self._rigs: list[Worker] = []
        self._idle: list[Worker] = []
        """Those of them that wait for a request."""

    def run(self, setting: Setting, tasks: Sequence[Task], matched: Callable[[Sequence[Row]], Sequence[Task]]) -> None:
        """A row for each task that has none, then for those that are matched to the peaks of others."""
        try:
            self._run_all([task for task in tasks if task.contestant == ANCHOR])
            self._run_all([task for task in tasks if task.contestant != ANCHOR])
            self._run_all(matched([row for row in self._journal.rows if row.setting == setting]))
        finally:
            for rig in self._rigs:
                rig.__exit__()
            self._rigs, self._idle = [], []

    def _run_all(self, tasks: Sequence[Task]) -> None:
        with ThreadPoolExecutor(self._at_once) as pool:
            rows = [pool.submit(self._measure, task) for task in tasks if self._journal.find(task) is None]
            try:
                for row in rows:  # in the order of the tasks, so that results do not depend on who is ready first
                    self._watcher.done(self._journal.add(row.result()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for rig in self._rigs:  # or the pool would wait for their answers
                    rig.end()
                raise

    def _measure(self, task: Task) -> Row:
        self._watcher.doing(f"{task.setting}: {task.title}")
        try:
            answer = self._ask(task)
            return _row(task, answer["result"], answer["report"], self._anchor_seconds(task))
        except WorkerFailed as failure:
            state = results.UNAVAILABLE if failure.unavailable else results.FAILED
            return results.row_of(task, state, why=str(failure))

    def _ask(self, task: Task) -> dict[str, Any]:
        try:
            rig = self._idle.pop()
        except IndexError:
            rig = self._start(task)
        answer = rig.ask(self._request(task), self._timeout_seconds)
        self._idle.append(rig)  # one that failed is never asked again
        if not answer["ok"]:
            error = without_paths(answer["error"].strip().splitlines()[0])
            raise WorkerFailed(error.removeprefix(_UNAVAILABLE), unavailable=error.startswith(_UNAVAILABLE))
        return answer

    def _start(self, task: Task) -> Worker:
        logs = self._scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(self._scratch / "caches" / "rig"), "KINETO_LOG_LEVEL": "6"}
        log = logs / f"rig_{task.setting.model}_{task.setting.precision}_{task.title}.log"
        rig = Worker(self._command, environment, log)
        self._rigs.append(rig)
        return rig

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
