"""The measured time in a report, on a clock of our own.

Mutants these tests kill: the step that compiles counts; forward or backward alone counts; the slowest or the last step
counts; later steps are timed, too; a step without backward, or one that fails, counts; a hook behind backward keeps
tangents alive.
"""

from collections.abc import Iterator
from itertools import accumulate, chain
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import remat_pass
from remat_pass import step_time
from tests.support.training import compiled


def run_on(clock: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A compiled module, and a clock that fails when it is asked too often."""
    monkeypatch.setattr(step_time, "time", SimpleNamespace(perf_counter_ns=clock.__next__))
    remat_pass.clear_reports()
    return compiled(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))


def test_the_fastest_of_the_first_steps_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(300, 500), (5, 8), (4, 6), (7, 2), (1, 1)]
    # Between forward and backward 50 go by, behind backward 60.
    clock = accumulate(chain.from_iterable((60, forward, 50, backward) for forward, backward in steps[:4]))
    run = run_on(clock, monkeypatch)
    expected = [None, 13, 10, 9, 9]
    for step in range(len(steps)):
        run(torch.randn(4, 8)).sum().backward()
        (report,) = remat_pass.reports()
        assert report.measured_step_ns == expected[step]
        assert ("measured step" in str(report)) == (step > 0)
    assert next(clock, None) is None


def test_of_two_graphs_each_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # first and second forward take 1 and 2; the second's backward 4 and the first's 8
    step = [0, 1, 0, 2, 0, 4, 0, 8]
    run_on(accumulate(step * 4), monkeypatch)
    first, second = compiled(nn.Linear(8, 8)), compiled(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    for _ in range(2):
        second(first(torch.randn(4, 8))).sum().backward()
    assert [r.measured_step_ns for r in remat_pass.reports()] == [1 + 8, 2 + 4]


def test_a_backward_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise ArithmeticError

    # Forward takes 1, backward 2; the second one never ends.
    run = run_on(accumulate([0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 2]), monkeypatch)
    run(torch.randn(4, 8)).sum().backward()
    x = torch.randn(4, 8)
    result = run(x)
    handle = next(run.parameters()).register_hook(fail)
    with pytest.raises(ArithmeticError):
        result.sum().backward()
    handle.remove()
    run(x).sum().backward()
    (report,) = remat_pass.reports()
    assert report.measured_step_ns == 3


def test_the_measurement_keeps_no_tangent_alive() -> None:
    """The peak of a step that is timed is that of one that is not."""
    module = compiled(nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Tanh()))
    x = torch.randn(256, 8)
    tangent = 256 * 1024 * 4

    def step() -> None:
        result = module(x)
        result.exp().sum().backward()
        module.zero_grad()

    peaks = [remat_pass.measure_peak_bytes(step, warmup_steps=n) for n in (1, 0, 4)]
    assert max(peaks) - min(peaks) < tangent / 4


def test_steps_without_backward_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on(iter(range(8)), monkeypatch)
    for _ in range(6):
        run(torch.randn(4, 8))
    assert [r.measured_step_ns for r in remat_pass.reports()] == [None]
