"""The rig that lowers for a GPU without one: its figures against ones worked out by hand, in a process of its own."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.support.rig_process import run

pytest.importorskip("triton")

_LAYERS, _WIDTH, _ROWS = 4, 64, 4096
_FORWARD_FLOPS = _LAYERS * 2 * (2 * _ROWS * _WIDTH * 4 * _WIDTH)
_PARAMETER_BYTES = 4 * _LAYERS * (2 * _WIDTH + 2 * 4 * _WIDTH * _WIDTH + 4 * _WIDTH + _WIDTH)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.up = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.down = nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def build() -> tuple[nn.Module, tuple[torch.Tensor]]:
    with torch.device("meta"):
        return Stack(), (torch.empty(_ROWS, _WIDTH),)


def build_nothing() -> None:
    raise LookupError("no such model")


def checkpoint_layers(module: Stack) -> None:
    for layer in module.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


_REQUESTS = {
    "default": {"kind": "default"},
    "knob 0": {"kind": "knob", "budget": 0.0},
    "checkpointed": {"kind": "wrap", "function": f"{__name__}:checkpoint_layers"},
    "remat": {"kind": "remat", "memory_budget": 0.6},
    "bad": {"kind": "no such kind"},
}


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """Of one process to all requests, among them two that fail."""
    requests = [{"model": f"{__name__}:build", "contestant": contestant} for contestant in _REQUESTS.values()]
    requests.insert(0, {"model": f"{__name__}:build_nothing"})
    lines = "".join(f"{json.dumps(request)}\n" for request in requests)
    done = run("-m", "tests.support.gpu_rig", text=lines)
    return dict(zip(("no model", *_REQUESTS), map(json.loads, done.splitlines()), strict=True))


def test_an_error_is_an_answer_and_the_next_request_is_served(answers: dict[str, Any]) -> None:
    assert answers["no model"]["error"] == "LookupError: no such model"
    assert "no such kind" in answers["bad"]["error"]
    assert all(answers[name]["ok"] for name in ("default", "knob 0", "checkpointed", "remat"))


def test_figures_of_torchs_own_partition_are_those_worked_out_by_hand(answers: dict[str, Any]) -> None:
    result = answers["default"]["result"]
    assert result["forward_flops"] == _FORWARD_FLOPS
    assert result["backward_flops"] == 2 * _FORWARD_FLOPS
    assert result["forward_extern_kernels"] == 2 * _LAYERS
    assert result["backward_extern_kernels"] == 4 * _LAYERS
    assert result["returned_gradient_bytes"] == _PARAMETER_BYTES
    assert result["peak_bytes"] == max(result["forward_peak_bytes"], result["backward_peak_bytes"])


def test_recomputing_everything_saves_nothing_and_repeats_forward(answers: dict[str, Any]) -> None:
    default, knob = answers["default"]["result"], answers["knob 0"]["result"]
    assert knob["saved_bytes"] == 0 < default["saved_bytes"]
    assert knob["forward_flops"] == default["forward_flops"]
    # The last product's result is read by the loss alone, but every other one runs again.
    assert 2 * _FORWARD_FLOPS < knob["backward_flops"] <= 3 * _FORWARD_FLOPS


def test_checkpointed_layers_are_recomputed(answers: dict[str, Any]) -> None:
    default, wrapped = answers["default"]["result"], answers["checkpointed"]["result"]
    assert wrapped["backward_flops"] > default["backward_flops"]
    assert wrapped["saved_bytes"] < default["saved_bytes"]


def test_a_budget_holds_on_the_gpu_and_the_prediction_is_right(answers: dict[str, Any]) -> None:
    result, report = answers["remat"]["result"], answers["remat"]["report"]
    assert result["peak_bytes"] <= report["budget_bytes"] < answers["default"]["result"]["peak_bytes"]
    error_bytes = abs(result["peak_bytes"] - report["predicted_peak_bytes"])
    assert 1000 * error_bytes <= report["margin_permille"] * report["predicted_peak_bytes"]


_COMPILE = f"""
import tests.support.gpu_rig  # before torch
from {__name__} import build
from tests.support.gpu_rig.lowering import RigConfig, generate_sources
from tests.support.gpu_rig.ptx import compile_kernels

