"""What it costs to recompute a value where loops are fused, on the joint graphs of a gated layer behind a
norm and of one with GELU.

Mutants these tests kill: the scale of a row is priced at its own size; what is made of nothing is priced at the size of
its readers; a value that products read is never charged a kernel of its own, or always, or where backward has a loop
for a derivative alone; to save a value of some bytes is as cheap as to make it of nothing.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.decomposition import select_decomp_table

from remat_pass import kernel_times
from remat_pass.analysis import analyze
from remat_pass.costs import TYPICAL_CPU as CPU
from remat_pass.costs import card_rates, transfer_ns
from remat_pass.problem import RematProblem, Value
from remat_pass.solver import frontier
from tests.support.small_graphs import capture_joint

ROWS, WIDTH, HIDDEN = 1024, 64, 128


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            normed = self.norm(x * torch.arange(ROWS)[:, None])
            return self.down(nn.functional.silu(self.gate(normed)) * self.up(normed)).float().square().mean()


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.layers(x), torch.arange(ROWS) % WIDTH)


def problem_of(model: nn.Module) -> RematProblem:
    joint, _ = capture_joint(model, (torch.zeros(ROWS, WIDTH),), select_decomp_table())
    return analyze(joint, fuses=True, cost_model="roofline")[1]


@pytest.fixture(scope="module")
def activated() -> RematProblem:
    return problem_of(Activated())


@pytest.fixture(scope="module")
def problem() -> RematProblem:
    return problem_of(Gated())


def values(problem: RematProblem, op: str, size_bytes: int | None = None) -> list[Value]:
    """Those of forward that run the op and take so many bytes."""
    forward = (v for v in problem.values if not v.needs_tangent)
    return [v for v in forward if op in v.op and (size_bytes is None or v.size.hint == size_bytes)]


def test_the_scale_of_a_row_is_computed_again_for_each_of_its_elements(problem: RematProblem) -> None:
    scale = values(problem, "rsqrt")[0]
    assert scale.size.hint == ROWS * 4
    assert scale.recompute_ns >= transfer_ns(ROWS * WIDTH * 4, CPU) // 8


def test_so_it_is_saved_and_not_the_mean_that_it_is_made_of(problem: RematProblem) -> None:
    scale = problem.index[values(problem, "rsqrt")[0].name]
    mean = problem.index[values(problem, "mean")[0].name]
    fastest = frontier(problem)[0].decisions
    assert scale in fastest.saved
    assert mean not in fastest.saved


def test_what_is_made_of_nothing_takes_no_time_there(problem: RematProblem) -> None:
    positions = values(problem, "iota")[0]
    assert positions.size.hint == ROWS * 8
    assert positions.recompute_ns <= transfer_ns(ROWS * 8, CPU)


def test_a_weight_that_is_cast_again_is_read_and_written_by_a_kernel_of_its_own(problem: RematProblem) -> None:
    cast = values(problem, "convert_element_type", WIDTH * HIDDEN * 2)[0]
    moved = transfer_ns(WIDTH * HIDDEN * (4 + 2), CPU)
    assert cast.recompute_ns == pytest.approx(moved + CPU.launch_ns, rel=0.01)


def test_what_a_loop_of_backward_can_compute_on_its_way_is_only_written(problem: RematProblem) -> None:
    """The product that the last layer reads: the loop of its gradient reads both factors."""
    gated = values(problem, "aten.mul.Tensor", ROWS * HIDDEN * 2)[-1]
    written = transfer_ns(ROWS * HIDDEN * 2, CPU)
    assert gated.recompute_ns == pytest.approx(written * 9 / 8, rel=0.01)


def test_so_is_what_the_loop_of_a_derivative_can_compute_before_the_tangent_is_known(activated: RematProblem) -> None:
    products = values(activated, "addmm")
    read = {i for product in products for i in activated.values[activated.index[product.name]].reads}
    gelu = [v for v in values(activated, "aten.mul.Tensor") if activated.index[v.name] in read]
    written = transfer_ns(ROWS * HIDDEN * 4, CPU)
    assert [v.recompute_ns for v in gelu] == [pytest.approx(written * 9 / 8, rel=0.01)]


def test_it_takes_longer_to_save_some_bytes_than_to_make_them_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_times, "processor_rates", card_rates)
    scalar = values(problem_of(Activated()), "scalar_tensor")[0]
    assert scalar.recompute_ns == 0 < scalar.save_ns
