"""The same graph gives the same plan in every process, whatever order Python's sets and dictionaries take there."""

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import remat_pass
from tests.support.models import SMALL
from tests.support.training import compiled

case = SMALL["resnet"]
compiled(case.build(), memory_budget=0.8, on_infeasible="warn")(*case.inputs())
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
