"""`remat_pass.frontier`: its budgets are accepted and hold, and nothing of the model or the process has changed.

Mutants these tests kill: the prediction error is left out of the budgets; the model runs; a second call takes a new
batch size for a dynamic one; the compilation that is broken off leaves something in Dynamo's caches, or leaves its
settings behind; tags are not honoured, or never overruled.
"""

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import remat_pass
from tests.support.models import SMALL, floats, seeded
from tests.support.training import assert_same, compiled, train

ROWS = floats(256, 64)


class Net(nn.Module):
    """Buffers that a step changes, and dropout."""

    def __init__(self, *, tagged: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.norm = nn.BatchNorm1d(64)
        self.tagged = tagged

    def block(self, layer: nn.Module, x: Tensor) -> Tensor:
        return x + F.gelu(layer(x)).tanh()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for layer in self.layers:
            x = checkpoint(self.block, layer, x, use_reentrant=False) if self.tagged else self.block(layer, x)
        return (F.dropout(self.norm(x), 0.1) * scale).square().mean()


class Counting(Net):
    """With a counter in Python, on whose value Dynamo specialises."""

    calls = 0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return super().forward(x, scale)


def build(**options: bool) -> Net:
    net = seeded(lambda: Net(**options))()
    assert isinstance(net, Net)
    return net


def spread(found: remat_pass.Frontier, count: int) -> list[remat_pass.FrontierPoint]:
    return [found[i * (len(found) - 1) // (count - 1)] for i in range(count)]


@pytest.mark.parametrize(("name", "count"), [("net", 4), ("bert", 2)])
def test_budgets_are_accepted_and_hold(name: str, count: int) -> None:
    make: Callable[[], nn.Module] = build if name == "net" else SMALL[name].build
    inputs = (ROWS,) if name == "net" else SMALL[name].inputs()
    found = remat_pass.frontier(make(), *inputs, lowering="eager")
    assert len(found) > 3
    for point in spread(found, count):
        torch._dynamo.reset()
        module = make()
        train(module, compiled(module, memory_budget=point.peak_bytes), inputs)
        report = remat_pass.reports()[-1]
        assert report.graph_id == found.graph_id
        assert report.predicted_peak_bytes * (1000 + report.margin_permille) <= point.peak_bytes * 1000
        assert (report.recompute_ns, report.saved_bytes) == (point.recompute_ns, point.saved_bytes)
        assert sum(d.copies > 0 for d in report.decisions) >= (point.recomputed > 0)
    assert report.least_peak_bytes == found[-1].peak_bytes
    assert found[0].recomputed == 0 < found[-1].recomputed


def test_peaks_fall_and_time_rises() -> None:
    found = remat_pass.frontier(build(), ROWS, lowering="eager")
    pairs = list(pairwise(found))
    assert all(a.peak_bytes > b.peak_bytes and a.recompute_ns < b.recompute_ns for a, b in pairs)
    with pytest.raises(remat_pass.InfeasibleBudgetError):
        fails = compiled(build(), memory_budget=found[-1].peak_bytes - 1)
        try:
            fails(ROWS)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise error.inner_exception from None


def test_it_reads_as_a_table() -> None:
    found = remat_pass.frontier(build(), ROWS, lowering="eager")
    text = str(found)
    assert text == found.summary()
    lines = text.splitlines()
    assert len(lines) == 2 + min(24, len(found))
    assert lines[0].startswith(f"remat_pass: {len(found)} budgets of graph {found.graph_id[:12]}, lowering eager")
    assert str(found[0].peak_bytes) in lines[2] and str(found[-1].peak_bytes) in lines[-1]


# What must not change.


def test_model_and_process_are_left_as_they_were() -> None:
    net = seeded(Counting)()
    net.layers[0].weight.grad = floats(64, 64)
    net.layers[1].eval()
    configs = (torch._dynamo.config, torch._functorch.config, torch._inductor.config)
    before = copy.deepcopy(net.state_dict())
    config_before = [copy.deepcopy(config.get_config_copy()) for config in configs]
    states = (torch.get_rng_state(), random.getstate(), numpy.random.get_state())
    remat_pass.frontier(net, ROWS, lowering="eager")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(map(numpy.array_equal, numpy.random.get_state(), states[2]))
    assert [config.get_config_copy() for config in configs] == config_before
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net.layers[0].weight.grad, floats(64, 64))
    assert [p.grad is None for p in net.parameters()] == [False] + [True] * 9
    assert net.calls == 0 and net.training and not net.layers[1].training
    assert remat_pass.reports() == ()


def test_compiling_afterwards_is_as_if_nothing_had_happened() -> None:
    uncompiled, net = build(), build()
    run = compiled(net, memory_budget=0.8)
    remat_pass.frontier(net, ROWS, lowering="eager")
    remat_pass.frontier(run, floats(96, 64), lowering="eager")
    expected = train(uncompiled, uncompiled, (ROWS,))
    assert_same(expected, train(net, run, (ROWS,)), "after frontier()")
    remat_pass.frontier(net, ROWS, lowering="eager")
    train(net, run, (ROWS,))
    (report,) = remat_pass.reports()
    assert not report.sizes_are_hints


def test_every_batch_size_is_a_static_one() -> None:
    net = build()
    peaks = [remat_pass.frontier(net, floats(rows, 64), lowering="eager") for rows in (64, 96, 128, 160, 640)]
    assert not any(found.sizes_are_hints for found in peaks)
    assert peaks[-1][0].peak_bytes > 5 * peaks[0][0].peak_bytes


# What is set around the call counts.


def test_dynamic_sizes_are_said_to_be_hints() -> None:
    x = ROWS.clone()
    torch._dynamo.mark_dynamic(x, 0)
    found = remat_pass.frontier(build(), x, lowering="eager")
    assert found.sizes_are_hints
    assert "shapes are dynamic" in str(found)


def test_autocast() -> None:
    full = remat_pass.frontier(build(), ROWS, lowering="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = remat_pass.frontier(build(), ROWS, lowering="eager")
    assert half[0].peak_bytes < 0.9 * full[0].peak_bytes


def test_keyword_arguments_and_a_loss_of_its_own() -> None:
    def net(x: Tensor, *, weight: Tensor) -> dict[str, Tensor]:
        return {"hidden": torch.tanh(x @ weight).exp()}

    weight = floats(64, 64).requires_grad_()
    without = remat_pass.frontier(net, ROWS, lowering="eager", weight=weight)
    found = remat_pass.frontier(
        net, ROWS, lowering="eager", weight=weight, loss=lambda out: out["hidden"].softmax(1).sum()
    )
    assert found.graph_id != without.graph_id
    assert found[0].saved_bytes > without[0].saved_bytes
    assert weight.grad is None


def test_tags_are_honoured_as_long_as_possible() -> None:
    tagged = remat_pass.frontier(build(tagged=True), ROWS, lowering="eager")
    assert tagged[0].honours_tags and tagged[0].recomputed > 0
    free = [point for point in tagged if not point.honours_tags]
    assert free == list(tagged[len(tagged) - len(free) :])
    assert ("overrules checkpointing tags" in str(tagged)) == bool(free)
    for point in spread(tagged, 3):
        torch._dynamo.reset()
        with nullcontext() if point.honours_tags else pytest.warns(remat_pass.RematWarning):
            compiled(build(tagged=True), memory_budget=point.peak_bytes)(ROWS)
        report = remat_pass.reports()[-1]
        assert bool(report.overruled) == (not point.honours_tags)
        assert report.recompute_ns == point.recompute_ns


# Models it cannot plan.


class Broken(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        first = super().forward(x, scale)
        torch._dynamo.graph_break()
        return first * super().forward(x, scale)


def test_graph_breaks() -> None:
    net = seeded(Broken)()
    with pytest.raises(remat_pass.RematError, match="not captured as one graph") as caught:
        remat_pass.frontier(net, ROWS, lowering="eager")
    assert "test_model_frontier.py" in str(caught.value)
    assert int(net.norm.num_batches_tracked) == 0
    check_it_still_works()


def test_no_gradients() -> None:
    with torch.no_grad(), pytest.raises(remat_pass.RematError, match=r"no backward pass.*torch\.no_grad"):
        remat_pass.frontier(build(), ROWS, lowering="eager")
    frozen = build().requires_grad_(False)
    with pytest.raises(remat_pass.RematError, match=r"no backward pass.*requires_grad=True"):
        remat_pass.frontier(frozen, ROWS, lowering="eager")
    assert int(frozen.norm.num_batches_tracked) == 0
    check_it_still_works()


def test_nothing_to_compute() -> None:
    with pytest.raises(remat_pass.RematError, match="computes nothing"):
        remat_pass.frontier(lambda x: x, 3, lowering="eager")


def test_compilation_is_switched_off() -> None:
    net = seeded(Counting)()
    with torch.compiler.set_stance("force_eager"), pytest.raises(remat_pass.RematError, match="switched off"):
        remat_pass.frontier(net, ROWS, lowering="eager")
    assert net.calls == 0


def test_mistakes_of_the_model_are_its_own() -> None:
    with pytest.raises(Exception, match="must have same reduction dim"):
        remat_pass.frontier(lambda x: x @ torch.ones(3, 5), ROWS, lowering="eager")
    with pytest.raises(remat_pass.OptionError, match="lowering='fast'"):
        remat_pass.frontier(build(), ROWS, lowering="fast")
    check_it_still_works()


def check_it_still_works() -> None:
    assert len(remat_pass.frontier(build(), ROWS, lowering="eager")) > 3
