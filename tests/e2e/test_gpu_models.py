"""Real models in generated GPU code: it compiles, computes eager's gradients, and recomputes inside its readers."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models import Llama, LlamaConfig
from tests.support.models import SMALL, Residual, WithLoss, causal_loss, floats, gpt2, tokens
from tests.support.rig_process import run

pytest.importorskip("triton")

_MODELS = ("llama", "gpt2", "resnet")
_BUDGETS = (0.9, 1)
"""A byte stands for the least plan."""


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    if name == "chain":
        layers = (part for _ in range(16) for part in (nn.Linear(16, 16), nn.GELU()))
        return WithLoss(nn.Sequential(*layers), squared), (floats(4096, 16),)
    case = SMALL[name]
    return case.build(), case.inputs()


def tiny(name: str, dropout: float) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """One layer of each: the interpreter runs kernels element by element."""
    torch.manual_seed(0)
    if name == "llama":
        config = LlamaConfig(vocabulary=32, layers=1, width=16, hidden=32, heads=2, context=8)
        return Llama(config), (tokens(32, 2, 8), tokens(32, 2, 8, seed=1))
    if name == "resnet":
        return WithLoss(Residual(4, 8), squared), (floats(2, 4, 8, 8),)
    return WithLoss(gpt2(1, 16, vocabulary=32, dropout=dropout), causal_loss), (tokens(32, 2, 8),)


def squared(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return model(*inputs).square().mean()


def _lines(code: str, **environment: str) -> list[Any]:
    """What a process of its own prints: the rig has to be imported before torch."""
    preamble = f"""
import tests.support.gpu_rig
import json, torch
from {__name__} import build, tiny
from tests.support.gpu_rig.contestant import read_contestant
from tests.support.gpu_rig.lowering import RigConfig
"""
    return [json.loads(line) for line in run("-c", preamble + code, **environment).splitlines()]


_COMPILE = f"""
from tests.support.gpu_rig.lowering import generate_sources
from tests.support.gpu_rig.ptx import compile_kernels

for name in {_MODELS}:
    ours = read_contestant({{"kind": "remat", "memory_budget": 0.5, "on_infeasible": "warn"}})
    sources = generate_sources(*build(name), ours.partitioner, config=ours.configure(RigConfig(precision="bf16")))
    for sm in (80, 90):
        for kernel in compile_kernels(sources, sm):
            target = next(line for line in kernel.ptx.splitlines() if line.startswith(".target"))
            print(json.dumps([name, sm, kernel.name, target.split()[1], kernel.cubin_bytes]))
"""


@pytest.fixture(scope="module")
def kernels() -> list[tuple[str, int, str, str, int]]:
    return [tuple(row) for row in _lines(_COMPILE)]


@pytest.mark.parametrize("name", _MODELS)
def test_every_triton_kernel_of_a_budgeted_model_compiles_for_both_cards(
    kernels: list[tuple[str, int, str, str, int]], name: str
) -> None:
    of_model = [row for row in kernels if row[0] == name]
    by_card = {sm: [kernel for _, card, kernel, *_ in of_model if card == sm] for sm in (80, 90)}
    assert len(by_card[80]) > 15
    assert by_card[80] == by_card[90]
    assert {(sm, target) for _, sm, _, target, _ in of_model} == {(80, "sm_80"), (90, "sm_90a")}
    assert all(cubin_bytes > 0 for *_, cubin_bytes in of_model)


_INTERPRET = f"""
from tests.support.gpu_rig.interpret import gradients

def show(name, case, found):
    # The interpreter adds nothing atomically.
    kept = {{key: tensor for key, tensor in found.items() if not ("embedding" in key or "wte" in key or "wpe" in key)}}
    print(json.dumps([name, case, {{key: tensor.tolist() for key, tensor in kept.items()}}]))

for name, dropout in [*((name, 0.0) for name in {_MODELS}), ("gpt2", 0.5)]:
    module, inputs = tiny(name, dropout)
    module(*inputs).backward()
    expected = {{key: parameter.grad for key, parameter in module.named_parameters()}}
    # Inductor draws other masks than eager, and the same in every plan.
    show(name, f"{{dropout}}, expected", gradients(module, inputs) if dropout else expected)
    for budget in {_BUDGETS}:
        ours = read_contestant({{"kind": "remat", "memory_budget": budget, "on_infeasible": "warn"}})
        found = gradients(module, inputs, ours.partitioner, config=ours.configure(RigConfig()))
        show(name, f"{{dropout}}, {{budget}}", found)
