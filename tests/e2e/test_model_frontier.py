"""`remat_pass.frontier` under Inductor: the budgets it names are accepted by the backend, and hold."""

from itertools import pairwise

import torch

import remat_pass
from tests.support.models import floats, seeded
from tests.support.small_graphs import ResidualMlp


def test_budgets_of_inductor() -> None:
    x = floats(512, 64)
    found = remat_pass.frontier(seeded(lambda: ResidualMlp(3, 64, 128))(), x)
    assert found.lowering == "inductor" and found.margin_permille == 10
    assert 2 < len(found) <= 14
    assert all(a.peak_bytes > b.peak_bytes and a.recompute_ns < b.recompute_ns for a, b in pairwise(found))
    for point in (found[len(found) // 2], found[-1]):
        torch._dynamo.reset()
        module = seeded(lambda: ResidualMlp(3, 64, 128))()
        step = torch.compile(module, backend="remat", options={"memory_budget": point.peak_bytes})

        def train(step: object = step, module: torch.nn.Module = module) -> None:
            step(x).backward()  # type: ignore[operator]
            module.zero_grad()

        measured = remat_pass.measure_peak_bytes(train)
        report = remat_pass.reports()[-1]
        assert report.graph_id == found.graph_id
        assert report.predicted_peak_bytes <= point.peak_bytes
        assert measured <= point.peak_bytes
