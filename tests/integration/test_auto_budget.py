"""`memory_budget="auto"` through torch.compile: it trains, says where it came from, and enters caches rounded.

Mutants these tests kill: what is free, or `reserve`, enters the cache key; the report of a graph lacks the arithmetic;
ranks take different budgets; a graph without gradients is given a budget.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from functorch.compile import aot_function, nop
from torch import distributed, multiprocessing, nn
from torch._dynamo.exc import BackendCompilerFailed

import remat_pass
from remat_pass import auto_budget, lower
from remat_pass.free_memory import FreeMemory
from tests.support.models import floats, seeded
from tests.support.training import assert_same, compiled, train

MIB = 2**20
STEP_BYTES = MIB // 8
"""Of a machine with 8 MiB."""

ROWS = floats(256, 64)


def build() -> nn.Module:
    """Parameters of 49 KiB in 6 tensors, activations of 64 KiB per layer."""
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh())


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(free_bytes: int) -> None:
        monkeypatch.setattr(auto_budget, "read_free_memory", lambda device: FreeMemory(free_bytes, 8 * MIB))

    return set_free


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cache key of every graph that is compiled."""
    seen: list[str] = []

    class Recorded(lower.RematPartitioner):
        def __init__(self, options: remat_pass.options.Options) -> None:
            super().__init__(options)
            seen.append(self.uuid())

    monkeypatch.setattr(lower, "RematPartitioner", Recorded)
    return seen


def test_trains_and_says_why(set_free: Callable[[int], None]) -> None:
    uncompiled, module = seeded(build)(), seeded(build)()
    parameter_bytes = sum(p.numel() * 4 for p in module.parameters())
    set_free(3 * parameter_bytes + 3 * STEP_BYTES + 5)
    run = compiled(module, memory_budget="auto")
    assert_same(train(uncompiled, uncompiled, (ROWS,)), train(module, run, (ROWS,)), "auto")
    (report,) = remat_pass.reports()
    assert report.budget_bytes == 3 * STEP_BYTES < report.unconstrained_peak_bytes
    assert report.predicted_peak_bytes <= report.budget_bytes
    auto = report.auto_budget
    assert auto is not None
    assert (auto.gradient_bytes, auto.reserve_bytes) == (parameter_bytes, 2 * parameter_bytes)
    assert "(auto)" in str(report) and "gradients to come" in str(report)
    assert remat_pass.RematReport.from_json(report.to_json()) == report


def test_gradients_that_exist_are_not_subtracted(set_free: Callable[[int], None]) -> None:
    module = seeded(build)()
    set_free(8 * MIB)
    for parameter in list(module.parameters())[:2]:
        parameter.grad = torch.zeros_like(parameter)
    compiled(module, memory_budget="auto")(ROWS)
    (report,) = remat_pass.reports()
    assert report.auto_budget is not None
    assert report.auto_budget.gradient_bytes == 2 * (64 * 64 + 64) * 4


def test_only_the_rounded_budget_enters_the_cache_key(set_free: Callable[[int], None], keys: list[str]) -> None:
    for free_bytes, reserve in ((5 * MIB, 0), (5 * MIB + 7, 3), (5 * MIB + STEP_BYTES, 0)):
        torch._dynamo.reset()
        set_free(free_bytes + 3 * 4160 * 4)
        compiled(seeded(build)(), memory_budget="auto", reserve=reserve)(ROWS)
    torch._dynamo.reset()
    compiled(seeded(build)(), memory_budget=5 * MIB)(ROWS)
    assert keys[0] == keys[1] == keys[3] != keys[2]


def test_inference_has_no_budget(set_free: Callable[[int], None], keys: list[str]) -> None:
    set_free(0)
    module = seeded(build)()
    with torch.no_grad():
        assert torch.equal(compiled(module, memory_budget="auto")(ROWS), module(ROWS))
    assert "memory_budget=None" in keys[0]
    assert remat_pass.reports() == ()


def test_the_environment(set_free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAT_MEMORY_BUDGET", "auto")
    set_free(8 * MIB)
    compiled(seeded(build)())(ROWS)
    assert remat_pass.reports()[0].auto_budget is not None


def test_less_than_the_least_peak(set_free: Callable[[int], None]) -> None:
    set_free(STEP_BYTES + 3 * 3 * 4160 * 4)
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(seeded(build)(), memory_budget="auto")(ROWS)
    error = caught.value.inner_exception
    assert isinstance(error, remat_pass.InfeasibleBudgetError)
    assert error.budget_bytes == STEP_BYTES
    assert 'memory_budget="auto" came to 128.0 KiB' in str(error) and "gradients to come" in str(error)


def test_the_partitioner_alone_cannot_tell() -> None:
    step = aot_function(lambda x: x.sin().sum(), nop, nop, partition_fn=remat_pass.partitioner(memory_budget="auto"))
    with pytest.raises(remat_pass.OptionError, match=re.escape('needs torch.compile(backend="remat"); pass bytes')):
        step(torch.zeros(3, requires_grad=True))


def _rank(rank: int, folder: str) -> None:
    """Rank 1 has less free than rank 0."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    auto_budget.read_free_memory = lambda device: FreeMemory((5 - rank) * MIB, 8 * MIB)  # type: ignore[attr-defined]
    module = build()
    compiled(module, memory_budget="auto", reserve=0)(ROWS).sum().backward()
    (report,) = remat_pass.reports()
    assert report.auto_budget is not None
    Path(folder, str(rank)).write_text(f"{report.budget_bytes} {report.auto_budget.describe()}")
    distributed.destroy_process_group()


def test_ranks_take_the_least_budget_of_any(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    told = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert [text.split()[0] for text in told] == [str(4 * MIB - STEP_BYTES)] * 2
    assert all(text.endswith("least of 2 ranks") for text in told)
    assert told[0].split(" ", 1)[1].startswith("5.0 MiB free")