"""


@pytest.fixture(scope="module")
def interpreted() -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    rows = _lines(_INTERPRET, TRITON_INTERPRET="1")
    return {(name, case): {key: torch.tensor(g) for key, g in found.items()} for name, case, found in rows}


@pytest.mark.parametrize("budget", _BUDGETS)
@pytest.mark.parametrize(("name", "dropout"), [*((name, 0.0) for name in _MODELS), ("gpt2", 0.5)])
def test_budgeted_kernels_compute_the_gradients_of_the_model(
    interpreted: dict[tuple[str, str], dict[str, torch.Tensor]], name: str, dropout: float, budget: float
) -> None:
    ours, theirs = (interpreted[name, f"{dropout}, {case}"] for case in (budget, "expected"))
    assert len(ours) > 5
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_masks_drop_something(interpreted: dict[tuple[str, str], dict[str, torch.Tensor]]) -> None:
    key = "model.transformer.h.0.mlp.c_fc.weight"
    plain, dropped = (interpreted["gpt2", f"{dropout}, expected"][key] for dropout in (0.0, 0.5))
    assert not torch.allclose(plain, dropped, rtol=1e-2)


_COUNT = """
import remat_pass
from dataclasses import asdict
from remat_pass.problem import Kind
from tests.support.gpu_rig.lowering import lower

for name in ("llama", "gpt2", "chain"):
    print(json.dumps([name, "torch", asdict(lower(*build(name)))]))
    remat_pass.clear_reports()
    ours = read_contestant({"kind": "remat", "memory_budget": 1, "on_infeasible": "warn"})
    print(json.dumps([name, "unordered", asdict(lower(*build(name), ours.partitioner))]))
    remat_pass.clear_reports()
    figures = asdict(lower(*build(name), ours.partitioner, config=ours.configure(RigConfig())))
    (report,) = remat_pass.reports()
    figures["predicted_peak_bytes"] = report.predicted_peak_bytes
    (plan,) = json.loads(report.plan_json)["plans"].values()
    values = [report.problem.values[report.problem.index[step[0]]] for step in plan["backward"]]
    again = [(v, step[1]) for v, step in zip(values, plan["backward"], strict=True) if not v.needs_tangent]
    figures["calls"] = sum(v.kind in (Kind.EXTERN, Kind.RANDOM) for v, _ in again)
    figures["copied_calls"] = sum(copy > 1 and v.kind is Kind.EXTERN for v, copy in again)
    figures["pointwise"] = sum(v.kind is Kind.POINTWISE for v, _ in again)
    figures["pointwise_bytes"] = sum(v.size.hint for v, _ in again if v.kind is Kind.POINTWISE)
    print(json.dumps([name, "ours", figures]))
"""


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], dict[str, int]]:
    return {(name, case): figures for name, case, figures in _lines(_COUNT)}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recomputed_pointwise_values_are_computed_in_the_kernels_that_read_them(
    counted: dict[tuple[str, str], dict[str, int]], name: str
) -> None:
    ours, torchs = counted[name, "ours"], counted[name, "torch"]
    assert ours["pointwise"] > 50
    assert ours["backward_triton_kernels"] - torchs["backward_triton_kernels"] < ours["pointwise"] / 5
    # Op by op each would be written and read.
    more_bytes = ours["backward_moved_bytes"] - torchs["backward_moved_bytes"]
    assert more_bytes < ours["pointwise_bytes"]


def test_order_is_kept(counted: dict[tuple[str, str], dict[str, int]]) -> None:
    """Left to itself, Inductor computes early what the same graphs compute late."""
    ours, unordered = counted["gpt2", "ours"], counted["gpt2", "unordered"]
    assert ours["peak_bytes"] == pytest.approx(ours["predicted_peak_bytes"], rel=0.01)
    assert unordered["peak_bytes"] > 1.1 * ours["peak_bytes"]


def test_every_library_call_of_the_plan_is_made(counted: dict[tuple[str, str], dict[str, int]]) -> None:
    """Equal calls on equal copies are not merged again."""
    ours, torchs = counted["chain", "ours"], counted["chain", "torch"]
    assert ours["copied_calls"] > 3
    assert ours["backward_extern_kernels"] - torchs["backward_extern_kernels"] == ours["calls"]
