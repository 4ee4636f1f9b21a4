"""A language model trains on real text inside a memory budget: `scripts/demo`.

One process, one seed, the same batches, three ways to compile the same model:

    (a)  backend="inductor"                         the peak to halve, the time and the losses to keep
    (b)  backend="remat", half the peak of (a)
    (c)  backend="remat", the least reachable peak, which (b) reports, plus a tenth

The demo prints a table and a verdict per check, writes `results.json` and a self-contained `index.html`, and exits
with status 1 if a check failed. Inductor's cache is a fresh folder, so compile times are those of a first run.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import demo_page, demo_results
from benchmarks.demo_results import mib
from benchmarks.demo_training import Batch, Run, Settings, compile_and_observe, new_model, train
from benchmarks.models import Llama, LlamaConfig
from benchmarks.text import Text, batches, standard_library_text
from remat_pass.errors import InfeasibleBudgetError

_QUICK = Settings(
    model=LlamaConfig(layers=2, width=64, hidden=192, heads=2, context=128), batch=8, steps=6, warmup_steps=2
)


def main() -> int:
    """Run the demo as the command line says; the exit status is 0 if every check passed."""
    started = time.perf_counter()
    arguments = _parse_arguments()
    settings = _settings(arguments)
    console = Console()
    text = standard_library_text()
    model = new_model(settings)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{parameters / 1e6:.1f} M parameters, {settings.model.layers} layers; batches of {settings.batch} x "
        f"{settings.model.context} bytes of {text.files:,} files of Python's standard library.",
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="remat_demo_") as cache, _progress(console) as progress:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        runs = _compile_all(model, _batches(text, settings, count=1)[0], settings, progress)
        _train_all(runs, _batches(text, settings, count=settings.steps), settings, progress)
    described = [demo_results.describe_run(run, runs[0]) for run in runs]
    results: dict[str, Any] = {
        "command": shlex.join(["scripts/demo", *sys.argv[1:]]),
        "seconds": time.perf_counter() - started,
        "machine": demo_results.describe_machine(settings),
        "settings": dataclasses.asdict(settings),
        "parameters": parameters,
        "text": demo_results.describe_text(text),
        "runs": described,
        "checks": [dataclasses.asdict(check) for check in demo_results.check(described)],
    }
    demo_page.print_results(results, console)
    page = demo_page.write(results, arguments.output)
    console.print(f"The demo took {results['seconds']:.0f} s. Curves and all figures: {page}", soft_wrap=True)
    return 0 if all(check["passed"] for check in results["checks"]) else 1


def _compile_all(model: Llama, batch: Batch, settings: Settings, progress: Progress) -> list[Run]:
    """Runs (a), (b) and (c), each observed, in this order because each budget comes from the run before."""

    def compile_one(label: str, title: str, budget_bytes: int | None) -> Run:
        within = "" if budget_bytes is None else f", budget {mib(budget_bytes)}"
        task = progress.add_task(f"({label}) compiling: {title}{within}", total=None)
        try:
            run = compile_and_observe(label, title, model, batch, settings, budget_bytes=budget_bytes)
        finally:
            progress.remove_task(task)
        progress.console.print(
            f"({label}) {title}{within}: compiled in {run.compile_seconds:.0f} s, "
            f"measured peak {mib(run.measured_peak_bytes)}",
            soft_wrap=True,
        )
        return run

    a = compile_one("a", "inductor", None)
    half_bytes = a.measured_peak_bytes // 2
    try:
        b = compile_one("b", "remat, half of (a)", half_bytes)
    except Exception as error:
        infeasible = _infeasible_budget(error)
        if infeasible is None:
            raise
        progress.console.print(
            f"[yellow]Half of (a), {mib(half_bytes)}, is out of reach: no plan is below "
            f"{mib(infeasible.least_peak_bytes)}. (b) trains at that least peak instead.[/]",
            soft_wrap=True,
        )
        b = compile_one("b", "remat, least peak", infeasible.least_peak_bytes)
    assert b.report is not None
    c = compile_one("c", "remat, least peak + 10%", b.report.least_peak_bytes * 11 // 10)
    return [a, b, c]


def _infeasible_budget(error: BaseException | None) -> InfeasibleBudgetError | None:
    """The planner's refusal inside what `torch.compile` raised around it, or None if it is another error."""
    while error is not None and not isinstance(error, InfeasibleBudgetError):
        error = getattr(error, "inner_exception", None) or error.__cause__
    return error


def _train_all(runs: list[Run], all_batches: list[Batch], settings: Settings, progress: Progress) -> None:
    task = progress.add_task("training, in turns", total=len(all_batches))

    def show() -> None:
        losses = "  ".join(f"({run.label}) {run.losses[-1]:.4f}" for run in runs)
        progress.update(task, advance=1, description=f"training, in turns: loss {losses}")

    train(runs, all_batches, settings, show)


def _batches(text: Text, settings: Settings, *, count: int) -> list[Batch]:
    return list(
        batches(
            text,
            count=count,
            batch=settings.batch,
            length=settings.model.context,
            seed=settings.seed,
            device=torch.device(settings.device),
        )
    )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = _QUICK if arguments.quick else Settings()
    changes = {"device": arguments.device, "steps": arguments.steps or settings.steps}
    return dataclasses.replace(settings, **changes)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda" (default: cpu)')
    parser.add_argument("--steps", type=int, help=f"training steps of each run (default: {Settings().steps})")
    parser.add_argument("--output", type=Path, default=Path("demo_report"), help="folder (default: demo_report)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: does everything work?")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps {arguments.steps}: at least 1 is needed")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
