"""The prediction benchmark: what our backend says of peak and time under Inductor, beside what is measured.

    python -m benchmarks.prediction                                     # everything, hours on 2 cores
    python -m benchmarks.prediction --models gpt2 --no-gpu-lowering     # part of it; other rows stay in the results
    python -m benchmarks.prediction --rows benchmarks/results/frontier_quick.json   # of what was measured before

Rows are made as `benchmarks.frontier` makes them: on the CPU for a third of the models, and for all of them from the
rig for GPU code without a GPU, where peaks are counted. Each model runs without a budget and at four, and PyTorch's
knob at two, to compare compile times with. The same command goes on where a crash stopped it.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contest import accuracy, markdown, results
from benchmarks.contest.allocators import allocators_for
from benchmarks.contest.campaign import Run, measure, positive
from benchmarks.contest.contestants import CONTESTANTS, LEAST_BYTES, Contestant, Point
from benchmarks.contest.driver import Pace
from benchmarks.contest.models import MODELS
from benchmarks.contest.results import Meta, Row
from benchmarks.contest.selection import Choice
from benchmarks.contest.tasks import ANCHOR, OURS

_RESULTS = Path(__file__).parent / "results" / "prediction"
_MODELS = ("hf_llama", "gpt2", "bert", "vit", "t5", "resnet", "unet")
_ON_CPU = ("hf_llama", "gpt2", "resnet")
_FRACTIONS = (0.8, 0.6, 0.45)
_KNOB = "knob dp"
_KNOB_BUDGETS = (0.5, 0.1)


def main() -> int:
    """Measure, or read, and write."""
    arguments = _parse_arguments()
    # Ends by way of an exception, so that workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    output: Path = arguments.output
    if arguments.rows:
        found = [results.read(path) for path in arguments.rows]
        _write(output, found[0][0], [row for _, rows in found for row in rows])
    else:
        for run in _runs(arguments):
            measure(run, partial(_write, output))
    print(f"Results: {output.with_suffix('.md')}")
    return 0


def page(meta: Meta, rows: Sequence[Row]) -> str:
    """The whole page as Markdown."""
    allocator = meta["allocators"][0]["name"]
    parts = ["# Predictions under Inductor", "", markdown.source(meta), "", *_NOTES, _allocator(meta)]
    parts += ["", "## Goals", ""]
    parts += markdown.goal_table(accuracy.goals(rows, allocator))
    for setting in dict.fromkeys(row.setting for row in rows):
        some = [row for row in rows if row.setting == setting]
        if accuracy.peak_errors(some):
            parts += ["", f"## {setting}", "", *_setting_table(some, allocator)]
        failed = [row for row in some if row.why]
        if failed:
            parts += ["", "What failed:", "", *(f"- {row.title}: {row.state}; {row.why}" for row in failed)]
    return "\n".join(parts).rstrip() + "\n"


_NOTES = (
    "Peaks are of forward plus backward with `.grad` None before; MB are 10^6 bytes. "
    "Slowdowns are against our backend without a budget. "
    "Rows of *gpu lowering* come from code generated for an H100 and never run: their peaks are counted.",
)


def _allocator(meta: Meta) -> str:
    first = meta["allocators"][0]
    return f"Times are under the allocator *{first['name']}*: {first['title']}."


def _setting_table(rows: Sequence[Row], allocator: str) -> list[str]:
    slow = {e.row.key: e for e in accuracy.slowdown_errors(rows, allocator)}
    compiled = {t.row.key: t for t in accuracy.compile_times(rows)}
    lines = []
    for error in accuracy.peak_errors(rows):
        row, plan = error.row, error.row.plan or {}
        slowdown, compiling = slow.get(row.key), compiled.get(row.key)
        lines.append(
            (
                row.point,
                markdown.megabytes(plan["budget_bytes"]) + (" (refused)" if error.is_refused else ""),
                markdown.megabytes(error.predicted_bytes),
                markdown.megabytes(error.measured_bytes),
                f"{error.error:+.2%}" + (" **above budget**" if error.exceeds_budget else ""),
                f"{slowdown.predicted:+.1%}" if slowdown else "–",
                f"{slowdown.measured:+.1%}" if slowdown else "–",
                f"{row.compile_seconds:.0f}" if row.compile_seconds else "–",
                f"{plan['planning_seconds']:.1f}",
                f"{compiling.ratio:.2f}x {compiling.theirs.title}" if compiling else "–",
            )
        )
    headings = ("budget", "MB", "predicted MB", "measured MB", "error", "slowdown predicted", "measured")
    return markdown.table((*headings, "compile s", "of it planning", "against"), lines)


def _write(output: Path, meta: Meta, rows: Sequence[Row]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    results.write(output.with_suffix(".json"), meta, rows)
    output.with_suffix(".md").write_text(page(meta, rows))


def _runs(arguments: argparse.Namespace) -> list[Run]:
    """The CPU's models first, then all through the rig."""
    models = arguments.models or _MODELS
    on_cpu = tuple(m for m in models if arguments.models or m in _ON_CPU)
    chosen = [] if arguments.only_gpu_lowering else [(on_cpu, False)]
    chosen += [] if arguments.no_gpu_lowering else [(tuple(models), True)]
    return [_run(arguments, *choice) for choice in chosen]


def _run(arguments: argparse.Namespace, models: tuple[str, ...], gpu_lowering: bool) -> Run:
    return Run(
        size="full",
        models=models,
        contestants=_contestants(),
        jax=False,
        precisions=tuple(arguments.precision),
        device="cpu",
        allocators=allocators_for("cpu", only_caching=True),
        on_device=not gpu_lowering,
        gpu_lowering=gpu_lowering,
        choice=Choice(),
        # One compiles at a time, or compile times would be those of a loaded machine.
        pace=Pace(compiling=1, rounds=arguments.rounds),
        output=arguments.output,
        keep=arguments.keep,
        command=shlex.join(["python", "-m", "benchmarks.prediction", *sys.argv[1:]]),
    )


def _contestants() -> dict[str, Contestant]:
    knob = tuple(Point(f"{b:g}", {"budget": b, "solver": "dp"}) for b in _KNOB_BUDGETS)
    common = {"lowering": "inductor", "on_infeasible": "warn"}
    ours = (
        Point(accuracy.NO_BUDGET, {**common, "memory_budget": None}),
        *(Point(f"{f:g}", {**common, "memory_budget": f}) for f in _FRACTIONS),
        Point("least", {**common, "memory_budget": LEAST_BYTES}),
    )
    return {
        ANCHOR: CONTESTANTS[ANCHOR],
        _KNOB: replace(CONTESTANTS[_KNOB], points=lambda size: knob),
        OURS: replace(CONTESTANTS[OURS], points=lambda size: ours),
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction", description=(__doc__ or "").partition("\n")[0]
    )
    add: Any = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}; on the CPU, too")
    add("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    add("--rounds", type=positive, default=10, help="timed steps of each point")
    lowering = parser.add_mutually_exclusive_group()
    lowering.add_argument("--no-gpu-lowering", action="store_true", help="leave out the rig for GPU code")
    lowering.add_argument("--only-gpu-lowering", action="store_true", help="nothing but the rig for GPU code")
    add("--rows", nargs="+", type=Path, metavar="FILE", help="measure nothing: take rows of `benchmarks.frontier`")
    add("--output", type=Path, default=_RESULTS, help="results file without ending")
    add("--keep", action="store_true", help="reuse rows that another commit, version or machine made")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
