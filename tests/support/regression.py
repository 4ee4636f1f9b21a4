"""What plans cost on a few models, in figures that are the same at every run: peaks, recompute, effort of planning.

    python -m tests.support.regression      # records the figures of tests/integration/test_regression.py anew

Record them anew only with a change that makes plans better, or that says why they may be worse.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils import _pytree as pytree

import remat_pass
from remat_pass import _torch_compat, search
from remat_pass.liveness import Liveness, simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import Program
from tests.support.models import LARGE
from tests.support.training import compiled

RECORD = Path(__file__).with_name("regression.json")
MODELS = ("llama", "gpt2", "hf_llama")
"""Without convolutions: their scratch, and so the peak, depends on the processor."""
FRACTIONS = (None, 0.7, 0.5, 0.0)
"""Of the unconstrained peak; 0.0 stands for the least budget that is accepted."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What must not get worse."""

    predicted_peak_bytes: int
    measured_peak_bytes: int
    recompute_flops: int
    """Of both graphs, beyond those of the plan without a budget."""
    visited_steps: int
    """Steps of all the schedules that planning simulated."""


def measure() -> dict[str, Figures]:
    """One entry per model and budget, such as "llama 0.5"."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # scratch of attention grows with the number of threads
    try:
        return {f"{name} {f}": figures for name in MODELS for f, figures in _of_model(name).items()}
    finally:
        torch.set_num_threads(threads)


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
        found[str(fraction)] = Figures(report.predicted_peak_bytes, peak, total - flops, visited)
    return found


def _planned(name: str, budget: float | int | None) -> tuple[int, remat_pass.RematReport, int]:
    visited = 0

    def counting(problem: RematProblem, program: Program) -> Liveness:
        nonlocal visited
        visited += len(program.values)
        return simulate(problem, program)

    torch._dynamo.reset()
    module, inputs = LARGE[name].build(), LARGE[name].inputs()
    run = compiled(module, memory_budget=budget)

    def step() -> None:
        outputs = run(*inputs)
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
    """The figures on file."""
    return {name: Figures(**figures) for name, figures in json.loads(RECORD.read_text()).items()}


def main() -> None:
    """Record the figures of the working tree."""
    RECORD.write_text(json.dumps({name: asdict(figures) for name, figures in measure().items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
