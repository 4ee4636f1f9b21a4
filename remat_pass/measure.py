"""What a training step really allocates: the figure that every prediction and every budget is held against.

A step is any callable that runs forward and backward. Its peak is the largest number of bytes alive at one moment,
above what was alive when the step began:

    bytes            ┌─┐ peak
                   ┌─┘ └┐
                 ┌─┘    └──┐
    0 ───────────┘         └───  the step began at 0: parameters, buffers and the batch do not count
         forward │ backward

Two instruments, one definition:

- CPU: PyTorch's CPU allocator keeps no statistics, but the profiler sees each allocation and each free, with its
  address. What is alive is exact: no sampling, no process size, no pages that malloc holds back.
- CUDA: the caching allocator's own peak counter, which costs no time. It counts blocks, rounded up to 512 bytes.

Everything the step allocates counts, because an allocator cannot tell who asked: intermediates, saved values, tangents,
scratch of kernels, the gradients that backward returns (when `.grad` was None before; otherwise they are added into the
old ones and freed), and an optimizer if the step runs one. A budget of the backend counts the same things for forward
plus backward, so measure a step of just these two. Memory that libraries take past PyTorch's allocators is unseen.

Not done here: attributing bytes to operators. `torch.profiler` does that.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from remat_pass import _torch_compat
from remat_pass.errors import MeasurementError

Step: TypeAlias = Callable[[], object]


@dataclass(frozen=True, slots=True)
class MemoryTimeline:
    """Bytes alive during one step; entry i holds from `times_ns[i]` until `times_ns[i + 1]`.

    Attributes:
        times_ns: when the step allocated or freed, in ns since it began, ascending; two events may share a time.
        allocated_bytes: bytes alive after that event that the step itself allocated. Never negative; ends at 0 when
            the step keeps nothing. Freeing memory older than the step is no event.
    """

    times_ns: tuple[int, ...]
    allocated_bytes: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at one moment; 0 for a step that allocates nothing."""
        return max(self.allocated_bytes, default=0)


def memory_timeline(step: Step, *, warmup_steps: int = 1, device: str | torch.device | None = None) -> MemoryTimeline:
    """Run `step` and record every allocation and free it makes.

    Each step should end as it began: one that leaves gradients behind makes the next one start with them, so set
    `.grad` to None at its end.

    Args:
        step: the step, without arguments. What it returns is dropped inside the observation.
        warmup_steps: how often it runs unobserved first, so that compilation is over.
        device: whose memory, such as "cpu" or "cuda:1". None: the current CUDA device if this process has used CUDA,
            else the CPU.

    Returns:
        The allocations of that device and their frees in time order; simultaneous ones in the order they were recorded.
        Memory that the profiler itself takes is not among them. Time runs slower than without a profiler.

    Raises:
        MeasurementError: `step` is not callable, `warmup_steps` is negative, the device is neither CPU nor CUDA, or
            a profiler is already running. What `step` raises passes through.
    """
    _require_step(step, warmup_steps)
    chosen_device = _resolve_device(device)
    _require_no_profiler()
    _warm_up(step, warmup_steps)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    return _add_up(_torch_compat.memory_events(profile, chosen_device))


def measure_peak_bytes(step: Step, *, warmup_steps: int = 1, device: str | torch.device | None = None) -> int:
    """Most bytes alive at one moment while `step` runs, above what was alive when it began.

    Arguments, and what a step should leave behind, are those of `memory_timeline`. On CUDA this resets the peak
    statistics of the device (`torch.cuda.reset_peak_memory_stats`) and runs at full speed.

    Raises:
        MeasurementError: as `memory_timeline`; a running profiler is no hindrance on CUDA.
    """
    _require_step(step, warmup_steps)
    chosen_device = _resolve_device(device)
    if chosen_device.type == "cpu":
        return memory_timeline(step, warmup_steps=warmup_steps, device=chosen_device).peak_bytes
    _warm_up(step, warmup_steps)
    torch.cuda.synchronize(chosen_device)
    resident_bytes = torch.cuda.memory_allocated(chosen_device)
    torch.cuda.reset_peak_memory_stats(chosen_device)
    step()
    return torch.cuda.max_memory_allocated(chosen_device) - resident_bytes


def _require_step(step: object, warmup_steps: int) -> None:
    if not callable(step):
        raise MeasurementError(
            f"cannot measure {step!r}: a {type(step).__name__} is not callable. "
            "Pass the step itself, such as `lambda: model(batch).sum().backward()`, not its result."
        )
    if warmup_steps < 0:
        raise MeasurementError(
            f"cannot run the step {warmup_steps} times before measuring. Pass warmup_steps=0 or more."
        )


def _resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to observe, with its index where the allocator wants one."""
    if device is None:
        device = "cuda" if torch.cuda.is_initialized() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise MeasurementError(f'cannot measure on {device!r}: no such device. Pass "cpu" or "cuda:0".') from error
    if resolved.type == "cpu":
        return torch.device("cpu")  # "cpu:0" is the same memory, but profiler events carry no index for it
    if resolved.type != "cuda":
        raise MeasurementError(
            f'cannot measure on {str(resolved)!r}: only CPU and CUDA memory is observed. Pass "cpu" or "cuda:0".'
        )
    if not torch.cuda.is_available():
        raise MeasurementError(f'cannot measure on {str(resolved)!r}: PyTorch finds no CUDA device. Pass "cpu".')
    return resolved if resolved.index is not None else torch.device("cuda", torch.cuda.current_device())


def _require_no_profiler() -> None:
    if _torch_compat.profiler_is_running():
        raise MeasurementError(
            "cannot measure the step: a torch profiler is already running in this thread, and PyTorch allows one. "
            "Stop it first, or call this outside its `with` block."
        )


def _warm_up(step: Step, warmup_steps: int) -> None:
    """Run the step unobserved, then collect garbage, whose freeing would count as the observed step's."""
    for _ in range(warmup_steps):
        step()
    gc.collect()


def _add_up(events: list[tuple[int, int, int]]) -> MemoryTimeline:
    """Bytes alive after each event, given as (ns, address, bytes), where bytes are negative for a free.

    Frees are matched to allocations by address: the CPU profiler reports the free of a block it did not see allocated
    either not at all or, after an earlier observation, with the size of the block that lay there before.
    """
    alive_bytes_at: dict[int, int] = {}
    total_bytes = 0
    times_ns: list[int] = []
    totals_bytes: list[int] = []
    for time_ns, address, change_bytes in events:
        if change_bytes < 0 and address not in alive_bytes_at:
            continue
        total_bytes -= alive_bytes_at.pop(address, 0)
        if change_bytes > 0:
            alive_bytes_at[address] = change_bytes
            total_bytes += change_bytes
        times_ns.append(time_ns)
        totals_bytes.append(total_bytes)
    return MemoryTimeline(times_ns=tuple(times_ns), allocated_bytes=tuple(totals_bytes))
