"""Peaks against budgets on two models under eager lowering: predicted, measured, and gradients against eager.

    python -m benchmarks.peaks             # prints a Markdown table per model
    python -m benchmarks.peaks --inductor  # the Llama-style model under Inductor, down to its least peak

The models are the 8-layer Llama-style one (width 256, hidden 704, 4 heads, vocabulary 512, batch 2 x 512 tokens) and
that of https://github.com/pytorch/pytorch/issues/197838 (HF Llama, 32 layers, batch 2 x 1024), both fp32. Peaks are of
forward plus backward with `.grad` None before, so returned gradients count once.
"""

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import remat_pass
from benchmarks.models import Llama, LlamaConfig

LLAMA_FRACTIONS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)
DEEP_FRACTIONS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.175, 0.15, 0.125, 0.115)


class SummedHiddenState(nn.Module):
    """An HF model whose loss is the sum of its last hidden state, as in pytorch#197838."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """The loss for token ids (batch, length)."""
        return self.model(input_ids=ids).last_hidden_state.sum()


def llama_style() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The 8-layer model and its batch."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocabulary=512, layers=8, width=256, hidden=704, heads=4, context=512))
    return model, (torch.randint(0, 512, (2, 512)), torch.randint(0, 512, (2, 512)))


def deep_llama() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of pytorch#197838 and its batch."""
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 32, "vocab_size": 1000}
    model = LlamaModel(HfConfig(**sizes, num_attention_heads=8, num_key_value_heads=8, use_cache=False))
    return SummedHiddenState(model), (torch.randint(0, 1000, (2, 1024)),)


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
        table("Llama-style, 8 layers", *llama_style(), (1.0, 0.6, 0.5, 0.01), "inductor")
        return
    table("Llama-style, 8 layers", *llama_style(), LLAMA_FRACTIONS, "eager")
    table("pytorch#197838, 32 layers", *deep_llama(), DEEP_FRACTIONS, "eager")


if __name__ == "__main__":
    main()
