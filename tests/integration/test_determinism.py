"""The same graph gives the same plan in every process, whatever order Python's sets and dictionaries take there."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_ON_A_TYPICAL_PROCESSOR = """
from tests.support.rates import typical_processor

typical_processor().__enter__()
"""
"""Processes that begin at once on a machine that is not known yet would each measure it."""

_COMPILE = """
import torch
import remat_pass
from benchmarks.models import Llama, LlamaConfig
from tests.support.training import compiled

tokens = torch.zeros(2, 64, dtype=torch.int64)
model = Llama(LlamaConfig(vocabulary=64, layers=2, width=32, hidden=64, heads=2, context=64, dropout=0.1))
compiled(model, memory_budget=0.6, on_infeasible="warn")(tokens, tokens)
report, = remat_pass.reports()
print(report.graph_id, report.plan_json, report.forward_code, report.backward_code)
"""

_FRONTIERS = """
from benchmarks.planning.determinism_work import digests
print(digests(traced=False))
"""


def _outputs(program: str, seeds: Iterable[int]) -> list[str]:
    """What the program prints in one process per hash seed."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _ON_A_TYPICAL_PROCESSOR + program],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    return outputs


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    first, *others = _outputs(_COMPILE, range(4))
    assert "forward" in first
    assert all(output == first for output in others)


def test_whole_frontiers_do_not_depend_on_the_hash_seed() -> None:
    """Of a random graph and a U-Net; `benchmarks.planner` does this with more of both."""
    first, *others = _outputs(_FRONTIERS, range(3))
    assert first.count(":") == 2
    assert all(output == first for output in others)
