"""The frontier benchmark: measured peak against step time of every way to save activation memory, on the same models.

    python -m benchmarks.frontier --quick             # the Llama-style model, about 20 minutes on 2 cores
    python -m benchmarks.frontier --full              # every model and contestant, hours
    python -m benchmarks.frontier --paste             # what --quick found into the README

The same command goes on where a crash stopped it. Results, as JSON, Markdown and figures, come to
`benchmarks/results/`. How it measures is told in `benchmarks/contest/driver.py`, what it compares in
`benchmarks/contest/summary.py`; `models.py` and `contestants.py` beside them are where to add one.
"""

import argparse
import datetime
import hashlib
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contest import figures, machine, markdown, readme, results
from benchmarks.contest.allocators import Allocator, allocators_for
from benchmarks.contest.contestants import CONTESTANTS, Contestant
from benchmarks.contest.driver import Driver, Pace
from benchmarks.contest.jax_rows import JAX, jax_rows
from benchmarks.contest.lowering import Lowering
from benchmarks.contest.models import MODELS
from benchmarks.contest.progress import Display
from benchmarks.contest.results import Journal, Meta, Row
from benchmarks.contest.selection import matched_tasks, tasks_of
from benchmarks.contest.tasks import GPU_LOWERING, Setting, Task

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_QUICK_CONTESTANTS = ("eager", "inductor", "knob dp", "checkpoint eager", "checkpoint inductor", "remat")
_ROUNDS = {"quick": 15, "full": 20}
_TEST_MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class Run:
    """What the command line asks for."""

    size: str
    models: tuple[str, ...]
    contestants: dict[str, Contestant]
    jax: bool
    precisions: tuple[str, ...]
    device: str
    allocators: list[Allocator]
    on_device: bool
    gpu_lowering: bool
    point_count: int | None
    pace: Pace
    output: Path
    keep: bool
    command: str

    def settings(self) -> list[Setting]:
        """In the order in which they run: each model on the device, then through the rig."""
        targets = [self.device] * self.on_device + [GPU_LOWERING] * self.gpu_lowering
        return [Setting(m, p, t) for m in self.models for p in self.precisions for t in targets]

    def tasks(self, setting: Setting) -> list[Task]:
        """Those known beforehand."""
        return tasks_of(setting, self.contestants, self.size, self.point_count)


def main() -> int:
    """Run and write what the command line asks for."""
    arguments = _parse_arguments()
    # Ends by way of an exception, so that workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if arguments.quick or arguments.full:
        run = _read(arguments)
        _measure(run)
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


def _measure(run: Run) -> None:
    described = machine.describe(run.device)
    meta: Meta = {
        "command": run.command,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": described,
        "allocators": [{"name": a.name, "title": a.title} for a in run.allocators],
        "models": {model.name: model.title for model in MODELS.values()},
    }
    identity = machine.identity(described)
    folder = _scratch(run.output)
    journal = Journal(folder / "journal.jsonl", identity, keep=run.keep)
    scratch = _only(folder, hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8])
    with Display(_expected(run, journal)) as display:
        if journal.dropped:
            display.console.print(f"{journal.dropped} rows of another commit, version or machine are measured anew.")
        for setting in run.settings():
            _measure_setting(run, setting, journal, scratch, display)
            _write(run, meta, journal)
        if run.jax and run.on_device and run.device == "cpu":
            for model in run.models:
                jax_rows(model, journal, display, timeout_seconds=run.pace.compile_timeout_seconds)
                _write(run, meta, journal)


def _measure_setting(run: Run, setting: Setting, journal: Journal, scratch: Path, display: Display) -> None:
    def matched(rows: Sequence[Row]) -> list[Task]:
        found = matched_tasks(rows, setting, run.contestants)
        display.expect(sum(journal.find(task) is None for task in found))
        return found

    if setting.target == GPU_LOWERING:
        timeout = run.pace.compile_timeout_seconds
        lowering = Lowering(journal, scratch, display, run.contestants, timeout_seconds=timeout)
        lowering.run(setting, run.tasks(setting), matched)
        return
    driver = Driver(journal, scratch, run.pace, display)
    draws = MODELS[setting.model].draws
    driver.run(setting, run.tasks(setting), run.allocators, draws=draws, matched=matched)


def _expected(run: Run, journal: Journal) -> int:
    """Rows to be made, as far as is known beforehand."""
    count = 0
    for setting in run.settings():
        names = [None] if setting.target == GPU_LOWERING else [allocator.name for allocator in run.allocators]
        count += sum(journal.find(task, name) is None for task in run.tasks(setting) for name in names)
    return count


def _write(run: Run, meta: Meta, journal: Journal) -> None:
    """The results so far: JSON, Markdown and figures. Rows of other runs in the same journal are kept."""
    rows = results.merge(journal.rows)
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


def _scratch(output: Path) -> Path:
    """The folder for the journal, caches and logs, beside the results and out of git's sight."""
    folder = output.with_name(f"{output.stem}.scratch")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def _only(folder: Path, name: str) -> Path:
    """The subfolder; others, with reference gradients and caches that hold for something else, are removed."""
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)
    return folder / name


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
        point_count=arguments.points,
        pace=replace(pace, alive=arguments.alive or pace.alive),
        output=arguments.output or _RESULTS / ("frontier_quick" if quick else "frontier"),
        keep=arguments.keep,
        command=shlex.join(["python", "-m", "benchmarks.frontier", *sys.argv[1:]]),
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=(__doc__ or "").partition("\n")[0]
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one model, few points: about 20 minutes on 2 cores")
    size.add_argument("--full", action="store_true", help="all models, contestants and points: hours")
    add: Any = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}")
    add("--contestants", nargs="+", choices=[*CONTESTANTS, JAX], metavar="NAME", help="of those in contestants.py")
    add("--precision", nargs="+", choices=("fp32", "bf16"))
    add("--points", type=_positive, help="at most so many settings of each contestant, spread evenly")
    add("--rounds", type=_positive, help=f"timed steps of each point (default: {_ROUNDS})")
    add("--alive", type=_positive, help=f"workers at a time, the anchor included (default: {Pace().alive})")
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 is needed")
    return value


if __name__ == "__main__":
    sys.exit(main())
