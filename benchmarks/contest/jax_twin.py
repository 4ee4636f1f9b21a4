"""What `jax.checkpoint` reaches on a twin of the Llama-style models: an extra beside the contest.

    python -m benchmarks.contest.jax_twin --model llama --policy dots --layers-as scan     # one run
    python -m benchmarks.contest.jax_twin --model llama --all                              # a Markdown table of all

On a CPU, XLA's default scheduler starts recomputation early in an unrolled loop and so undoes what a policy saves. Two
things bring it back, and both are measured: a scan over the layers, and XLA's memory-optimised scheduler
(`--scheduler memory`), which has to be asked for before jax is imported: so each run is a process.

Exit status 3 says that jax, which is optional, is missing.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from datetime import datetime, timezone

from benchmarks.contest import machine, markdown
from benchmarks.contest.models import LLAMAS, MODELS

JAX_IS_MISSING = 3
POLICIES = ("nothing", "dots", "dots_with_no_batch_dims", "everything")
LAYERS_AS = ("loop", "scan")
SCHEDULERS = {"default": "", "memory": "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def main() -> int:
    """Measure as the command line says; the exit status is 0, or 3 if jax is missing."""
    arguments = _parse_arguments()
    if importlib.util.find_spec("jax") is None:
        print("jax is not installed: run `pip install jax`, or leave this extra out.", file=sys.stderr)
        return JAX_IS_MISSING
    if arguments.all:
        _print_all(arguments.model, arguments.steps)
        return 0
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SCHEDULERS[arguments.scheduler]}".strip()
    from benchmarks.contest.model_jax_measure import measure  # imports jax: it is optional, and reads XLA_FLAGS once

    result = measure(arguments.model, arguments.policy, scanned=arguments.layers_as == "scan", steps=arguments.steps)
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    return 0


def _print_all(model: str, steps: int) -> None:
    """A page: what it holds for, and one row per combination, each measured in a process of its own."""
    found = machine.describe("cpu")
    command = shlex.join(["python", "-m", "benchmarks.contest.jax_twin", *sys.argv[1:]])
    today = datetime.now(timezone.utc).date().isoformat()
    print(f"# {MODELS[model].title}, in JAX\n")
    print(markdown.source({"command": command, "machine": found, "date": today}), end=" ")
    print(f"jax {importlib.metadata.version('jax')}.\n")
    print("Peaks are what XLA's buffer assignment says of the compiled step, its outputs, the gradients, included.\n")
    print("| layers as | scheduler | policy | activation peak MB | peak MB | step ms | compile s |")
    print("|---|---|---|---|---|---|---|")
    for layers_as, scheduler, policy in itertools.product(LAYERS_AS, SCHEDULERS, POLICIES):
        one = [sys.executable, "-m", "benchmarks.contest.jax_twin", "--json", "--model", model]
        one += ["--layers-as", layers_as, "--scheduler", scheduler, "--policy", policy, "--steps", str(steps)]
        result = json.loads(subprocess.run(one, check=True, stdout=subprocess.PIPE, text=True).stdout)
        activations = result["peak_bytes"] - result["gradient_bytes"]
        print(
            f"| {layers_as} | {scheduler} | {policy} | {activations / 1e6:.1f} | {result['peak_bytes'] / 1e6:.1f} "
            f"| {statistics.median(result['step_seconds']) * 1e3:.0f} | {result['compile_seconds']:.1f} |",
            flush=True,
        )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contest.jax_twin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=LLAMAS, default="llama")
    parser.add_argument("--policy", choices=POLICIES, default="everything", help="what each block may save")
    parser.add_argument("--layers-as", choices=LAYERS_AS, default="loop")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="default", help="XLA's on a CPU")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--all", action="store_true", help="every policy, both kinds of layers, both schedulers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
