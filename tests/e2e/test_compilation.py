"""A compilation believes simulated peaks, sees the real ones, and starts anew where one is too high."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._inductor.utils import fresh_cache
from torch.nn import functional

import remat_pass
from remat_pass import _torch_compat, inductor_peak, lower, partition
from remat_pass.partition import Partitioned

BUDGET = 9 * 2**20
"""Of 14 MiB that Inductor takes by itself."""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    remat_pass.clear_reports()
    with fresh_cache():
        yield
    torch._dynamo.reset()


class Mlp(nn.Module):
    """Activations of 1 MiB that dwarf the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(functional.layer_norm(x, (64,)))).sin()
        return x.square().mean()


class Convolutions(nn.Module):
    """Laid out anew by Inductor, with scratch of their own, normalised, concatenated and pooled; 1 MiB each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (64, 16, 16, 32, 16)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(4, 64, 32, 32)
        early = None
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
            early, x = x, x if early is None or early.shape != x.shape else torch.cat([early, x], 1)[:, 8:24]
        return functional.max_pool2d(x, 2).square().mean()


class Mixed(nn.Module):
    """Attention, a reduction, concatenations, and views that copy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 192) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            q, k, v = layer(functional.rms_norm(x, (64,))).view(16, 256, 3, 4, 16).permute(2, 0, 3, 1, 4)
            turned = torch.cat([-q[..., 8:], q[..., :8]], -1)
            mixed = functional.scaled_dot_product_attention(turned, k, v.softmax(-1), is_causal=True)
            x = x + mixed.transpose(1, 2).reshape(4096, 64).tanh()
        return x.square().mean()


class Told:
    """What happened: partitions, the plans that Inductor was asked about beforehand, and the compiled graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.partitions: list[Partitioned] = []
        self.asked = 0
        partition, schedule = lower.partition, _torch_compat.schedule_with_inductor

        def partitioned(*args: Any, **more: Any) -> Partitioned:
            self.partitions.append(partition(*args, **more))
            return self.partitions[-1]

        def asked(*args: Any, **more: Any) -> Any:
            self.asked += 1
            return schedule(*args, **more)

        monkeypatch.setattr(lower, "partition", partitioned)
        monkeypatch.setattr(_torch_compat, "schedule_with_inductor", asked)


def train(budget: int | None, module: nn.Module | None = None) -> tuple[nn.Module, torch.Tensor, int]:
    """A module after one compiled step, that step's loss, and the measured peak of another one."""
    module = module or Mlp()
    step = torch.compile(module, backend="remat", options={"memory_budget": budget})
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    loss = step(x)
    loss.backward()
    gradients = [p.grad for p in module.parameters()]

    def again() -> None:
        module.zero_grad(set_to_none=True)
        step(x).backward()

    peak = remat_pass.measure_peak_bytes(again)
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return module, loss.detach(), peak


def fail(*args: Any) -> Any:
    """What a compiler may do."""
    raise ArithmeticError("no")


def assert_trained_like_eager(module: nn.Module) -> None:
    eager = type(module)()
    eager(torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))).backward()
    for ours, theirs in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("model", [Convolutions, Mixed])
