"""What plans cost on a few models, in figures that are the same at every run: peaks, recompute, effort of planning.

    python -m tests.support.regression      # records the figures of tests/integration/test_regression.py anew

Plans run op by op, and as generated code for a GPU. Versions of torch give them other graphs, so each has its figures.
Record them anew only with a change that makes plans better, or that says why they may be worse.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import remat_pass
from remat_pass import _torch_compat, search
from remat_pass.liveness import Liveness, simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import Program
from tests.support.models import LARGE
from tests.support.rates import typical_processor
from tests.support.rig_process import run
from tests.support.training import compiled

RECORD = Path(__file__).with_name("regression.json")
_VERSION = ".".join(torch.__version__.split(".")[:2])
MODELS = ("llama", "gpt2", "hf_llama")
"""Without convolutions: their scratch, and so the peak, depends on the processor."""
FRACTIONS = (None, 0.7, 0.5, 0.0)
"""Of the unconstrained peak; 0.0 stands for the least budget that is accepted."""


Figures = dict[str, int]
"""What must not get worse, by name: peaks; FLOPs beyond those of the plan without a budget; steps of all the schedules
that planning simulated; of GPU code the modelled time of a step."""


def measure() -> dict[str, Figures]:
    """One entry per model and budget, such as "llama 0.5", and "llama 0.5 in GPU code"."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # scratch of attention grows with the number of threads
    try:
        found = {f"{name} {f}": figures for name in MODELS for f, figures in _of_model(name).items()}
    finally:
        torch.set_num_threads(threads)
    return {**found, **_in_gpu_code()}


def _of_model(name: str) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    flops = 0
    least: int | None = None
    for fraction in FRACTIONS:
        budget = least if fraction == 0.0 else fraction
        visited, report, peak = _planned(name, budget)
        least = report.least_peak_bytes
        total = _flops(report.forward_graph) + _flops(report.backward_graph)
        flops = flops or total
        found[str(fraction)] = {
            "predicted_peak_bytes": report.predicted_peak_bytes,
            "measured_peak_bytes": peak,
            "recompute_flops": total - flops,
            "visited_steps": visited,
        }
    return found


def _in_gpu_code() -> dict[str, Figures]:
    points = [(name, fraction) for name in MODELS for fraction in FRACTIONS]
    budgets = [{"memory_budget": 1, "on_infeasible": "warn"} if f == 0.0 else {"memory_budget": f} for _, f in points]
    requests = [
        {
            "model": "tests.support.regression:without_data",
            "arguments": {"name": name},
            "contestant": {"kind": "remat", **budget},
        }
        for (name, _), budget in zip(points, budgets, strict=True)
    ]
    lines = run("-m", "tests.support.gpu_rig", text="".join(f"{json.dumps(request)}\n" for request in requests))
    found: dict[str, Figures] = {}
    flops = 0
    for (name, fraction), line in zip(points, lines.splitlines(), strict=True):
        result = json.loads(line)["result"]
        total = result["forward_flops"] + result["backward_flops"]
        flops = total if fraction is None else flops
        found[f"{name} {fraction} in GPU code"] = {
            "peak_bytes": result["peak_bytes"],
            "recompute_flops": total - flops,
            "step_ns": result["forward_modelled_ns"] + result["backward_modelled_ns"],
        }
    return found


def without_data(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model and its inputs for the rig."""
    with torch.device("meta"):
        return LARGE[name].build(), LARGE[name].inputs()


def _planned(name: str, budget: float | int | None) -> tuple[int, remat_pass.RematReport, int]:
    visited = 0

    def counting(problem: RematProblem, program: Program) -> Liveness:
        nonlocal visited
        visited += len(program.values)
        return simulate(problem, program)

    torch._dynamo.reset()
    module, inputs = LARGE[name].build(), LARGE[name].inputs()
    step_of = compiled(module, memory_budget=budget)

    def step() -> None:
        outputs = step_of(*inputs)
        (outputs[0] if isinstance(outputs, tuple) else outputs).backward()
        module.zero_grad(set_to_none=True)

    with mock.patch.object(search, "simulate", counting):
        step()
    return visited, remat_pass.reports()[-1], remat_pass.measure_peak_bytes(step, device="cpu")


def _flops(graph: fx.GraphModule | None) -> int:
    assert graph is not None

    def value(argument: Any) -> Any:
        return argument.meta.get("val") if isinstance(argument, fx.Node) else argument

    total = 0
    for node in graph.graph.nodes:
        if node.op == "call_function":
            args, kwargs = pytree.tree_map(value, (node.args, node.kwargs))
            total += _torch_compat.op_flops(node.target, args, kwargs, value(node)) or 0
    return total


def recorded() -> dict[str, Figures]:
    """The figures on file for this version of torch."""
    of_version: dict[str, Figures] = json.loads(RECORD.read_text()).get(_VERSION, {})
    return of_version


def main() -> None:
    """Record the figures of the working tree."""
    others = json.loads(RECORD.read_text())
    with typical_processor():
        figures = measure()
    RECORD.write_text(json.dumps({**others, _VERSION: figures}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
