"""A torch.compile backend that keeps a training step within a memory budget.

    step = torch.compile(model, backend="remat", options={"memory_budget": "6GiB"})

Names are loaded when they are used (PEP 562), so that the torch-free planner can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remat_pass.errors import (
        InfeasibleBudgetError,
        MeasurementError,
        OptionError,
        PlanError,
        RematError,
        RematWarning,
        VerificationError,
    )
    from remat_pass.gap import OptimalityGap, optimality_gap
    from remat_pass.lower import partitioner
    from remat_pass.measure import MemoryTimeline, measure_peak_bytes, memory_timeline
    from remat_pass.model_frontier import Frontier, FrontierPoint, frontier
    from remat_pass.options import set_default_options
    from remat_pass.report import RematReport, ValueDecision, clear_reports, reports

_HOMES = {
    "Frontier": "model_frontier",
    "FrontierPoint": "model_frontier",
    "InfeasibleBudgetError": "errors",
    "MeasurementError": "errors",
    "MemoryTimeline": "measure",
    "OptimalityGap": "gap",
    "OptionError": "errors",
    "PlanError": "errors",
    "RematError": "errors",
    "RematReport": "report",
    "RematWarning": "errors",
    "ValueDecision": "report",
    "VerificationError": "errors",
    "clear_reports": "report",
    "frontier": "model_frontier",
    "measure_peak_bytes": "measure",
    "memory_timeline": "measure",
    "optimality_gap": "gap",
    "partitioner": "lower",
    "reports": "report",
    "set_default_options": "options",
}

__all__ = [
    "Frontier",
    "FrontierPoint",
    "InfeasibleBudgetError",
    "MeasurementError",
    "MemoryTimeline",
    "OptimalityGap",
    "OptionError",
    "PlanError",
    "RematError",
    "RematReport",
    "RematWarning",
    "ValueDecision",
    "VerificationError",
    "clear_reports",
    "frontier",
    "measure_peak_bytes",
    "memory_timeline",
    "optimality_gap",
    "partitioner",
    "reports",
    "set_default_options",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remat_pass' has no attribute {name!r}")
    return getattr(import_module(f"remat_pass.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
