"""The frontier benchmark: measured peak against step time of every way to save activation memory, on the same models.

    python -m benchmarks.frontier --quick             # the Llama-style model, about 15 minutes on 2 cores
    python -m benchmarks.frontier --full              # every model and contestant, hours
    python -m benchmarks.frontier --paste             # what --quick found into the README

The same command goes on where a crash stopped it. Results, as JSON, Markdown and figures, come to
`benchmarks/results/`. How it measures is told in `benchmarks/contest/driver.py`, what it compares in
`benchmarks/contest/summary.py`; `models.py` and `contestants.py` beside them are where to add one.
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

from benchmarks.contest import figures, markdown, readme, results
from benchmarks.contest.allocators import allocators_for
from benchmarks.contest.campaign import Run, measure, positive
from benchmarks.contest.contestants import CONTESTANTS
from benchmarks.contest.driver import Pace
from benchmarks.contest.jax_rows import JAX
from benchmarks.contest.models import MODELS
from benchmarks.contest.results import Meta, Row
from benchmarks.contest.selection import Choice

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_QUICK_CONTESTANTS = ("eager", "inductor", "knob dp", "checkpoint eager", "checkpoint inductor", "remat")
_ROUNDS = {"quick": 12, "full": 20}
_TEST_MODEL = "tiny"


def main() -> int:
    """Run and write what the command line asks for."""
    arguments = _parse_arguments()
    # Ends by way of an exception, so that workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if arguments.quick or arguments.full:
        run = _read(arguments)
        measure(run, partial(_write, run))
        print(f"\nResults: {_shown(run.output.with_suffix('.md'))}")
    if arguments.paste:
        paste(arguments.output or _RESULTS / "frontier_quick", arguments.readme)
    return 0


def paste(output: Path, target: Path) -> None:
    """Put the table and the figure of a results file into the README.

    Args:
        output: The results file, with or without ".json".
        target: The README.

    Raises:
        ValueError: The README has no place for it, or the file is no results file.
    """
    meta, rows = results.read(output.with_suffix(".json"))
    figure = _figure_path(output.resolve(), rows[0].model)
    readme.paste(target, readme.block(meta, rows, figure.relative_to(target.resolve().parent).as_posix()))


def _write(run: Run, meta: Meta, rows: Sequence[Row]) -> None:
    """The results so far: JSON, Markdown and figures."""
    run.output.parent.mkdir(parents=True, exist_ok=True)
    results.write(run.output.with_suffix(".json"), meta, rows)
    drawn: dict[str, str] = {}
    for model in dict.fromkeys(row.model for row in rows):
        path = _figure_path(run.output, model)
        chosen = [row for row in rows if row.model == model]
        if figures.write(chosen, run.allocators[0].name, MODELS[model].title, path):
            drawn[model] = path.name
    run.output.with_suffix(".md").write_text(markdown.page(meta, rows, drawn))


def _figure_path(output: Path, model: str) -> Path:
    return output.with_name(f"{output.stem}_{model}.svg")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _read(arguments: argparse.Namespace) -> Run:
    size = "quick" if arguments.quick else "full"
    quick = size == "quick"
    all_models = [name for name in MODELS if name != _TEST_MODEL]
    names = arguments.contestants or (_QUICK_CONTESTANTS if quick else (*CONTESTANTS, JAX))
    pace = Pace(rounds=arguments.rounds or _ROUNDS[size])
    return Run(
        size=size,
        models=tuple(arguments.models or (all_models[:1] if quick else all_models)),
        # The anchor runs in every group, asked for or not, so it has its row too.
        contestants={name: c for name, c in CONTESTANTS.items() if name in names or name == "inductor"},
        jax=JAX in names,
        precisions=tuple(arguments.precision or (("fp32",) if quick else ("fp32", "bf16"))),
        device=arguments.device,
        allocators=allocators_for(arguments.device, only_caching=quick or arguments.only_caching),
        on_device=not arguments.only_gpu_lowering,
        gpu_lowering=not arguments.no_gpu_lowering,
        choice=Choice(arguments.settings and frozenset(arguments.settings), arguments.points),
        pace=replace(pace, alive=arguments.alive or pace.alive),
        output=arguments.output or _RESULTS / ("frontier_quick" if quick else "frontier"),
        keep=arguments.keep,
        command=shlex.join(["python", "-m", "benchmarks.frontier", *sys.argv[1:]]),
    )


def _labels() -> list[str]:
    """Of all settings in the full size, the only one of a contestant left out."""
    return list(dict.fromkeys(p.label for c in CONTESTANTS.values() for p in c.points("full") if p.label))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=(__doc__ or "").partition("\n")[0]
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one model, few points: about 15 minutes on 2 cores")
    size.add_argument("--full", action="store_true", help="all models, contestants and points: hours")
    add: Any = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}")
    add("--contestants", nargs="+", choices=[*CONTESTANTS, JAX], metavar="NAME", help="of those in contestants.py")
    add("--precision", nargs="+", choices=("fp32", "bf16"))
    add("--settings", nargs="+", choices=_labels(), metavar="LABEL", help="only these, such as 0.15 none least")
    add("--points", type=positive, help="at most so many settings of each contestant, spread evenly")
    add("--rounds", type=positive, help=f"timed steps of each point (default: {_ROUNDS})")
    add("--alive", type=positive, help=f"workers at a time, the anchor included (default: {Pace().alive})")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--only-caching", action="store_true", help="leave out the times under the default allocator, as --quick does")
    lowering = parser.add_mutually_exclusive_group()
    lowering.add_argument("--no-gpu-lowering", action="store_true", help="leave out the rig for GPU code")
    lowering.add_argument("--only-gpu-lowering", action="store_true", help="nothing but the rig for GPU code")
    add("--output", type=Path, help="results file without ending (default: benchmarks/results/frontier or ..._quick)")
    add("--keep", action="store_true", help="reuse rows that another commit, version or machine made")
    add("--paste", action="store_true", help="put the results into the README; alone: those that are there")
    add("--readme", type=Path, default=_ROOT / "README.md")
    arguments = parser.parse_args()
    if not (arguments.quick or arguments.full or arguments.paste):
        parser.error("say --quick, --full or --paste")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
