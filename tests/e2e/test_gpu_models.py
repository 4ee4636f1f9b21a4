"""Real models in generated GPU code: it compiles, computes eager's gradients, and recomputes inside its readers."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import SMALL

pytest.importorskip("triton")

_MODELS = ("llama", "gpt2", "resnet")
_BUDGETS = (0.9, 1)
"""A byte stands for the least plan."""


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    case = SMALL[name]
    return case.build(), case.inputs()


def without_dropout(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    module, inputs = build(name)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module, inputs


def _lines(code: str, **environment: str) -> list[Any]:
    """What a process of its own prints: the rig has to be imported before torch."""
    preamble = f"""
import tests.support.gpu_rig
import json, torch
from {__name__} import build, without_dropout
from tests.support.gpu_rig.contestant import read_contestant
from tests.support.gpu_rig.lowering import RigConfig
"""
    command = [sys.executable, "-W", "ignore", "-c", preamble + code]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


_COMPILE = f"""
from tests.support.gpu_rig.lowering import generate_sources
from tests.support.gpu_rig.ptx import compile_kernels

for name in {_MODELS}:
    ours = read_contestant({{"kind": "remat", "memory_budget": 1, "on_infeasible": "warn"}})
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
    print(json.dumps([name, case, {{key: tensor.tolist() for key, tensor in found.items()}}]))

for name in {_MODELS}:
    module, inputs = without_dropout(name)
    loss = module(*inputs)
    loss.backward()
    show(name, "eager", {{key: parameter.grad for key, parameter in module.named_parameters()}})
    dropping, _ = build(name)
    show(name, "torch", gradients(dropping, inputs))
    for budget in {_BUDGETS}:
        ours = read_contestant({{"kind": "remat", "memory_budget": budget, "on_infeasible": "warn"}})
        config = ours.configure(RigConfig())
        module, _ = without_dropout(name)
        show(name, f"plain, {{budget}}", gradients(module, inputs, ours.partitioner, config=config))
        show(name, f"dropping, {{budget}}", gradients(dropping, inputs, ours.partitioner, config=config))
"""


@pytest.fixture(scope="module")
def interpreted() -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    rows = _lines(_INTERPRET, TRITON_INTERPRET="1")
    return {(name, case): {key: torch.tensor(g) for key, g in found.items()} for name, case, found in rows}


@pytest.mark.parametrize("budget", _BUDGETS)
@pytest.mark.parametrize("name", _MODELS)
def test_budgeted_kernels_compute_the_gradients_of_eager(
    interpreted: dict[tuple[str, str], dict[str, torch.Tensor]], name: str, budget: float
) -> None:
    torch.testing.assert_close(interpreted[name, f"plain, {budget}"], interpreted[name, "eager"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("budget", _BUDGETS)
def test_budgeted_kernels_drop_what_forward_dropped(
    interpreted: dict[tuple[str, str], dict[str, torch.Tensor]], budget: float
) -> None:
    ours, theirs = interpreted["gpt2", f"dropping, {budget}"], interpreted["gpt2", "torch"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    key = "model.transformer.h.0.attn.c_attn.weight"
    assert not torch.allclose(theirs[key], interpreted["gpt2", "eager"][key], rtol=1e-2)


_COUNT = """
import remat_pass
from dataclasses import asdict
from remat_pass.problem import Kind
from tests.support.gpu_rig.lowering import lower

for name in ("llama", "gpt2"):
    print(json.dumps([name, "torch", asdict(lower(*build(name)))]))
    remat_pass.clear_reports()
    ours = read_contestant({"kind": "remat", "memory_budget": 1, "on_infeasible": "warn"})
    figures = asdict(lower(*build(name), ours.partitioner, config=ours.configure(RigConfig())))
    (report,) = remat_pass.reports()
    (plan,) = json.loads(report.plan_json)["plans"].values()
    values = [report.problem.values[report.problem.index[step[0]]] for step in plan["backward"]]
    again = [v for v in values if not v.needs_tangent]
    figures["calls"] = sum(v.kind in (Kind.EXTERN, Kind.RANDOM) for v in again)
    figures["copies"] = sum(step[1] > 1 for step in plan["backward"])
    figures["pointwise"] = sum(v.kind is Kind.POINTWISE for v in again)
    figures["pointwise_bytes"] = sum(v.size.hint for v in again if v.kind is Kind.POINTWISE)
    print(json.dumps([name, "ours", figures]))
"""


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], dict[str, int]]:
    return {(name, case): figures for name, case, figures in _lines(_COUNT)}
