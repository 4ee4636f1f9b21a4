"""The JAX twin's rows: one process each, before or after everyone else, so their times are beside no anchor.

A row therefore has a peak and an absolute time, and is no point of a curve. Where jax is missing it says so.
"""

import itertools
import json
import statistics
import subprocess
import sys

from benchmarks.contest import results
from benchmarks.contest.driver import Watcher
from benchmarks.contest.jax_twin import JAX_IS_MISSING, LAYERS_AS, POLICIES, SCHEDULERS
from benchmarks.contest.models import LLAMAS
from benchmarks.contest.results import Journal, Row, Timing
from benchmarks.contest.tasks import Setting, Task

JAX = "jax"
"""Contestant and family."""


def jax_rows(model: str, journal: Journal, watcher: Watcher, *, timeout_seconds: float) -> None:
    """A row for each policy, kind of loop and scheduler, if the model has a twin."""
    if model not in LLAMAS:
        return
    for layers_as, scheduler, policy in itertools.product(LAYERS_AS, SCHEDULERS, POLICIES):
        options = {"layers_as": layers_as, "scheduler": scheduler, "policy": policy}
        task = Task(Setting(model, "fp32", "cpu"), JAX, JAX, False, f"{policy}, {layers_as}, {scheduler}", options)
        if journal.find(task) is None:
            watcher.doing(f"{task.setting}: {task.title}")
            watcher.done(journal.add(_row(task, timeout_seconds)))


def _row(task: Task, timeout_seconds: float) -> Row:
    flags = [part for name, value in task.options.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "benchmarks.contest.jax_twin", "--json", "--model", task.setting.model, *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return results.row_of(task, results.FAILED, why=f"no answer within {timeout_seconds:.0f} s")
    if done.returncode != 0:
        state = results.UNAVAILABLE if done.returncode == JAX_IS_MISSING else results.FAILED
        lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
        return results.row_of(task, state, why=lines[-1])
    found = json.loads(done.stdout)
    seconds = found["step_seconds"]
    timing = Timing(len(seconds), statistics.median(seconds), results.quartiles(seconds), None, None, 0.0)
    figures = {name: found[name] for name in ("peak_bytes", "gradient_bytes", "compile_seconds")}
    return results.row_of(task, times={"a process of its own": timing}, **figures)
