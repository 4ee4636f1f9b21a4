"""What the demo found: the figures of each run, the checks they must pass, and the machine they hold for.

The dictionaries made here are the demo's `results.json`; the table and the page are drawn from them alone.
"""

import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo_training import Run, Settings
from benchmarks.text import Text
from remat_pass.kept_times import processor_name

FIRST_LOSS_LIMIT = 1e-5
"""Relative difference allowed at step 1: same weights, same batch, other kernels."""
LOSS_LIMIT = 1e-3
"""Relative difference allowed at any step: rounding grows as training amplifies it."""

_REPORT_FIELDS = (
    "budget_bytes",
    "predicted_peak_bytes",
    "unconstrained_peak_bytes",
    "least_peak_bytes",
    "saved_bytes",
    "recompute_ns",
    "planning_seconds",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One claim of the demo, whether it held, and the figures that decided."""

    claim: str
    passed: bool
    figures: str


def mib(count: int | None) -> str:
    """Bytes for people: "169.7 MiB", or a dash for None."""
    return "–" if count is None else f"{count / 2**20:,.1f} MiB"


def describe_run(run: Run, reference: Run) -> dict[str, Any]:
    """All figures of a run; `reference` is the run that slowdown and losses are compared with."""
    planned = {name: getattr(run.report, name) if run.report else None for name in _REPORT_FIELDS}
    median_seconds = statistics.median(run.step_seconds)
    predicted = planned["predicted_peak_bytes"]
    return {
        "label": run.label,
        "title": run.title,
        **planned,
        "measured_peak_bytes": run.measured_peak_bytes,
        "prediction_error": None if predicted is None else predicted / run.measured_peak_bytes - 1,
        "peak_of_reference": run.measured_peak_bytes / reference.measured_peak_bytes,
        "median_step_seconds": median_seconds,
        "slowdown": median_seconds / statistics.median(reference.step_seconds) - 1,
        "compile_seconds": run.compile_seconds,
        "losses": run.losses,
        "loss_differences": _relative_differences(run.losses, reference.losses),
        "step_seconds": run.step_seconds,
        "timeline": asdict(run.timeline),
    }


def check(runs: list[dict[str, Any]]) -> list[Check]:
    """What must hold for every run with a budget; figures that are not numbers fail."""
    checks = []
    for run in runs:
        if run["budget_bytes"] is None:
            continue
        label, measured, budget = run["label"], run["measured_peak_bytes"], run["budget_bytes"]
        first, largest = run["loss_differences"][0], max(run["loss_differences"])
        checks += [
            Check(f"({label}) stays within its budget", measured <= budget, f"{mib(measured)} of {mib(budget)}"),
            Check(
                f"({label}) starts with the loss of (a)",
                first <= FIRST_LOSS_LIMIT,
                f"relative difference {first:.1e}, at most {FIRST_LOSS_LIMIT:.0e}",
            ),
            Check(
                f"({label}) trains like (a)",
                largest <= LOSS_LIMIT,
                f"largest relative difference {largest:.1e}, at most {LOSS_LIMIT:.0e}",
            ),
        ]
    return checks


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Hardware, versions and commit that the figures hold for."""
    device = torch.device(settings.device)
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "remat_pass": version("remat-pass"),
        "commit": _commit(),
    }


def describe_text(text: Text) -> dict[str, Any]:
    """Where the tokens came from."""
    return {"source": "Python standard library", "files": text.files, "bytes": len(text.tokens), "sha256": text.sha256}


def _relative_differences(losses: list[float], reference: list[float]) -> list[float]:
    """Per step; NaN counts as infinitely far, because `max` would lose it."""
    pairs = zip(losses, reference, strict=True)
    differences = [abs(loss - expected) / abs(expected) for loss, expected in pairs]
    return [difference if difference == difference else float("inf") for difference in differences]


def _commit() -> str | None:
    """The checked-out commit, "+" behind it if files differ from it; None outside of a repository."""
    root = Path(__file__).parent.parent
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
