"""What a user may do around the backend: dynamic shapes, functorch, inference, graph breaks, mistakes."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, nop
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils.checkpoint import checkpoint

import remat_pass
from remat_pass import _torch_compat
from remat_pass.schedule import decide, plan_of
from tests.support.models import floats, seeded
from tests.support.training import assert_same, compiled, forced, train


class Mlp(nn.Module):
    """Four layers whose activations, 16 KiB each for 64 rows, dwarf their weights."""

    def __init__(self, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), self.dropout)
        return x.square().mean()


ROWS = floats(256, 64)


def trained(module: nn.Module, run: Callable[..., Any], x: Tensor = ROWS) -> Any:
    return train(module, run, (x,))


def saving_nothing(module: nn.Module) -> nn.Module:
    """The module with every op of forward run again in backward, random ones included."""
    run, _ = forced(module, lambda problem: plan_of(problem, decide(problem, ())))
    return run


def check_training_works(memory_budget: float | None = 0.7) -> None:
    """The process still compiles and trains as if nothing had happened."""
    torch._dynamo.reset()
    uncompiled, module = seeded(Mlp)(), seeded(Mlp)()
    assert_same(
        trained(uncompiled, uncompiled), trained(module, compiled(module, memory_budget=memory_budget)), "afterwards"
    )


# Dynamic shapes.


@pytest.mark.parametrize("memory_budget", [None, 0.75])
def test_dynamic_shapes_train_at_two_batch_sizes(memory_budget: float | None) -> None:
    uncompiled, module = seeded(lambda: Mlp(dropout=0.5))(), seeded(lambda: Mlp(dropout=0.5))()
    options = {"lowering": "eager", "memory_budget": memory_budget}
    run = torch.compile(module, backend="remat", dynamic=True, options=options)
    for rows in (256, 96):
        x = floats(rows, 64)
        assert_same(trained(uncompiled, uncompiled, x), trained(module, run, x), f"{rows} rows")
    (report,) = remat_pass.reports()
    assert report.sizes_are_hints
    assert memory_budget is None or any(d.action == "recomputed" for d in report.decisions)
    assert "dynamic" in str(report)


class Sequence(nn.Module):
    """Symbolic sizes that are computed, passed as arguments, and needed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch * length, 16)
        padded = torch.cat((mixed, mixed.new_zeros(length // 2, 16)))
        return (padded.sin() * padded.shape[0]).exp().mean() / math.sqrt(length)


def test_computed_symbolic_sizes() -> None:
    uncompiled, module = seeded(Sequence)(), seeded(Sequence)()
    run = torch.compile(module, backend="remat", dynamic=True, options={"lowering": "eager", "memory_budget": None})
    for shape in ((4, 32, 16), (3, 50, 16)):
        x = floats(*shape)
        assert_same(trained(uncompiled, uncompiled, x), trained(module, run, x), str(shape))
    assert len(remat_pass.reports()) == 1


def test_automatic_dynamic_recompiles_once() -> None:
    uncompiled, module = seeded(Mlp)(), seeded(Mlp)()
    run = compiled(module, memory_budget=0.7)
    for rows in (256, 128, 96, 80):
        x = floats(rows, 64)
        assert_same(trained(uncompiled, uncompiled, x), trained(module, run, x), f"{rows} rows")
    assert [r.sizes_are_hints for r in remat_pass.reports()] == [False, True]


# Steps other than forward, backward.


def test_inference_is_not_planned() -> None:
    module = seeded(Mlp)()
    run = compiled(module, memory_budget=0.5)
    with torch.no_grad():
        assert torch.equal(run(ROWS), module(ROWS))
    with torch.inference_mode():
        assert torch.equal(run(ROWS), module(ROWS))
    assert remat_pass.reports() == ()
    frozen = seeded(Mlp)().requires_grad_(False)
    assert torch.equal(compiled(frozen, memory_budget=0.5)(ROWS), frozen(ROWS))
    assert remat_pass.reports() == ()


def test_budgets_and_checkpoints_leave_the_options_of_inference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    patches: list[dict[str, Any]] = []

    def compile_nothing(
        module: torch.fx.GraphModule, _: Any, config_patches: dict[str, Any], __: Any
    ) -> torch.fx.GraphModule:
        patches.append(config_patches)
        return module

    monkeypatch.setattr(_torch_compat, "compile_with_inductor", compile_nothing)
    module = seeded(Mlp)()
    budgeted = torch.compile(module, backend="remat", options={"memory_budget": "1GiB"})
    checkpointed = torch.compile(lambda x: checkpoint(module, x, use_reentrant=False), backend="remat")
    for run in (budgeted, checkpointed):
        with torch.no_grad():
            run(ROWS)
        run(ROWS)
    assert ["allow_buffer_reuse" in given for given in patches] == [False, True] * 2


def test_forward_without_backward() -> None:
    module = seeded(lambda: Mlp(dropout=0.5))()
    run = compiled(module, memory_budget=0.75)
    torch.manual_seed(3)
    expected = module(ROWS)
    torch.manual_seed(3)
    assert torch.equal(run(ROWS), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_second_backward_through_one_forward(dropout: float) -> None:
    def build() -> nn.Module:
        return seeded(lambda: Mlp(dropout=dropout))()

    def two_backwards(module: nn.Module, run: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(0)
        result = run(ROWS)
        result.backward(retain_graph=True)
        result.backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    uncompiled, module = build(), build()
    expected, got = two_backwards(uncompiled, uncompiled), two_backwards(module, saving_nothing(module))
    assert len(got) == 8
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_two_forwards_before_their_backwards() -> None:
    """Generator states belong to the forward that drew, not to the graph."""

    def interleaved(module: nn.Module, run: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(0)
        first, second = run(ROWS), run(ROWS.sin())
        second.backward()
        first.backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    uncompiled, module = seeded(lambda: Mlp(dropout=0.5))(), seeded(lambda: Mlp(dropout=0.5))()
    expected = interleaved(uncompiled, uncompiled)
    got = interleaved(module, saving_nothing(module))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_training_loop_with_an_optimizer() -> None:
    def losses(module: nn.Module, run: Callable[..., Any]) -> list[float]:
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        seen = []
        for _ in range(5):
            result = run(ROWS)
            result.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(result.item())
        return seen

    uncompiled, module = seeded(lambda: Mlp(dropout=0.2))(), seeded(lambda: Mlp(dropout=0.2))()
    assert losses(uncompiled, uncompiled) == losses(module, compiled(module, memory_budget=0.75))
    assert len(remat_pass.reports()) == 1


def test_module_and_input_are_left_as_they_were() -> None:
    module, x = seeded(Mlp)(), ROWS.clone()
    before = copy.deepcopy(module.state_dict())
    trained(module, compiled(module, memory_budget=0.75), x)
    assert torch.equal(x, ROWS)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


# functorch.


def test_partitioner_alone() -> None:
    def step(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        for weights in (w, v, w.t(), v.t()):
            x = F.layer_norm(F.gelu(x @ weights), (32,))
        return x.square().sum()

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [floats(256, 32).requires_grad_(), floats(32, 32, seed=1).requires_grad_()]
        leaves.append(floats(32, 32, seed=2).requires_grad_())
        run(*leaves).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    compiled_step = aot_function(step, nop, nop, partition_fn=remat_pass.partitioner(memory_budget=0.8))
    for expected, got in zip(gradients(step), gradients(compiled_step), strict=True):
        assert torch.equal(expected, got)
    (report,) = remat_pass.reports()
    assert report.lowering == "eager"
    assert any(d.action == "recomputed" for d in report.decisions)


# Several graphs.


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Mlp(), Mlp(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        torch._dynamo.graph_break()
        second = self.second(x * first)
        torch._dynamo.graph_break()
        return first + second * self.third(x * second)


@pytest.mark.filterwarnings("always")
def test_graph_breaks_warn_once() -> None:
    uncompiled, module = seeded(Broken)(), seeded(Broken)()
    expected = trained(uncompiled, uncompiled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = compiled(module, memory_budget=0.7)
        assert_same(expected, trained(module, run), "graph breaks")
        trained(module, run, floats(128, 64))
    about_graphs = [w for w in caught if "more than one training graph" in str(w.message)]
    assert len(about_graphs) == 1
    assert len(remat_pass.reports()) >= 3


# Mistakes.


@pytest.fixture
def unchanged_config() -> Iterator[None]:
    """Torch's global configuration before and after."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_config

    before = [copy.deepcopy(config.get_config_copy()) for config in (functorch_config, inductor_config)]
    yield
    assert [config.get_config_copy() for config in (functorch_config, inductor_config)] == before


BAD_OPTIONS = {
    "negative": ({"memory_budget": -1}, "-1"),
    "zero": ({"memory_budget": 0}, "=0"),
    "above one": ({"memory_budget": 1.5}, "1.5"),
    "potatoes": ({"memory_budget": "6 potatoes"}, "6 potatoes"),
    "nan": ({"memory_budget": float("nan")}, "nan"),
    "bool": ({"memory_budget": True}, "True"),
    "unknown option": ({"memory_budgte": 0.5}, "memory_budget"),
    "unknown lowering": ({"lowering": "fast"}, "fast"),
    "no such plan": ({"plan": "/no/such/plan.json"}, "/no/such/plan.json"),
    "inductor option without inductor": ({"lowering": "eager", "max_autotune": True}, "max_autotune"),
}


@pytest.mark.usefixtures("unchanged_config")
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str) -> None:
    options, told = BAD_OPTIONS[name]
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(seeded(Mlp)(), backend="remat", options=options)(ROWS)
    error = caught.value.inner_exception
    assert isinstance(error, remat_pass.OptionError) and isinstance(error, ValueError)
    assert told in str(error) and told in str(caught.value)
    assert remat_pass.reports() == ()
    check_training_works()


@pytest.mark.usefixtures("unchanged_config")
def test_impossible_budget() -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(seeded(Mlp)(), memory_budget=1000)(ROWS)
    error = caught.value.inner_exception
    assert isinstance(error, remat_pass.InfeasibleBudgetError)
    assert error.budget_bytes == 1000
    assert str(error.least_peak_bytes) in str(error)
    torch._dynamo.reset()
    module = seeded(Mlp)()
    trained(module, compiled(module, memory_budget=error.least_peak_bytes))
    (report,) = remat_pass.reports()
    assert report.predicted_peak_bytes <= error.least_peak_bytes == report.least_peak_bytes
    check_training_works()


def test_impossible_budget_with_a_warning() -> None:
    uncompiled, module = seeded(Mlp)(), seeded(Mlp)()
    run = compiled(module, memory_budget=1000, on_infeasible="warn")
    with pytest.warns(remat_pass.RematWarning, match="least reachable peak"):
        got = trained(module, run)
    assert_same(trained(uncompiled, uncompiled), got, "least-peak plan")


@pytest.mark.usefixtures("unchanged_config")
def test_plan_of_another_graph(tmp_path: Path) -> None:
    module = seeded(Mlp)()
    trained(module, compiled(module, memory_budget=0.7, debug_dir=tmp_path))
    (report,) = remat_pass.reports()
    torch._dynamo.reset()
    replayed = seeded(Mlp)()
    trained(replayed, compiled(replayed, plan=tmp_path))
    assert remat_pass.reports()[-1].plan_json == report.plan_json
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(seeded(lambda: Mlp(width=32))(), plan=tmp_path)(floats(256, 32))
    error = caught.value.inner_exception
    assert isinstance(error, remat_pass.PlanError)
    assert report.graph_id[:12] in str(error)
    check_training_works()


def test_torch_config_is_unchanged(unchanged_config: None) -> None:
    check_training_works()