def test_what_is_predicted_is_measured(model: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all kinds of ops: without a budget, where nothing is asked, and where one makes parts run again."""
    told = Told(monkeypatch)
    _, _, free = train(None, model())
    assert told.asked == 0
    module, _, bounded = train(int(0.7 * free), model())
    without, within = remat_pass.reports()
    assert without.predicted_peak_bytes == pytest.approx(free, rel=0.01)
    assert within.predicted_peak_bytes == pytest.approx(bounded, rel=0.01)
    assert within.origin == "planner" and bounded <= 0.7 * free
    assert_trained_like_eager(module)


def test_nothing_is_asked_beforehand_and_the_report_has_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    _, _, peak = train(None)
    module, _, small = train(BUDGET)
    free, bounded = remat_pass.reports()
    assert (len(told.partitions), told.asked) == (2, 0)
    assert free.judging_seconds == bounded.judging_seconds == 0
    assert free.origin == "torch" and free.predicted_peak_bytes == free.unconstrained_peak_bytes
    assert free.predicted_peak_bytes == pytest.approx(peak, rel=0.01)
    assert bounded.origin == "planner" and small <= BUDGET < peak
    assert bounded.predicted_peak_bytes == pytest.approx(small, rel=0.01)
    assert bounded.predicted_step_ns > bounded.unconstrained_step_ns > 0
    assert_trained_like_eager(module)


@pytest.mark.parametrize("again", [False, True])
def test_where_a_peak_is_too_high_it_is_planned_anew(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor seems to need 4% more than is simulated; believed, that would be above the budget.

    It is believed once more, by what was seen; only if that is wrong again is Inductor asked beforehand.
    """
    budget = 8_800_000  # a plan is simulated to take 3% less
    more_bytes = budget // 25
    told = Told(monkeypatch)
    schedule_peak = inductor_peak.schedule_peak
    monkeypatch.setattr(inductor_peak, "schedule_peak", lambda *args: schedule_peak(*args) + more_bytes)
    if again:
        monkeypatch.setattr(
            inductor_peak.PeakExceeded, "excess_permille", property(lambda _: 0, lambda *_: None), raising=False
        )
    module, _, peak = train(budget)
    *believed, last = told.partitions
    assert all(p.witness is not None and p.witness.judgement is None for p in believed)
    assert (len(believed), last.witness is None, told.asked > 0) == (1 + again, again, again)
    (report,) = remat_pass.reports()
    assert report.predicted_peak_bytes <= budget
    assert last.report.judging_seconds < report.judging_seconds < report.planning_seconds
    assert peak == pytest.approx(report.predicted_peak_bytes - more_bytes, rel=0.01)
    assert all(p.report.predicted_peak_bytes + more_bytes > budget for p in believed)
    assert_trained_like_eager(module)


def test_without_a_budget_inductor_is_asked_where_it_takes_more_than_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then a plan may be better than torch's own partition; here all of them seem to take as much more."""
    told = Told(monkeypatch)
    schedule_peak = inductor_peak.schedule_peak
    monkeypatch.setattr(inductor_peak, "schedule_peak", lambda *args: schedule_peak(*args) + 2**24)
    module, _, peak = train(None)
    believed, last = told.partitions
    assert believed.witness is not None and last.witness is None and told.asked >= 2
    (report,) = remat_pass.reports()
    assert report.origin == "torch" and not report.unconstrained_is_estimated
    assert peak == pytest.approx(report.predicted_peak_bytes - 2**24, rel=0.01)
    assert_trained_like_eager(module)


def test_an_estimate_alone_does_not_say_that_torchs_own_partition_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not kept free of any slack, and no witness follows it."""
    told = Told(monkeypatch)
    monkeypatch.setattr(partition, "first_believed", lambda *args: None)
    _, _, peak = train(2**24)
    (report,) = remat_pass.reports()
    assert (report.origin, report.unconstrained_is_estimated, told.asked) == ("torch", False, 2)
    assert peak == pytest.approx(report.predicted_peak_bytes, rel=0.01)


def test_graphs_from_inductors_cache_are_asked_about_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their schedules are not made again."""
    told = Told(monkeypatch)
    with torch._functorch.config.patch(enable_autograd_cache=False):
        train(BUDGET)
        assert told.asked == 0
        torch._dynamo.reset()
        train(BUDGET)
    first, second = remat_pass.reports()
    assert (len(told.partitions), told.asked) == (2, 2)
    assert second.predicted_peak_bytes == first.predicted_peak_bytes


def test_what_is_refused_is_not_found_in_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward comes out of Inductor's cache, so that backward alone is seen; AOTAutograd has a cache of its own."""
    told = Told(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(inductor_peak.Witness, "see_backward", fail)
        with pytest.raises(Exception, match="no"):
            train(BUDGET)
    schedule_peak = inductor_peak.schedule_peak
    monkeypatch.setattr(inductor_peak, "schedule_peak", lambda *args: schedule_peak(*args) + 2**20)
    train(BUDGET)
    count = len(told.partitions)
    assert count == 3
    torch._dynamo.reset()
    module, _, peak = train(BUDGET)
    assert len(told.partitions) == count
    judged, warm = remat_pass.reports()
    assert warm == judged and peak == pytest.approx(judged.predicted_peak_bytes - 2**20, rel=0.01)
    assert_trained_like_eager(module)


def test_hooks_of_saved_tensors_are_part_of_what_a_cache_goes_by() -> None:
    """Dynamo puts them on the captured module, where no node refers to them."""

    def gradient(factor: float) -> torch.Tensor:
        torch._dynamo.reset()
        x = torch.linspace(0, 1, 4096, requires_grad=True)
        pack, unpack = fx.symbolic_trace(lambda saved: saved * 1.0), fx.symbolic_trace(lambda saved: saved * factor)
        step = torch.compile(lambda x: (x.sin() * x.cos()).sum(), backend="remat")
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            step(x).backward()
        assert x.grad is not None
        return x.grad

    with torch._functorch.config.patch(saved_tensors_hooks_filtering_mode="all"):
        as_saved, doubled = gradient(1.0), gradient(2.0)
    x = torch.linspace(0, 1, 4096)
    torch.testing.assert_close(as_saved, (2 * x).cos())
    torch.testing.assert_close(doubled, (4 * x).cos())  # x is all that is saved


def test_an_error_of_the_compiler_is_not_taken_for_a_peak_that_is_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(_torch_compat, "compile_with_inductor", lambda *args: (calls.append(args), fail()))
    with pytest.raises(Exception, match="no"):
        train(BUDGET)
    assert len(calls) == 1
