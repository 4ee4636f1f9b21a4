"""Peaks against budgets on two models under eager lowering: predicted, measured, and gradients against eager.

    python -m benchmarks.peaks             # prints a Markdown table per model
    python -m benchmarks.peaks --inductor  # the Llama-style model under Inductor, down to its least peak

The models are "llama" and "deep_llama" of `benchmarks.contest.models`, the latter that of
https://github.com/pytorch/pytorch/issues/197838, both fp32. Peaks are of forward plus backward with `.grad` None
before, so returned gradients count once.
"""

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import remat_pass
from benchmarks.contest.models import MODELS

LLAMA_FRACTIONS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)
DEEP_FRACTIONS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.175, 0.15, 0.125, 0.115)


def gradients_and_peak(step: Callable[..., Tensor], model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[list, int]:
    """Gradients of one step, and the measured peak of another."""

    def train() -> None:
        step(*batch).backward()
        model.zero_grad(set_to_none=True)

    model.zero_grad(set_to_none=True)
    step(*batch).backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients, remat_pass.measure_peak_bytes(train)


def table(name: str, model: nn.Module, batch: tuple[Tensor, ...], budgets: tuple, lowering: str) -> None:
    """Print one row per budget."""
    wanted, eager_peak = gradients_and_peak(model, model, batch)
    print(f"\n{name}, lowering {lowering}; uncompiled peak {eager_peak / 1e6:.1f} MB\n")
    print("| budget | MB | predicted MB | measured MB | error | recompute ms (estimate) | gradients | planning s |")
    print("|---|---|---|---|---|---|---|---|")
    for budget in budgets:
        torch._dynamo.reset()
        remat_pass.clear_reports()
        options = {"memory_budget": budget, "lowering": lowering, "on_infeasible": "warn"}
        got, measured = gradients_and_peak(torch.compile(model, backend="remat", options=options), model, batch)
        report = remat_pass.reports()[-1]
        same = all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True) if w is not None)
        furthest = max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted, strict=True))
        error = report.predicted_peak_bytes / measured - 1
        print(
            f"| {budget} | {report.budget_bytes / 1e6:.1f} | {report.predicted_peak_bytes / 1e6:.1f} "
            f"| {measured / 1e6:.1f}{' ABOVE BUDGET' if measured > report.budget_bytes else ''} | {error:+.3%} "
            f"| {report.recompute_ns / 1e6:.0f} | {'bitwise' if same else f'within {furthest:.0e}'} "
            f"| {report.planning_seconds:.1f} |",
            flush=True,
        )
    print(f"\nleast budget accepted: {remat_pass.reports()[-1].least_peak_bytes / 1e6:.1f} MB")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inductor", action="store_true", help="the Llama-style model under Inductor instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    if arguments.inductor:
        table("Llama-style, 8 layers", *MODELS["llama"].build(), (1.0, 0.6, 0.5, 0.01), "inductor")
        return
    table("Llama-style, 8 layers", *MODELS["llama"].build(), LLAMA_FRACTIONS, "eager")
    table("pytorch#197838, 32 layers", *MODELS["deep_llama"].build(), DEEP_FRACTIONS, "eager")


if __name__ == "__main__":
    main()
