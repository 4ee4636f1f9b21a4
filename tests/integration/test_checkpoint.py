"""Models that already use `checkpoint()`: their tags are honoured, and their gradients stay bitwise the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import remat_pass
from remat_pass.schedule import decide, plan_of
from tests.support.models import WithLoss, causal_loss, floats, gpt2, seeded, tokens
from tests.support.training import assert_same, budgets, compiled, forced, random_keep, train

WIDTH, ROWS = 32, 64


class Block(nn.Module):
    """Two matmuls, a normalisation, and dropout at a rate that no mask survives by chance."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.gelu(self.up(self.norm(x))), self.dropout)
        return x + F.dropout(self.down(h), self.dropout)


class Stack(nn.Module):
    """Blocks, each run by `apply(block, x)`."""

    def __init__(self, apply: Callable[[nn.Module, Tensor], Tensor], dropout: float = 0.0, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(blocks))
        self.run = apply

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x.square().mean()


def plain(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def per_block(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def nested(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(lambda y: checkpoint(block, y.sin(), use_reentrant=False).exp(), x, use_reentrant=False)


def save_matmuls(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    matmul = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if matmul else CheckpointPolicy.MUST_RECOMPUTE


def contexts() -> Any:
    return create_selective_checkpoint_contexts(save_matmuls)


def selective(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


CASES = {
    "per block": (per_block, 0.0),
    "nested": (nested, 0.0),
    "selective": (selective, 0.0),
    "dropout": (per_block, 0.5),
    "nested with dropout": (nested, 0.5),
    "selective with dropout": (selective, 0.5),
}


tags_may_give_way = pytest.mark.filterwarnings("ignore:.*cannot be met with the checkpointing tags")


@tags_may_give_way
@pytest.mark.parametrize("name", CASES)
def test_gradients_at_every_budget(name: str) -> None:
    apply, dropout = CASES[name]
    inputs = (floats(ROWS, WIDTH),)
    build = seeded(lambda: Stack(apply, dropout))
    uncompiled = build()
    expected = train(uncompiled, uncompiled, inputs)

    def check(budget: int | None) -> None:
        module = build()
        run = compiled(module, memory_budget=budget)
        assert_same(expected, train(module, run, inputs), f"memory_budget={budget}")

    check(None)
    for budget in budgets(remat_pass.reports()[-1]):
        check(budget)


@pytest.mark.parametrize("name", CASES)
def test_gradients_for_any_plan(name: str) -> None:
    """Plans that ignore the tags."""
    apply, dropout = CASES[name]
    inputs = (floats(ROWS, WIDTH),)
    build = seeded(lambda: Stack(apply, dropout, blocks=2))
    uncompiled = build()
    expected = train(uncompiled, uncompiled, inputs)
    for share in (0.0, 0.5, 1.0):
        module = build()
        run, _ = forced(module, lambda p, share=share: plan_of(p, decide(p, random_keep(p, 2, share))))
        assert_same(expected, train(module, run, inputs), f"keeping {share:.0%} of all values")


def test_dropout_masks_are_those_of_forward() -> None:
    """With p = 0.5 and weight decay off, a gradient is zero where, and only where, the mask of forward is."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: F.dropout(y * self.weight, 0.5).sin(), x.exp(), use_reentrant=False)

    module = Masked()
    run = compiled(module)
    outputs = run(floats(64, 64))
    outputs.sum().backward()
    assert module.weight.grad is not None
    assert torch.equal(outputs != 0, module.weight.grad != 0)
    (report,) = remat_pass.reports()
    assert recomputed(report, "native_dropout") == 1


def test_tags_say_what_is_recomputed() -> None:
    def matmuls_and_activations(apply: Callable[[nn.Module, Tensor], Tensor]) -> tuple[int, int]:
        torch._dynamo.reset()
        module = seeded(lambda: Stack(apply))()
        train(module, compiled(module), (floats(ROWS, WIDTH),))
        report = remat_pass.reports()[-1]
        assert not report.overruled
        return recomputed(report, "addmm"), recomputed(report, "gelu")

    assert matmuls_and_activations(plain) == (0, 0)
    # One matmul of each block, because nothing inside a block reads its second one.
    assert matmuls_and_activations(per_block) == (4, 4)
    assert matmuls_and_activations(selective) == (0, 4)


def test_a_budget_that_cannot_be_met_with_the_tags_names_them() -> None:
    """Selective checkpointing saves every matmul; the least peak needs some of them recomputed."""
    module = seeded(lambda: Stack(selective))()
    inputs = (floats(ROWS, WIDTH),)
    train(module, compiled(module), inputs)
    report = remat_pass.reports()[-1]
    assert report.least_peak_bytes < report.unconstrained_peak_bytes
    torch._dynamo.reset()
    uncompiled = seeded(lambda: Stack(selective))()
    expected = train(uncompiled, uncompiled, inputs)
    with pytest.warns(remat_pass.RematWarning, match=r"cannot be met with the checkpointing tags.*addmm"):
        got = train(module, compiled(module, memory_budget=report.least_peak_bytes), inputs)
    assert_same(expected, got, "tags overruled")
    last = remat_pass.reports()[-1]
    assert any("addmm" in name for name in last.overruled)
    assert last.predicted_peak_bytes <= report.least_peak_bytes


@tags_may_give_way
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_hf_gradient_checkpointing() -> None:
    def build() -> nn.Module:
        model = gpt2(2, 32)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return WithLoss(model, causal_loss)

    inputs = (tokens(512, 2, 16),)
    uncompiled = seeded(build)()
    expected = train(uncompiled, uncompiled, inputs)
    module = seeded(build)()
    assert_same(expected, train(module, compiled(module), inputs), "no budget")
    report = remat_pass.reports()[-1]
    assert recomputed(report, "dropout") > 0
    for budget in budgets(report):
        module = seeded(build)()
        assert_same(expected, train(module, compiled(module, memory_budget=budget), inputs), f"budget {budget}")


def recomputed(report: remat_pass.RematReport, op: str) -> int:
    """How many ops of that name backward runs again."""
    return sum(d.copies for d in report.decisions if d.action == "recomputed" and op in d.op)
