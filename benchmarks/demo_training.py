"""The three runs of the demo: compile each, observe the memory of one step, then train them in turn.

    compile a ─► observe ─► budget of b ─► compile b ─► observe ─► budget of c ─► compile c ─► observe
                                                                                                  │
    every run starts from the same weights and sees the same batches          a b c │ b c a │ c a b │ ...

The runs take turns within every training step, and another one begins each time, so that a machine that slows down
or speeds up does so for all of them alike. The timed part is forward plus backward, as is the observed one: `.grad` is
None before, so the gradients that backward returns are new memory and count once. The optimizer is outside of both.
"""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import remat_pass
from benchmarks.models import Llama, LlamaConfig

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what the demo computes."""

    model: LlamaConfig = field(default_factory=lambda: LlamaConfig(context=256))
    batch: int = 8
    steps: int = 30
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    """Steps over which the learning rate rises to its full value, linearly."""
    seed: int = 0
    device: str = "cpu"


@dataclass(slots=True)
class Run:
    """One of the compiled models, what was observed of it, and its training so far."""

    label: str
    title: str
    compiled: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    compile_seconds: float
    measured_peak_bytes: int
    timeline: remat_pass.MemoryTimeline
    report: "remat_pass.RematReport | None"
    """What the backend planned; None for Inductor."""
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    """Forward plus backward of each training step."""


def new_model(settings: Settings) -> Llama:
    """The model that every run copies, on the device, with weights that depend on the seed alone."""
    torch.manual_seed(settings.seed)
    return Llama(settings.model).to(settings.device)


def compile_and_observe(
    label: str, title: str, model: Llama, batch: Batch, settings: Settings, *, budget_bytes: int | None
) -> Run:
    """Compile a copy of `model`, with backend "remat" if there is a budget, and measure one step on `batch`.

    Raises:
        torch._dynamo.exc.BackendCompilerFailed: around what the backend raised, such as `InfeasibleBudgetError`.
    """
    model = copy.deepcopy(model)
    if budget_bytes is None:
        compiled = torch.compile(model, backend="inductor")
    else:
        compiled = torch.compile(model, backend="remat", options={"memory_budget": budget_bytes})
    remat_pass.clear_reports()

    def step() -> None:
        compiled(*batch).backward()
        model.zero_grad(set_to_none=True)

    started = time.perf_counter()
    step()
    compile_seconds = time.perf_counter() - started
    return Run(
        label=label,
        title=title,
        compiled=compiled,
        optimizer=torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1),
        compile_seconds=compile_seconds,
        measured_peak_bytes=remat_pass.measure_peak_bytes(step, device=settings.device),
        timeline=remat_pass.memory_timeline(step, warmup_steps=0, device=settings.device),
        report=None if budget_bytes is None else remat_pass.reports()[-1],
    )


def train(runs: list[Run], batches: Iterable[Batch], settings: Settings, on_step: Callable[[], None]) -> None:
    """Train all runs on the same batches, taking turns; `on_step` is called after each step of all runs."""
    for index, batch in enumerate(batches):
        first = index % len(runs)
        for run in runs[first:] + runs[:first]:
            _train_step(run, batch, settings.learning_rate * min(1.0, (index + 1) / settings.warmup_steps))
        on_step()


def _train_step(run: Run, batch: Batch, learning_rate: float) -> None:
    _wait_for_device(batch)
    started = time.perf_counter()
    loss = run.compiled(*batch)
    loss.backward()
    _wait_for_device(batch)
    run.step_seconds.append(time.perf_counter() - started)
    run.losses.append(loss.item())
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def _wait_for_device(batch: Batch) -> None:
    if batch[0].is_cuda:
        torch.cuda.synchronize(batch[0].device)
