"""Measured bytes, against what a person can count: one 512 x 512 float32 tensor is 1 MiB."""

import gc
from collections.abc import Callable

import pytest
import torch

from remat_pass.errors import MeasurementError, RematError
from remat_pass.measure import MemoryTimeline, measure_peak_bytes, memory_timeline

MIB = 1024**2

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the error of a machine without CUDA")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def one_mib(device: str = "cpu") -> torch.Tensor:
    return torch.empty(512, 512, device=device)


def three_tensors_two_alive(device: str = "cpu") -> None:
    """Allocates three, but frees the first before the third: two are alive at most."""
    first = one_mib(device)
    second = one_mib(device)
    del first
    third = one_mib(device)
    del second, third


class Leaky:
    """A step that keeps one more tensor each time it runs."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __call__(self) -> None:
        self.kept.append(one_mib())


def test_timeline_follows_every_allocation_and_free() -> None:
    timeline = memory_timeline(three_tensors_two_alive, device="cpu")
    assert timeline.allocated_bytes == (1 * MIB, 2 * MIB, 1 * MIB, 2 * MIB, 1 * MIB, 0)
    assert timeline.peak_bytes == 2 * MIB


def test_times_start_with_the_step_and_ascend() -> None:
    timeline = memory_timeline(three_tensors_two_alive, device="cpu")
    assert len(timeline.times_ns) == 6
    assert list(timeline.times_ns) == sorted(timeline.times_ns)
    assert 0 <= timeline.times_ns[0] < 10_000_000_000


def test_peak_is_what_is_alive_together_not_what_was_allocated() -> None:
    assert measure_peak_bytes(three_tensors_two_alive, device="cpu") == 2 * MIB


def test_memory_alive_before_the_step_does_not_count() -> None:
    batch = one_mib()
    # relu's result alone; not 2 MiB.
    assert measure_peak_bytes(batch.relu, device="cpu") == 1 * MIB


def test_what_the_step_returns_is_dropped_inside_the_observation() -> None:
    assert memory_timeline(one_mib, device="cpu").allocated_bytes == (1 * MIB, 0)


def test_what_the_step_keeps_stays_in_the_timeline() -> None:
    assert memory_timeline(Leaky(), device="cpu").allocated_bytes == (1 * MIB,)


def test_freeing_older_memory_is_no_gain() -> None:
    kept = [one_mib()]

    def free_one_make_one() -> None:
        kept.clear()
        kept.append(one_mib())

    assert memory_timeline(free_one_make_one, warmup_steps=0, device="cpu").allocated_bytes == (1 * MIB,)


def test_blocks_that_an_earlier_observation_saw_do_not_return() -> None:
    kept: list[torch.Tensor] = []
    memory_timeline(lambda: kept.append(one_mib()), warmup_steps=0, device="cpu")
    # The profiler remembers this block and reports its free in the next observation, where nothing was allocated.
    assert memory_timeline(kept.clear, warmup_steps=0, device="cpu").allocated_bytes == ()


def test_forward_and_backward_of_a_training_step() -> None:
    weight = torch.ones(512, 512, requires_grad=True)
    cotangent = torch.ones(512, 512)

    def step() -> None:
        weight.sin().relu().backward(cotangent)
        weight.grad = None

    # Forward: sin's result is gone once relu's is there; relu saves its own. Backward: relu's input gradient; then
    # cos of the weight and the weight's gradient, alive together with it; the caller holds relu's result throughout.
    timeline = memory_timeline(step, device="cpu")
    assert [total_bytes / MIB for total_bytes in timeline.allocated_bytes] == [1, 2, 1, 2, 3, 4, 3, 2, 1, 0]
    assert timeline.peak_bytes == 4 * MIB


def test_a_fresh_gradient_counts_once() -> None:
    weight = torch.ones(512, 512, requires_grad=True)
    other = torch.ones(512, 512)
    cotangent = torch.ones(512, 512)

    def step() -> None:
        (weight * other).backward(cotangent)
        weight.grad = None

    # The product, which the caller holds, and its gradient, which autograd keeps as .grad without a copy.
    assert measure_peak_bytes(step, device="cpu") == 2 * MIB


def test_a_step_that_allocates_nothing_has_no_peak() -> None:
    assert memory_timeline(lambda: None, device="cpu") == MemoryTimeline(times_ns=(), allocated_bytes=())
    assert measure_peak_bytes(lambda: None, device="cpu") == 0


@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
def test_warmup_steps_run_unobserved(warmup_steps: int) -> None:
    step = Leaky()
    assert measure_peak_bytes(step, warmup_steps=warmup_steps, device="cpu") == 1 * MIB
    assert len(step.kept) == warmup_steps + 1


def test_garbage_from_before_is_not_freed_inside_the_observation() -> None:
    cycle: list[object] = [one_mib()]
    cycle.append(cycle)
    del cycle
    assert memory_timeline(gc.collect, warmup_steps=0, device="cpu").allocated_bytes == ()


def test_cpu_may_carry_an_index() -> None:
    assert measure_peak_bytes(one_mib, device=torch.device("cpu:0")) == 1 * MIB


@needs_no_cuda
def test_cpu_is_the_default_where_cuda_is_unused() -> None:
    assert measure_peak_bytes(one_mib) == 1 * MIB


def test_errors_of_the_step_pass_through_and_leave_no_profiler_behind() -> None:
    def broken() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        memory_timeline(broken, warmup_steps=0, device="cpu")
    assert measure_peak_bytes(one_mib, device="cpu") == 1 * MIB


@pytest.mark.parametrize("measure", [memory_timeline, measure_peak_bytes])
class TestErrors:
    def test_a_result_instead_of_a_step(self, measure: Callable[..., object]) -> None:
        with pytest.raises(MeasurementError, match=r"3\.5: a float is not callable\. Pass the step itself"):
            measure(3.5)

    def test_negative_warmup(self, measure: Callable[..., object]) -> None:
        with pytest.raises(MeasurementError, match=r"-1 times .* warmup_steps=0 or more"):
            measure(one_mib, warmup_steps=-1)

    def test_a_running_profiler(self, measure: Callable[..., object]) -> None:
        with torch.profiler.profile(acc_events=True), pytest.raises(MeasurementError, match="already running"):
            measure(one_mib, device="cpu")

    def test_a_device_without_instrument(self, measure: Callable[..., object]) -> None:
        with pytest.raises(MeasurementError, match=r"'meta': only CPU and CUDA memory is observed"):
            measure(one_mib, device="meta")

    def test_a_device_that_is_none(self, measure: Callable[..., object]) -> None:
        with pytest.raises(MeasurementError, match=r"'potato': no such device"):
            measure(one_mib, device="potato")

    @needs_no_cuda
    def test_cuda_where_there_is_none(self, measure: Callable[..., object]) -> None:
        with pytest.raises(MeasurementError, match=r"'cuda:0': PyTorch finds no CUDA device"):
            measure(one_mib, device="cuda:0")


def test_measurement_errors_are_errors_of_this_package() -> None:
    assert issubclass(MeasurementError, RematError)


@needs_cuda
def test_cuda_blocks_are_counted_by_both_instruments() -> None:
    def step() -> None:
        three_tensors_two_alive("cuda")

    assert measure_peak_bytes(step, device="cuda") == 2 * MIB
    assert memory_timeline(step, device="cuda").peak_bytes == 2 * MIB
    assert measure_peak_bytes(step) == 2 * MIB
