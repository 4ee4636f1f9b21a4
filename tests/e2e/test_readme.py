"""What the README shows is what happens: its example runs and prints such a report, and what it names exists."""

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme_table
from benchmarks.contest.readme import replace_block

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
LABEL = re.compile(r"^  (?P<label>[a-z][a-z ]*?)  +[0-9]", re.MULTILINE)


def example() -> tuple[str, str]:
    """The first Python block and the block behind it, which shows its output."""
    blocks = [(match["language"], match["content"]) for match in FENCED.finditer(README)]
    position = next(i for i, (language, _) in enumerate(blocks) if language == "python")
    assert blocks[position + 1][0] == "text", "the example's output must follow it"
    return blocks[position][1], blocks[position + 1][1]


def run(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    file = folder / "example.py"
    file.write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "REMAT_MEMORY_BUDGET"}
    return subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )


def labels(output: str) -> list[str]:
    return [match["label"] for match in LABEL.finditer(output)]


def mebibytes(label: str, output: str) -> float:
    match = re.search(rf"^ *{label} +([0-9.]+) MiB", output, re.MULTILINE)
    assert match is not None, f"no {label} in:\n{output}"
    return float(match[1])


def test_example_prints_such_a_report(tmp_path: Path) -> None:
    script, shown = example()
    assert '"lowering": "eager"' in script, "Inductor would take minutes here"
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("remat_pass: graph ")
    assert labels(done.stdout) == labels(shown) != []
    for heading in ("action ", "saved ", "recomputed "):
        assert f"\n{heading}" in done.stdout and f"\n{heading}" in shown
    for output in (done.stdout, shown):
        measured, budget = mebibytes("measured", output), 48.0
        assert measured <= budget < mebibytes("unconstrained peak", output)
        assert measured == pytest.approx(mebibytes("predicted peak", output), rel=0.005)


def test_impossible_budget_reads_as_shown(tmp_path: Path) -> None:
    script, _ = example()
    done = run(script.replace('"48MiB"', '"32MiB"'), tmp_path)
    assert done.returncode != 0
    for phrase in (
        "BackendCompilerFailed: backend='remat' raised:\nInfeasibleBudgetError: no plan fits 32.0 MiB",
        "the least reachable peak of this graph is",
        "Raise memory_budget to at least",
    ):
        assert phrase in README and phrase in done.stderr


def test_named_commands_exist() -> None:
    scripts = set(re.findall(r"\bscripts/\w+", README))
    assert {"scripts/demo", "scripts/test"} <= scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert util.find_spec(module) is not None, f"python -m {module}: no such module"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text())
    missing = [t for t in targets if not t.startswith("https://") and not (document.parent / t).exists()]
    assert missing == []


def test_every_document_is_linked() -> None:
    linked = {
        (document.parent / target).resolve()
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)", document.read_text())
    }
    assert set(DOCUMENTS) - linked == {ROOT / "README.md"}


def test_architecture_shows_the_layers_that_are_checked() -> None:
    configured = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert configured is not None
    layers = re.findall(r'"(.+?)"', configured[1])
    shown = [match["content"].splitlines() for match in FENCED.finditer((ROOT / "docs/architecture.md").read_text())]
    assert layers in shown


# The table of the demo's figures.


def results() -> dict[str, Any]:
    run: dict[str, Any] = {
        "label": "a",
        "title": "inductor",
        "budget_bytes": None,
        "predicted_peak_bytes": None,
        "measured_peak_bytes": 200 * 2**20,
        "prediction_error": None,
        "median_step_seconds": 0.5,
        "slowdown": 0.0,
        "losses": [5.5, 4.5, 3.5],
    }
    budgeted = {
        **run,
        "label": "b",
        "title": "remat, half of (a)",
        "budget_bytes": 100 * 2**20,
        "predicted_peak_bytes": 98 * 2**20,
        "measured_peak_bytes": 100 * 2**20,
        "prediction_error": -0.02,
        "median_step_seconds": 0.6,
        "slowdown": 0.2,
    }
    machine = {
        "processor": "Some CPU",
        "cores": 2,
        "accelerator": None,
        "torch": "2.13.0",
        "python": "3.11.1",
        "remat_pass": "0.1.0",
        "commit": "abc",
    }
    return {"command": "scripts/demo", "machine": machine, "parameters": 10_500_000, "runs": [run, budgeted]}


def test_table_has_a_row_per_run_and_says_where_it_comes_from() -> None:
    text = readme_table.block(results())
    assert text.splitlines()[-2:] == [
        "| (a) inductor | – | – | 200.0 MiB | – | 500 ms | – | 5.50000 → 3.50000 |",
        "| (b) remat, half of (a) | 100.0 MiB | 98.0 MiB | 100.0 MiB | -2.00% | 600 ms | +20.0% | 5.50000 → 3.50000 |",
    ]
    assert "`scripts/demo` on Some CPU, 2 cores; torch 2.13.0" in text
    assert "10.5 M parameters, 3 training steps" in text


def test_table_replaces_the_block_and_nothing_else() -> None:
    begin, end = readme_table.BEGIN, readme_table.END
    before, after = README.split(begin)[0], README.split(end)[1]
    once = replace_block(README, "new", begin, end)
    assert once == f"{before}{begin}\nnew\n{end}{after}"
    assert replace_block(once, "new", begin, end) == once
    with pytest.raises(ValueError, match="README needs"):
        replace_block("no markers", "new", begin, end)
