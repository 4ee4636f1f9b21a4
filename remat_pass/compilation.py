"""The compilation is the judge of its plan: a simulated peak is believed until Inductor's schedules show the real one.

    compile, believing ──► partition chooses by simulation ──► Inductor schedules forward ──► backward ──► code
                                                                     │ above the limit: stop
    once more, taking all peaks for as much higher ◄─── by a little ────────┤
    compile, asking Inductor about each plan before it is chosen ◄──────────┘

Asking costs a tenth of the compile time for every plan, being wrong up to the half of it. Simulated peaks are hardly
ever wrong by more than is kept free for that (`partition`), and near ones are wrong by about the same.

Inductor and AOTAutograd take control in between, so what they and the partitioner have to tell travels in a context
variable.
"""

import contextvars
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from remat_pass import _torch_compat
from remat_pass.inductor_peak import PeakExceeded
from remat_pass.partition import Partitioned
from remat_pass.report import RematReport


@dataclass
class Compilation:
    """What is told while one captured graph is compiled."""

    trusts: bool = False
    """Whether simulated peaks are believed, because the schedules are seen."""
    excess_permille: int = 0
    """By how many thousandths they have turned out too low."""
    planned: list[Partitioned] = field(default_factory=list)

    def observe(self, inputs: tuple[str, ...], is_backward: bool, read: _torch_compat.ReadSchedule) -> None:
        """Hand a schedule to the plan that it is of."""
        for partitioned in self.planned:
            if partitioned.witness:
                partitioned.witness.observe(inputs, is_backward, read)

    def settle(self) -> None:
        """Ask about what was not shown: graphs out of Inductor's cache, or compiled in another process."""
        for partitioned in self.planned:
            if partitioned.witness and partitioned.witness.judgement is None:
                partitioned.witness.ask()

    def take_reports(self) -> list[RematReport]:
        """Of the planned graphs, with the peaks that Inductor has shown. The graphs themselves are forgotten."""
        reports = [_witnessed(partitioned) for partitioned in self.planned]
        self.planned.clear()
        return reports


_FAR_OFF_PERMILLE = 50
"""An excess above which no simulated peak is believed any more."""

_current: contextvars.ContextVar[Compilation | None] = contextvars.ContextVar("remat_compilation", default=None)


def current_compilation() -> Compilation | None:
    """The one that is going on, if any."""
    return _current.get()


@contextmanager
def begin_compilation(*, trusts: bool = False, excess_permille: int = 0) -> Iterator[Compilation]:
    """Inside, partitioners tell what they have planned."""
    compilation = Compilation(trusts, excess_permille)
    token = _current.set(compilation)
    try:
        yield compilation
    finally:
        _current.reset(token)


def compile_and_judge(
    compile_: Callable[[_torch_compat.CompilationWatcher | None], Any],
) -> tuple[Any, list[RematReport]]:
    """Compile believing simulated peaks, at most twice; if one is too high, asking Inductor about plans beforehand.

    That is done at once where one is far too high: to keep as much free of the budget may cost more than the plan that
    really fits.

    Args:
        compile_: Compiles a copy of the captured graph, and lets the watcher, if it gets one, follow.

    Returns:
        What it returns, and the reports of the graphs that were planned.
    """
    begin = time.perf_counter()
    lost, excess_permille = 0.0, 0
    for trusts in (True, True, False):
        if trusts and excess_permille > _FAR_OFF_PERMILLE:
            continue
        try:
            with begin_compilation(trusts=trusts, excess_permille=excess_permille) as compilation:
                compiled = compile_(compilation if trusts else None)
            break
        except Exception as error:
            exceeded = _torch_compat.find_cause(error, PeakExceeded)
            if exceeded is None:
                raise
            lost, excess_permille = time.perf_counter() - begin, exceeded.excess_permille
    return compiled, [
        replace(report, planning_seconds=report.planning_seconds + lost, judging_seconds=report.judging_seconds + lost)
        for report in compilation.take_reports()
    ]


def _witnessed(partitioned: Partitioned) -> RematReport:
    report, witness = partitioned.report, partitioned.witness
    shown = witness.judgement if witness else None
    if not witness or not shown:
        return report
    unconstrained, step_ns = report.unconstrained_peak_bytes, report.unconstrained_step_ns
    accepted = witness.problem.with_margin
    is_least = report.least_peak_bytes == accepted(report.predicted_peak_bytes)
    least_bytes = accepted(shown.peak_bytes)
    if report.origin == "torch":
        unconstrained, step_ns = shown.peak_bytes, shown.step_ns
    elif report.unconstrained_is_estimated:
        # What the plan is estimated to cost stays.
        step_ns += shown.step_ns - report.predicted_step_ns
    return replace(
        report,
        predicted_peak_bytes=shown.peak_bytes,
        predicted_step_ns=shown.step_ns,
        unconstrained_peak_bytes=unconstrained,
        unconstrained_step_ns=step_ns,
        unconstrained_is_estimated=report.unconstrained_is_estimated and report.origin != "torch",
        least_peak_bytes=least_bytes if is_least else min(report.least_peak_bytes, least_bytes),
    )
