"""Code for an H100 without one: our plans at each of the peaks that PyTorch's knob reaches.

The model is Llama-style with 4 layers, width 512, hidden 1408, 8 heads, vocabulary 1024, batch 8 x 1024 tokens. The rig
in `tests/support/gpu_rig` generates the code, runs its wrappers on fake tensors and counts what they allocate and the
FLOPs of their library kernels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.contest.channel import Worker
from benchmarks.contest.goals import Goal
from benchmarks.contest.lowering import RIG
from benchmarks.models import Llama, LlamaConfig
from benchmarks.planning.section import Row, Run, Section, Table, mb, none_of

_KNOB = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
_TRIAL_KNOB = (1.0, 0.1)
_PRECISIONS = ("fp32", "bf16")
_SIZES = LlamaConfig(vocabulary=1024, layers=4, width=512, hidden=1408, heads=8, context=1024)
_TRIAL_SIZES = LlamaConfig(vocabulary=64, layers=2, width=64, hidden=176, heads=2, context=128)
_BATCH = 8
_LEAST_RATIO = 0.65
_TIMEOUT_SECONDS = 600.0
_FIGURES = ("peak_bytes", "returned_gradient_bytes", "forward_flops", "backward_flops")


def build(trial: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model and a batch, without contents; called by the rig."""
    sizes = _TRIAL_SIZES if trial else _SIZES
    with torch.device("meta"):
        tokens = torch.empty(_BATCH, sizes.context, dtype=torch.int64)
        return Llama(sizes), (tokens, torch.empty_like(tokens))


def measure(run: Run) -> list[Row]:
    """Rows of the knob, and of ours: at its peaks and the least."""
    rows = []
    for precision in _PRECISIONS:
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(run.scratch / "rig_cache"), "KINETO_LOG_LEVEL": "6"}
        with Worker(RIG, cache, run.scratch / f"rig_{precision}.log") as rig:
            rows += _points(run, rig, precision)
    return rows


def _points(run: Run, rig: Worker, precision: str) -> Iterator[Row]:
    peaks: dict[int, float] = {}
    for budget in _TRIAL_KNOB if run.trial else _KNOB:
        row = _row(run, rig, precision, {"kind": "knob", "budget": budget}, f"knob {budget:g}")
        peaks.setdefault(row.get("peak_bytes", 0), budget)
        yield {**row, "family": "knob", "budget": budget}
    for peak_bytes, budget in peaks.items():
        ours = {"kind": "remat", "memory_budget": peak_bytes, "on_infeasible": "warn"}
        if peak_bytes:
            yield {**_row(run, rig, precision, ours, f"ours at knob {budget:g}"), "family": "ours", "budget": budget}
    least = {"kind": "remat", "memory_budget": 1, "on_infeasible": "warn"}
    yield {**_row(run, rig, precision, least, "ours, least"), "family": "ours", "budget": None}


def _row(run: Run, rig: Worker, precision: str, contestant: Row, name: str) -> Row:
    run.doing(f"{precision}: {name}")
    request = {
        "model": f"{__name__}:build",
        "arguments": {"trial": run.trial},
        "precision": precision,
        "contestant": contestant,
    }
    answer = rig.ask(request, _TIMEOUT_SECONDS)
    row = {"precision": precision, "name": name, "asked_bytes": contestant.get("memory_budget")}
    if not answer["ok"]:
        return {**row, "failed": answer["error"].splitlines()[0]}
    report = answer["report"] or {}
    return {
        **row,
        **{figure: answer["result"][figure] for figure in _FIGURES},
        "predicted_bytes": report.get("predicted_peak_bytes"),
        "planning_seconds": report.get("planning_seconds"),
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """One per precision: the knob's points with ours at the same peak beside them."""
    headings = (
        "knob",
        "its peak MiB",
        "its backward TFLOP",
        "our peak MiB",
        "our backward TFLOP",
        "FLOPs",
        "planning s",
    )
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        knob, ours, least = _split(rows, precision)
        cells = [_cells(f"{row['budget']:g}", row, _at(ours, row)) for row in knob]
        cells += [_cells("our least", None, least)] if least else []
        failed = [
            f"{row['name']}: {row['failed']}" for row in rows if row["precision"] == precision and "failed" in row
        ]
        gradients = next((r["returned_gradient_bytes"] for r in knob), None)
        note = f"Returned gradients, part of every peak: {mb(gradients)} MB. {'; '.join(failed)}"
        found.append(Table(f"GPU lowering, {precision}", headings, tuple(cells), note.strip()))
    return found


def _cells(name: str, knob: Row | None, ours: Row | None) -> tuple[str, ...]:
    def figures(row: Row | None) -> tuple[str, str]:
        return (
            ("–", "–") if row is None else (f"{row['peak_bytes'] / 2**20:,.0f}", f"{row['backward_flops'] / 1e12:.3f}")
        )

    ratio = f"{ours['backward_flops'] / knob['backward_flops']:.3f}x" if ours and knob else "–"
    seconds = f"{ours['planning_seconds']:.1f}" if ours and ours["planning_seconds"] is not None else "–"
    return name, *figures(knob), *figures(ours), ratio, seconds


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Per precision: FLOPs at each peak of the knob, and the lowest peaks."""
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        knob, ours, least = _split(rows, precision)
        worse = [f"knob {row['budget']:g}" for row in knob if not _is_no_worse(row, _at(ours, row))]
        found.append(none_of("no more backward FLOPs at any of the knob's peaks", precision, worse, len(knob)))
        goal = f"lowest peak <= {_LEAST_RATIO:g}x the knob's lowest"
        lowest = min((row["peak_bytes"] for row in knob), default=None)
        if lowest is None or least is None:
            found.append(Goal(goal, precision, "not measured", None))
            continue
        figure = f"{least['peak_bytes'] / lowest:.3f}x ({mb(least['peak_bytes'])} of {mb(lowest)} MB)"
        found.append(Goal(goal, precision, figure, least["peak_bytes"] <= _LEAST_RATIO * lowest))
    return found


def _is_no_worse(knob: Row, ours: Row | None) -> bool:
    return ours is not None and all(ours[name] <= knob[name] for name in ("peak_bytes", "backward_flops"))


def _split(rows: Sequence[Row], precision: str) -> tuple[list[Row], list[Row], Row | None]:
    """The knob's rows, ours at its peaks, and our least; without those that failed."""
    good = [row for row in rows if row["precision"] == precision and "failed" not in row]
    ours = [row for row in good if row["family"] == "ours"]
    least = next((row for row in ours if row["budget"] is None), None)
    return [row for row in good if row["family"] == "knob"], [r for r in ours if r["budget"] is not None], least


def _at(ours: Sequence[Row], knob: Row) -> Row | None:
    """Ours with the knob's peak as its budget."""
    return next((row for row in ours if row["asked_bytes"] == knob["peak_bytes"]), None)


SECTION = Section("gpu", "Code for a GPU, beside PyTorch's knob", measure, tables, goals)
