"""The arithmetic of "auto", with a made-up amount of free memory.

Mutants these tests kill: `.grad` tensors that exist are subtracted again; frozen parameters or activations count as
trainable; the reserve counts only missing gradients; rounding up; "nothing left" passes for a budget.
"""

import pytest
import torch
from torch import Tensor, nn

from remat_pass import auto_budget
from remat_pass.auto_budget import AutoBudget, work_out_budget
from remat_pass.errors import InfeasibleBudgetError, OptionError
from remat_pass.free_memory import FreeMemory

MIB = 2**20
TOTAL_BYTES = 64 * 64 * MIB
STEP_BYTES = 64 * MIB


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first entry is what is free, of 4 GiB: one step of rounding is 64 MiB."""
    bytes_free = [1000 * MIB]
    monkeypatch.setattr(auto_budget, "read_free_memory", lambda device: FreeMemory(bytes_free[0], TOTAL_BYTES))
    return bytes_free


def parameter(mib: int, *, has_grad: bool = False, frozen: bool = False) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(mib, MIB // 4), requires_grad=not frozen)
    made.grad = torch.zeros_like(made) if has_grad else None
    return made


def inputs() -> list[object]:
    """8 MiB trainable, 5 of them without a gradient yet."""
    activation: Tensor = parameter(2) * 1
    return [
        torch.zeros(7, MIB // 4),
        parameter(5),
        parameter(3, has_grad=True),
        parameter(4, frozen=True),
        activation,
        3,
    ]


def test_arithmetic(free: list[int]) -> None:
    auto = work_out_budget(inputs(), None)
    assert auto == AutoBudget(
        budget_bytes=15 * STEP_BYTES,  # 1000 - 5 - 16 = 979 MiB
        device="cpu",
        free_bytes=1000 * MIB,
        total_bytes=TOTAL_BYTES,
        gradient_bytes=5 * MIB,
        reserve_bytes=16 * MIB,
        ranks=1,
    )
    assert auto.describe() == (
        "1000.0 MiB free on cpu - 5.0 MiB gradients to come - 16.0 MiB reserve, rounded down to 1/64 of 4.00 GiB"
    )


@pytest.mark.parametrize(("reserve_mib", "steps"), [(0, 15), (995 - 15 * 64, 15), (995 - 15 * 64 + 1, 14), (931, 1)])
def test_a_reserve_of_the_user(free: list[int], reserve_mib: int, steps: int) -> None:
    auto = work_out_budget(inputs(), reserve_mib * MIB)
    assert auto is not None
    assert auto.budget_bytes == steps * STEP_BYTES


@pytest.mark.parametrize("reserve_mib", [932, 995, 5000])
def test_nothing_left(free: list[int], reserve_mib: int) -> None:
    with pytest.raises(OptionError) as caught:
        work_out_budget(inputs(), reserve_mib * MIB)
    for told in (
        "1000.0 MiB free on cpu",
        "5.0 MiB gradients",
        "reserve",
        "1/64 of 4.00 GiB",
        "lower the option reserve",
    ):
        assert told in str(caught.value)


def test_graphs_without_gradients_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_budget, "read_free_memory", lambda device: pytest.fail("read"))
    assert work_out_budget([parameter(1, frozen=True), torch.zeros(3)], None) is None


def test_an_infeasible_budget_is_explained(free: list[int]) -> None:
    auto = work_out_budget(inputs(), None)
    assert auto is not None
    error = auto.explain(InfeasibleBudgetError("no plan fits.", budget_bytes=3, least_peak_bytes=4))
    assert str(error) == f'no plan fits. memory_budget="auto" came to 960.0 MiB: {auto.describe()}.'
    assert (error.budget_bytes, error.least_peak_bytes) == (3, 4)
