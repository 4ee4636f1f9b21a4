"""Kernels that Inductor makes from templates, in generated GPU code: attention with functions in it, and products."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from tests.support.models import floats
from tests.support.rig_process import run

pytest.importorskip("triton")


class Attention(nn.Module):
    """Layers of attention whose scores fall with the distance; `by_hand` in plain products, as CPUs have no other."""

    def __init__(self, layers: int, heads: int, width: int, *, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.by_hand = heads, by_hand
        self.layers = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        for layer in self.layers:
            both = layer(functional.rms_norm(x, (width,)))
            q, k, v = both.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            if self.by_hand:
                at = torch.arange(length)
                scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
                mixed = nearer(scores, 0, 0, at[:, None], at).softmax(-1) @ v
            else:
                mixed = flex_attention(q, k, v, score_mod=nearer)
            x = x + mixed.transpose(1, 2).reshape(x.shape).tanh()
        return x.square().mean()


def nearer(score: torch.Tensor, batch: Any, head: Any, at: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return score - 0.1 * (at - other).abs()


class Products(nn.Module):
    """Products whose sums and functions can be part of their kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + functional.gelu(layer(functional.layer_norm(x, (256,)))).sin()
        return x.square().mean()


_MODELS = {
    "attention": (lambda: Attention(4, 4, 256), (8, 512, 256)),
    "products": (Products, (4096, 256)),
}


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model, shape = _MODELS[name]
    return model(), (floats(*shape),)


_PREAMBLE = f"""
import tests.support.gpu_rig  # before torch
import json, remat_pass
from dataclasses import asdict
from {__name__} import Attention, build, floats
from tests.support.gpu_rig.contestant import read_contestant
from tests.support.gpu_rig.lowering import RigConfig, lower
"""

_COUNT = (
    _PREAMBLE
    + """
from torch._inductor.select_algorithm import AlgorithmSelectorCache

# Nothing can be timed: all templates for a product are equally good.
AlgorithmSelectorCache.lookup = lambda self, choices, *args, **more: dict.fromkeys(choices, 1.0)
TUNED = {"max_autotune": True, "max_autotune_gemm_backends": "TRITON", "benchmark_epilogue_fusion": False}

for name in ("attention", "products"):
    inductor = TUNED if name == "products" else {}
    config = RigConfig(inductor=inductor)
    module, batch = build(name)
    by_torch = lower(module, batch, config=config)
    print(json.dumps([name, "torch", asdict(by_torch)]))
    for share in (None, 0.7, 0.5):
        budget = share and int(share * by_torch.peak_bytes)
        ours = read_contestant({"kind": "remat", "memory_budget": budget, **inductor})
        figures = asdict(lower(module, batch, ours.partitioner, config=ours.configure(config)))
        report = remat_pass.reports()[-1]
        figures |= {"budget": budget, "predicted": report.predicted_peak_bytes}
        figures["again"] = sum("flex_attention" in d.op for d in report.decisions if d.action == "recomputed")
        print(json.dumps([name, str(share), figures]))
"""
)


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], dict[str, Any]]:
    rows = [json.loads(line) for line in run("-c", _COUNT).splitlines()]
    return {(name, case): figures for name, case, figures in rows}


@pytest.mark.parametrize("share", ["None", "0.7", "0.5"])
@pytest.mark.parametrize("name", _MODELS)
def test_what_is_predicted_is_allocated(counted: dict[tuple[str, str], dict[str, Any]], name: str, share: str) -> None:
    figures, by_torch = counted[name, share], counted[name, "torch"]
    assert figures["predicted"] == pytest.approx(figures["peak_bytes"], rel=0.001)
    assert figures["peak_bytes"] <= (figures["budget"] or by_torch["peak_bytes"])


def test_templates_are_what_runs(counted: dict[tuple[str, str], dict[str, Any]]) -> None:
    """No product is left to a library; attention, which is one, runs again."""
    figures = counted["products", "0.5"]
    assert figures["forward_extern_kernels"] == figures["backward_extern_kernels"] == 0
    assert counted["attention", "0.5"]["again"] > 0


_INTERPRET = (
    _PREAMBLE
    + """
from tests.support.gpu_rig.interpret import gradients

def show(case, found):
    print(json.dumps([case, {name: tensor.tolist() for name, tensor in found.items()}]))

x = floats(2, 16, 32)
by_hand, module = Attention(2, 2, 32, by_hand=True), Attention(2, 2, 32)
by_hand(x).backward()
show("expected", {name: parameter.grad for name, parameter in by_hand.named_parameters()})
for budget in (0.9, 1):
    ours = read_contestant({"kind": "remat", "memory_budget": budget, "on_infeasible": "warn"})
    show(str(budget), gradients(module, (x,), ours.partitioner, config=ours.configure(RigConfig())))
"""
)


@pytest.fixture(scope="module")
def gradients() -> dict[str, dict[str, torch.Tensor]]:
    rows = [json.loads(line) for line in run("-c", _INTERPRET, TRITON_INTERPRET="1").splitlines()]
    return {case: {name: torch.tensor(value) for name, value in found.items()} for case, found in rows}


@pytest.mark.parametrize("budget", ["0.9", "1"])
def test_the_generated_kernels_compute_the_gradients_of_the_model(
    gradients: dict[str, dict[str, torch.Tensor]], budget: str
) -> None:
    assert len(gradients[budget]) == 4
    torch.testing.assert_close(gradients[budget], gradients["expected"], rtol=1e-4, atol=1e-7)
