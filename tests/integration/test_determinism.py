"""The same graph gives the same plan in every process, whatever order Python's sets and dictionaries take there."""

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
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


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert "forward" in outputs[0]
    assert all(output == outputs[0] for output in outputs)
