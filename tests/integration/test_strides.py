"""Views that trust strides, where the lowering may lay values out anew."""

import torch
from torch import Tensor, nn
from torch._inductor.decomposition import select_decomp_table

from remat_pass.analysis import analyze
from remat_pass.ops import READS_BY_STRIDES
from remat_pass.problem import RematProblem
from remat_pass.solver import frontier
from tests.support.small_graphs import capture_joint

IMAGE = torch.zeros(2, 8, 16, 16)


class Normed(nn.Module):
    """The decomposition of a group norm has as_strided."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.second(self.norm(self.first(x))))).square().mean()


def problem(*, fuses: bool) -> RematProblem:
    joint, _ = capture_joint(Normed(), (IMAGE,), select_decomp_table())
    return analyze(joint, fuses=fuses, cost_model="roofline")[1]


def by_strides(problem: RematProblem) -> list[int]:
    return [i for i, v in enumerate(problem.values) if "as_strided" in v.op and not v.needs_tangent]


def test_under_inductor_a_view_by_strides_runs_in_forward_alone() -> None:
    fused = problem(fuses=True)
    views = by_strides(fused)
    assert views
    for i in views:
        value = fused.values[i]
        assert (value.cannot_recompute, value.cannot_save, value.size.hint) == (READS_BY_STRIDES, None, 0)
        assert value.holds
    for candidate in frontier(fused):
        assert not set(views).intersection(candidate.decisions.recomputed)


def test_op_by_op_strides_stay_as_they_were_traced() -> None:
    unfused = problem(fuses=False)
    assert all(unfused.values[i].cannot_recompute is None for i in by_strides(unfused))
