"""Writes the figures of a demo run into the README: `python -m benchmarks.readme_table`.

Nobody types these figures: the block between the two markers is replaced by what `scripts/demo` wrote to
`demo_report/results.json`, with the machine, the versions and the command they hold for.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.contest.readme import replace_block
from benchmarks.demo_results import mib

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"

_ROOT = Path(__file__).parent.parent
_HEADINGS = (
    "run",
    "budget",
    "predicted peak",
    "measured peak",
    "error",
    "median step",
    "against (a)",
    "loss, first to last step",
)


def main() -> None:
    """Rewrite the block of the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description=__doc__)
    parser.add_argument("--results", type=Path, default=_ROOT / "demo_report" / "results.json")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    arguments.readme.write_text(replace_block(arguments.readme.read_text(), block(results), BEGIN, END))


def block(results: dict[str, Any]) -> str:
    """Where the figures come from, then one row per run."""
    machine = results["machine"]
    hardware = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores"
    first = results["runs"][0]
    lines = [
        f"`{results['command']}` on {hardware}; torch {machine['torch']}, remat_pass {machine['remat_pass']}, "
        f"Python {machine['python']}, commit `{machine['commit'] or 'unknown'}`.",
        f"{results['parameters'] / 1e6:.1f} M parameters, {len(first['losses'])} training steps.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        f"|{'---|' * len(_HEADINGS)}",
        *(f"| {' | '.join(_row(run))} |" for run in results["runs"]),
    ]
    return "\n".join(lines)


def _row(run: dict[str, Any]) -> list[str]:
    error = run["prediction_error"]
    return [
        f"({run['label']}) {run['title']}",
        mib(run["budget_bytes"]),
        mib(run["predicted_peak_bytes"]),
        mib(run["measured_peak_bytes"]),
        "–" if error is None else f"{error:+.2%}",
        f"{run['median_step_seconds'] * 1000:,.0f} ms",
        "–" if run["label"] == "a" else f"{run['slowdown']:+.1%}",
        f"{run['losses'][0]:.5f} → {run['losses'][-1]:.5f}",
    ]


if __name__ == "__main__":
    main()