sources = generate_sources(*build(), config=RigConfig(precision="bf16"))
for sm in (80, 90):
    for kernel in compile_kernels(sources, sm):
        target = next(line for line in kernel.ptx.splitlines() if line.startswith(".target"))
        print(sm, kernel.name, target.split()[1], kernel.cubin_bytes)
"""


def test_every_triton_kernel_compiles_for_both_cards() -> None:
    rows = [line.split() for line in run("-c", _COMPILE).splitlines()]
    names = {sm: [name for card, name, *_ in rows if card == sm] for sm in ("80", "90")}
    assert len(names["80"]) > 5
    assert names["80"] == names["90"]
    assert {(sm, target) for sm, _, target, _ in rows} == {("80", "sm_80"), ("90", "sm_90a")}
    assert all(int(cubin_bytes) > 0 for *_, cubin_bytes in rows)


class Dropping(nn.Module):
    """Tiny: the interpreter runs kernels element by element."""

    def __init__(self, p: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(4, 16)
        self.down = nn.Linear(16, 4)
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(functional.gelu(self.up(x)), self.p)
        return functional.dropout(self.down(hidden), self.p).square().mean()


class Gated(nn.Module):
    """What backward makes of a gated product is written over what it is made of, three storages in one kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates = nn.ModuleList(nn.Linear(4, 16) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(4, 16) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(16, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for gate, up, down in zip(self.gates, self.ups, self.downs, strict=True):
            x = x + down(functional.silu(gate(x)) * up(x))
        return x.square().mean()


_INTERPRET = f"""
import tests.support.gpu_rig  # before torch
import json, torch
from {__name__} import Dropping, Gated
from tests.support.gpu_rig.contestant import read_contestant
from tests.support.gpu_rig.interpret import gradients
from tests.support.gpu_rig.lowering import RigConfig

x = torch.linspace(-1, 1, 32).reshape(8, 4)
plain, dropping, gated = Dropping(0.0), Dropping(0.5), Gated()
for module in (plain, gated):
    module(x).backward()
expected = {{name: parameter.grad for name, parameter in plain.named_parameters()}}
least = read_contestant({{"kind": "remat", "memory_budget": 1, "on_infeasible": "warn"}})
config = least.configure(RigConfig())
print(json.dumps({{
    case: {{name: tensor.tolist() for name, tensor in values.items()}}
    for case, values in {{
        "eager": expected,
        "plain": gradients(plain, (x,), least.partitioner, config=config),
        "gated, eager": {{name: parameter.grad for name, parameter in gated.named_parameters()}},
        "gated": gradients(gated, (x,), least.partitioner, config=config),
        "dropping, torch": gradients(dropping, (x,)),
        "dropping, least": gradients(dropping, (x,), least.partitioner, config=config),
    }}.items()
}}))
"""


@pytest.fixture(scope="module")
def gradients() -> dict[str, dict[str, torch.Tensor]]:
    found = json.loads(run("-c", _INTERPRET, TRITON_INTERPRET="1"))
    return {case: {name: torch.tensor(value) for name, value in values.items()} for case, values in found.items()}


def test_the_generated_kernels_compute_the_gradients_of_eager(gradients: dict[str, Any]) -> None:
    torch.testing.assert_close(gradients["plain"], gradients["eager"], rtol=1e-5, atol=1e-7)
    assert not torch.equal(gradients["dropping, torch"]["up.weight"], gradients["plain"]["up.weight"])


def test_kernels_that_write_over_what_they_read_compute_them_too(gradients: dict[str, Any]) -> None:
    torch.testing.assert_close(gradients["gated"], gradients["gated, eager"], rtol=1e-5, atol=1e-7)


def test_the_least_plan_has_the_masks_of_forward(gradients: dict[str, Any]) -> None:
    # Drawn again in a reduction, a mask would be another one: https://github.com/pytorch/pytorch/issues/198333
    torch.testing.assert_close(gradients["dropping, least"], gradients["dropping, torch"], rtol=1e-5, atol=1e-7)
