"""The default lowering, end to end: real kernels, the allocator's peak, gradients against eager.

Inductor takes many seconds a graph, so these are few and each checks several promises at once.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import remat_pass
from benchmarks.contest.model_checkpointed import TwoPasses


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    remat_pass.clear_reports()
    with fresh_cache():
        yield
    torch._dynamo.reset()


class Layer(nn.Module):
    """A transformer's MLP with dropout: wide activations on a residual path."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.gelu(self.up(self.norm(x)))
        return x + self.down(functional.dropout(hidden, self.p, self.training))


class Stack(nn.Module):
    def __init__(self, layers: int = 4, width: int = 64, p: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(width, p) for _ in range(layers))
        self.checkpointed = checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return x.square().mean()


class Tied(nn.Module):
    """A language model whose embedding is also its last layer: the logits are wider than all else."""

    def __init__(self, vocabulary: int = 512, width: int = 64) -> None:
        super().__init__()
        self.stack = Stack(layers=12, width=width)
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.stack.layers:
            x = layer(x)
        logits = functional.linear(x, self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def gradients(step: object, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    step(x).backward()  # type: ignore[operator]
    return [p.grad.clone() for p in module.parameters()]


def peak(step: object, module: nn.Module, x: torch.Tensor) -> int:
    def train() -> None:
        step(x).backward()  # type: ignore[operator]
        module.zero_grad(set_to_none=True)

    module.zero_grad(set_to_none=True)
    return remat_pass.measure_peak_bytes(train)


def assert_close(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-7)


def test_a_budget_holds_and_gradients_are_those_of_eager() -> None:
    module, x = Stack(), torch.randn(2048, 64)
    wanted = gradients(module, module, x)
    inductor_peak = peak(torch.compile(module, backend="inductor"), module, x)
    torch._dynamo.reset()

    unconstrained = torch.compile(module, backend="remat")
    assert_close(gradients(unconstrained, module, x), wanted)
    assert peak(unconstrained, module, x) <= inductor_peak
    least = remat_pass.reports()[-1].least_peak_bytes
    torch._dynamo.reset()

    budget = (least + inductor_peak) // 2
    step = torch.compile(module, backend="remat", options={"memory_budget": budget})
    assert_close(gradients(step, module, x), wanted)
    report = remat_pass.reports()[-1]
    assert report.predicted_step_ns > 0
    assert report.measured_step_ns is None, "the step that compiles is no measure"
    measured = peak(step, module, x)
    assert measured <= budget < inductor_peak
    assert report.measured_step_ns is not None and report.measured_step_ns > 0
    assert "measured step" in str(report)
    assert abs(report.predicted_peak_bytes - measured) <= 0.02 * measured
    assert any(d.action == "recomputed" and d.op.startswith("aten") for d in report.decisions)


class SharesMemory(nn.Module):
    """Two loops of one kernel read the same memory under two names, and not at the same place."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.one, self.other = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gate, up = (linear(x).view(len(x), -1, 2) for linear in (self.gate, self.up))
            alias = torch.view_as_real(torch.view_as_complex(gate))
            one, other = gate.cos() * up, alias.flip(0).sin() * up
        return self.one(one.flatten(1)).square().sum() + self.other(other.flatten(1)).square().sum()


def test_what_is_read_under_another_name_is_not_written_over() -> None:
    module, x = SharesMemory(), torch.randn(64, 64)
    module(x).backward()
    wanted = [p.grad for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    options = {"memory_budget": 1, "on_infeasible": "warn"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the budget, and of Inductor about complex numbers
        torch.compile(module, backend="remat", options=options)(x).backward()
    got = [p.grad for p in module.parameters() if p.grad is not None]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_tied_embedding_does_not_keep_the_gradient_of_the_logits_alive() -> None:
    """Inductor would add up the two gradients of the weight in one call, at the end of backward."""
    module, tokens = Tied(), torch.randint(512, (8, 256))
    wanted = gradients(module, module, tokens)
    budget = 9 * 2**20  # with those 4 MiB nothing fits below 11.9 MiB
    step = torch.compile(module, backend="remat", options={"memory_budget": budget})
    assert_close(gradients(step, module, tokens), wanted)
    report = remat_pass.reports()[-1]
    measured = peak(step, module, tokens)
    assert measured <= budget
    assert abs(report.predicted_peak_bytes - measured) <= 0.02 * measured


class Drop(nn.Module):
    """The mask is visible: y = dropout(w * x), so y is 0 exactly where the gradient of x is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((512, 512), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout((self.weight * x).exp(), 0.5).sin() + x


@pytest.mark.parametrize("budget", [None, "least"])
def test_dropout_draws_the_same_mask_in_backward(budget: str | None) -> None:
    module = Drop()
    options: dict[str, object] = {}
    if budget == "least":
        torch.compile(module, backend="remat")(torch.rand(512, 512, requires_grad=True))
        options = {"memory_budget": remat_pass.reports()[-1].least_peak_bytes}
        torch._dynamo.reset()
    step = torch.compile(module, backend="remat", options=options)
    for seed in (1, 2):
        x = torch.rand(512, 512, requires_grad=True)
        torch.manual_seed(seed)
        y = step(x)
        dropped = (y - x).detach() == 0
        assert 0.4 < dropped.float().mean() < 0.6
        y.backward(torch.ones_like(y))
        assert torch.equal(x.grad == 1, dropped)


def test_a_checkpointed_model_trains_as_before_and_peaks_no_higher_than_under_inductor() -> None:
    module, x = Stack(checkpointed=True), torch.randn(2048, 64)
    wanted = gradients(module, module, x)
    inductor_peak = peak(torch.compile(module, backend="inductor"), module, x)
    torch._dynamo.reset()
    step = torch.compile(module, backend="remat")
    assert_close(gradients(step, module, x), wanted)
    assert peak(step, module, x) <= inductor_peak
    recomputed = {d.op for d in remat_pass.reports()[-1].decisions if d.action == "recomputed"}
    assert {"aten.addmm.default", "aten.mm.default"} & recomputed


def test_checkpointed_blocks_that_run_twice_take_no_more_than_uncompiled() -> None:
    """pytorch#193193: torch's own backward recomputes many blocks before it uses the first."""
    module = TwoPasses(layers=3, width=64, heads=2, vocabulary=64)
    tokens, image = torch.randint(64, (8, 129)), torch.randn(8, 32, 64)

    def on_batch(step: Any) -> Any:
        return lambda tokens: step(tokens[:, :-1], tokens[:, 1:], image)

    wanted = gradients(on_batch(module), module, tokens)
    eager_peak = peak(on_batch(module), module, tokens)
    step = on_batch(torch.compile(module, backend="remat"))
    assert_close(gradients(step, module, tokens), wanted)
    report = remat_pass.reports()[-1]
    assert (report.origin, report.overruled) == ("planner", ())
    measured = peak(step, module, tokens)
    assert measured <= eager_peak
    assert abs(report.predicted_peak_bytes - measured) <= 0.02 * measured


_PROGRAM = """
import json, sys, torch
from torch import nn
budget, version = sys.argv[1:]
if version:
    import remat_pass.lower
    remat_pass.lower.version = lambda name: version
torch.manual_seed(0)
layers = [layer for _ in range(6) for layer in (nn.Linear(128, 128), nn.GELU())]
module, x = nn.Sequential(*layers), torch.randn(2048, 128)
compiled = torch.compile(module, backend="remat", options={"memory_budget": float(budget)})
def step():
    compiled(x).sum().backward()
    module.zero_grad(set_to_none=True)
step()
assert version or "remat_pass" not in globals()
import remat_pass
(report,) = remat_pass.reports()
print(json.dumps({
    "planned": report.forward_graph is not None,
    "plan": [report.graph_id, report.budget_bytes, report.predicted_peak_bytes, report.forward_code],
    "measured": remat_pass.measure_peak_bytes(step),
    "step_ns": report.measured_step_ns,
}))
"""


def in_a_process_of_its_own(cache: Path, budget: float, version: str = "") -> dict[str, Any]:
    """What `_PROGRAM` prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(budget), version],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_warm_cache_brings_code_and_report_back_and_holds_for_its_budget_and_version_alone(tmp_path: Path) -> None:
    """No import is needed for any of it."""
    cold, warm = (in_a_process_of_its_own(tmp_path, 0.7) for _ in range(2))
    assert (cold["planned"], warm["planned"]) == (True, False)
    assert cold["plan"] == warm["plan"]
    assert max(cold["measured"], warm["measured"]) <= warm["plan"][1]
    assert min(cold["step_ns"], warm["step_ns"]) > 0
    smaller = in_a_process_of_its_own(tmp_path, 0.6)
    assert smaller["planned"]
    assert smaller["measured"] <= smaller["plan"][1] < warm["plan"][1]
    assert in_a_process_of_its_own(tmp_path, 0.7, version="99")["planned"], "another version of this package"
