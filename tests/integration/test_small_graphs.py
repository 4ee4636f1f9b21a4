"""Real joint graphs against the exact planners: the benchmark set is what it claims to be.

The whole set is measured by `benchmarks/planner.py`; here are three shapes of it, solved in well under a second each.
"""

import pytest

from remat_pass.bounds import lower_bound
from remat_pass.exact import brute_force
from remat_pass.milp import solve_milp
from remat_pass.plan_file import check_plan
from remat_pass.solver import frontier
from tests.support.small_graphs import MODELS, capture_problem


def test_there_are_enough_graphs() -> None:
    assert len(MODELS) >= 30


@pytest.mark.parametrize("name", ["convolutions, residual, 4", "u-net, 1", "autoencoder, narrow waist"])
def test_both_exact_planners_agree_on_a_real_graph(name: str) -> None:
    build, inputs = MODELS[name]
    problem = capture_problem(build(), inputs())
    candidates = frontier(problem)
    limit = (candidates[0].peak_bytes + 3 * candidates[-1].peak_bytes) // 4
    searched, solved = brute_force(problem, limit, copies=True), solve_milp(problem, limit, time_limit_s=20)
    assert searched.recompute_ns == solved.recompute_ns == solved.lower_bound_ns
    assert searched.plan is not None
    assert check_plan(problem, searched.plan) is None
    assert max(searched.peak_bytes or 0, solved.peak_bytes or 0) <= limit
    # Some of it has to be recomputed, and the bound knows.
    assert 0 < lower_bound(problem, limit) <= (searched.recompute_ns or 0)
