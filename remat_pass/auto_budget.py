"""`memory_budget="auto"`: what is left when a graph is compiled.

    budget = free - gradients to come - reserve          rounded down to 1/64 of the device, least of all ranks

free
    What the device has left at this moment (`free_memory`): parameters, the batch, what other graphs of the same step
    have saved so far, optimizer states and `.grad` tensors that exist are no part of it any more.
gradients to come
    Bytes of the trainable inputs of the graph whose `.grad` is None. A budget counts the gradients that backward
    *returns*, because the graph makes them; it does not count a `.grad` that is older than the step. Both are there
    when gradients are accumulated over several backward passes, or zeroed in place. A `.grad` that exists already is
    missing from `free`, so nothing is subtracted twice. With `zero_grad(set_to_none=True)` there is never an older one,
    and these bytes stay free: `reserve` may be smaller by as much.
reserve
    What is allocated later and stays during a step. By default twice the trainable bytes: the two moments of Adam,
    which the first `optimizer.step()` makes. For a graph that is compiled after that they are missing from `free` as
    well; `reserve=0` is then enough.

Trainable inputs are the leaves that require a gradient, as they come into the graph: parameters. Of a sharded one the
local part counts. The device is the one that holds most of the bytes of the inputs.

Rounding makes compilations that differ a little in what is free have the same plan and the same entry in the compiler's
cache. With `torch.distributed` initialised all ranks take the least budget of any, so all must compile the same graphs
in the same order: this is a collective, of one integer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from remat_pass import _torch_compat
from remat_pass.errors import InfeasibleBudgetError, OptionError
from remat_pass.free_memory import read_free_memory
from remat_pass.units import format_bytes

_STEPS = 64
"""A budget is a multiple of the device's memory over this: 1.25 GiB on a card of 80 GiB."""

_STATES_PER_PARAMETER = 2


@dataclass(frozen=True, slots=True)
class AutoBudget:
    """What "auto" came to for one graph, and why; the figures beside the budget are of this rank."""

    budget_bytes: int
    device: str
    free_bytes: int
    total_bytes: int
    """Memory of the device."""
    gradient_bytes: int
    """Of gradients to come."""
    reserve_bytes: int
    ranks: int
    """Processes whose least budget this is; 1 without `torch.distributed`."""

    def describe(self) -> str:
        """The arithmetic in one line."""
        least = f", least of {self.ranks} ranks" if self.ranks > 1 else ""
        return (
            f"{format_bytes(self.free_bytes)} free on {self.device} - {format_bytes(self.gradient_bytes)} gradients to "
            f"come - {format_bytes(self.reserve_bytes)} reserve, rounded down to 1/{_STEPS} of "
            f"{format_bytes(self.total_bytes)}{least}"
        )

    def explain(self, error: InfeasibleBudgetError) -> InfeasibleBudgetError:
        """The same error, with where its budget came from."""
        message = f'{error} memory_budget="auto" came to {format_bytes(self.budget_bytes)}: {self.describe()}.'
        return InfeasibleBudgetError(message, budget_bytes=error.budget_bytes, least_peak_bytes=error.least_peak_bytes)


def work_out_budget(inputs: Sequence[Any], reserve_bytes: int | None) -> AutoBudget | None:
    """The budget of this module's docstring.

    Args:
        inputs: Of the graph, fake or real; a fake one has a `.grad` if the real one has.
        reserve_bytes: None: twice the trainable bytes.

    Returns:
        None for a graph without gradients, which is not planned.

    Raises:
        OptionError: Less than 1/64 of the device's memory is left on some rank, or free memory is not known.
    """
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    if not any(t.requires_grad for t in tensors):
        return None
    trainable = [t for t in tensors if t.requires_grad and t.is_leaf]
    gradient_bytes = sum(_torch_compat.local_bytes(t) for t in trainable if t.grad is None)
    if reserve_bytes is None:
        reserve_bytes = _STATES_PER_PARAMETER * sum(map(_torch_compat.local_bytes, trainable))
    device = _main_device(tensors)
    memory = read_free_memory(device)
    step_bytes = max(1, memory.total_bytes // _STEPS)
    left_bytes = max(0, memory.free_bytes - gradient_bytes - reserve_bytes)
    budget_bytes, ranks = _least_of_ranks(left_bytes // step_bytes * step_bytes, device)
    auto = AutoBudget(
        budget_bytes, str(device), memory.free_bytes, memory.total_bytes, gradient_bytes, reserve_bytes, ranks
    )
    if not budget_bytes:
        raise OptionError(
            f'memory_budget="auto": nothing is left: {auto.describe()}. Free some memory, lower the option reserve '
            "(0 is enough once the optimizer has its states), or pass a memory_budget in bytes"
        )
    return auto


def _main_device(tensors: Sequence[torch.Tensor]) -> torch.device:
    """The device with most of the bytes, the first of equals."""
    held: dict[torch.device, int] = {}
    for tensor in tensors:
        held[tensor.device] = held.get(tensor.device, 0) + _torch_compat.local_bytes(tensor)
    return max(held, key=held.__getitem__)


def _least_of_ranks(budget_bytes: int, device: torch.device) -> tuple[int, int]:
    """(least budget of any rank, number of ranks)."""
    if not distributed.is_available() or not distributed.is_initialized():
        return budget_bytes, 1
    on_cpu = any(name in distributed.get_backend() for name in ("gloo", "mpi"))
    with _torch_compat.no_fake_tensors():
        least = torch.tensor(budget_bytes, dtype=torch.int64, device="cpu" if on_cpu else device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        return int(least.item()), distributed.get_world_size()
