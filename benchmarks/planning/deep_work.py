"""What the worker of the `p197838` section does: one model compiled at one budget after the other, stepped in turn.

All plans live in one process and share the model, so that a slow minute of the machine hits them alike. Dynamo keeps
code per budget, as the options of a backend are part of what it guards.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import remat_pass
from benchmarks.contest.models import MODELS
from benchmarks.peaks import gradients_and_peak

_MOST_PLANS = 64


@dataclass
class _Session:
    module: nn.Module
    batch: tuple[Tensor, ...]
    gradients: list[Tensor | None]
    steps: list[Callable[..., Tensor]] = field(default_factory=list)


_sessions: list[_Session] = []


def start(model: str) -> dict[str, Any]:
    """Build the model and take the gradients and the peak of the uncompiled one."""
    warnings.filterwarnings("ignore", category=UserWarning)
    torch._dynamo.config.recompile_limit = _MOST_PLANS
    module, batch = MODELS[model].build()
    gradients, peak_bytes = gradients_and_peak(module, module, batch)
    _sessions[:] = [_Session(module, batch, gradients)]
    return {"eager_peak_bytes": peak_bytes}


def prepare(memory_budget: int | None) -> dict[str, Any]:
    """Compile at a budget in bytes (None: unconstrained), check gradients and measure the peak."""
    (session,) = _sessions
    options = {"memory_budget": memory_budget, "lowering": "eager", "on_infeasible": "warn"}
    step = torch.compile(session.module, backend="remat", options=options)
    planned = len(remat_pass.reports())
    got, peak_bytes = gradients_and_peak(step, session.module, session.batch)
    session.steps.append(step)
    report = remat_pass.reports()[-1]
    if len(remat_pass.reports()) != planned + 1 or report.problem is None:
        raise AssertionError(
            f"budget {memory_budget} was planned {len(remat_pass.reports()) - planned} times, not once"
        )
    pairs = zip(got, session.gradients, strict=True)
    return {
        "budget_bytes": report.budget_bytes,
        "predicted_bytes": report.predicted_peak_bytes,
        "measured_bytes": peak_bytes,
        "least_bytes": report.least_peak_bytes,
        "unconstrained_bytes": report.unconstrained_peak_bytes,
        "recompute_ns": report.recompute_ns,
        "step_ns": sum(v.recompute_ns for v in report.problem.values),
        "planning_seconds": report.planning_seconds,
        "nodes": len(report.problem.values),
        "most_copies": max(d.copies for d in report.decisions),
        "bitwise": all(w is None if g is None else w is not None and torch.equal(g, w) for g, w in pairs),
    }


def step(number: int) -> dict[str, Any]:
    """Seconds of one forward and backward of the plan that was prepared as number `number`."""
    (session,) = _sessions
    begin = time.perf_counter()
    session.steps[number](*session.batch).backward()
    seconds = time.perf_counter() - begin
    session.module.zero_grad(set_to_none=True)
    return {"seconds": seconds}
