"""`lower`: the figures of one training step of one module under one partitioner, on a GPU that is not there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from remat_pass import _torch_compat
from remat_pass.compilation import compile_and_judge
from remat_pass.costs import card_rates
from remat_pass.report import publish
from tests.support.gpu_rig import wrapper
from tests.support.gpu_rig.capture import Capture, capture
from tests.support.gpu_rig.fake_gpu import fake_gpu
from tests.support.gpu_rig.generate import Generated, generate
from tests.support.gpu_rig.meter import Meter, Work


@dataclass(frozen=True)
class RigConfig:
    """How to compile; the options reach Inductor and AOTAutograd unchanged."""

    precision: str = "fp32"
    sm: int = 90
    """Compute capability of the card."""
    inductor: dict[str, Any] = field(default_factory=dict)
    functorch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuLowering:
    """What one step allocates and runs. Times are a roofline of each launch with an H100's rates."""

    peak_bytes: int
    """As the budget counts: storages that appear because forward and backward run."""
    forward_peak_bytes: int
    backward_peak_bytes: int
    saved_bytes: int
    """Alive between forward and backward."""
    returned_gradient_bytes: int
    forward_triton_kernels: int
    forward_extern_kernels: int
    backward_triton_kernels: int
    backward_extern_kernels: int
    forward_flops: int
    backward_flops: int
    forward_moved_bytes: int
    backward_moved_bytes: int
    forward_modelled_ns: int
    backward_modelled_ns: int


def lower(
    module: nn.Module, batch: Sequence[Any], partitioner: Any = None, *, config: RigConfig | None = None
) -> GpuLowering:
    """Compile and measure one training step.

    Args:
        module: Returns the loss for `*batch`; on the meta device or the CPU, and left as it was.
        batch: Its arguments; tensors may be on the meta device.
        partitioner: For Inductor's `custom_partitioner_fn`; None for torch's own.
        config: Precision, card and options.

    Raises:
        RuntimeError: torch was imported before `tests.support.gpu_rig`.
    """
    config = config or RigConfig()
    with fake_gpu(config.sm):
        return lower_captured(capture(module, batch, config.precision), partitioner, config=config)


def lower_captured(captured: Capture, partitioner: Any, *, config: RigConfig) -> GpuLowering:
    """As `lower`, of a graph that was captured already; needs `fake_gpu`."""
    return measure(captured, *_generate(captured, partitioner, config))


def generate_sources(
    module: nn.Module, batch: Sequence[Any], partitioner: Any = None, *, config: RigConfig | None = None
) -> list[str]:
    """The generated code of forward and backward; arguments as for `lower`."""
    config = config or RigConfig()
    with fake_gpu(config.sm):
        return [g.source for g in _generate(capture(module, batch, config.precision), partitioner, config)]


def measure(captured: Capture, forward: Generated, backward: Generated) -> GpuLowering:
    """Run both wrappers on fake tensors, one after the other, as autograd would; needs `fake_gpu`."""
    meter = Meter(card_rates())
    run_forward, run_backward = (
        wrapper.load(g.source, meter.kernel, wrapper.ON_FAKE_TENSORS) for g in (forward, backward)
    )
    # A wrapper may hold constants of its own, real numbers on the CPU.
    with captured.fake_mode, mock.patch.object(captured.fake_mode, "allow_non_fake_inputs", True):
        inputs = {name: _fresh(value) for name, value in forward.arguments}
        meter.ignore(inputs)
        with meter:
            results: dict[Any, Any] = dict(zip(forward.results, run_forward(list(inputs.values())), strict=True))
            forward_peak_bytes, forward_work = meter.peak_bytes, meter.work
            known = {**inputs, **results}
            handed_over = {name: known[name] for name, _ in backward.arguments if name in known}
            del results, known
            saved_bytes = meter.live_bytes
            meter.begin_phase()
            # What forward does not hand over are the tangents, which autograd allocates, and states of generators.
            arguments = [
                handed_over.pop(name) if name in handed_over else _fresh(value) for name, value in backward.arguments
            ]
            gradients = run_backward(arguments)
    return _figures(forward_peak_bytes, meter.peak_bytes, saved_bytes, forward_work, meter.work, gradients)


def _generate(captured: Capture, partitioner: Any, config: RigConfig) -> tuple[Generated, Generated]:
    """As the backend compiles: what the partitioner believed is seen by its witness; its reports are published."""
    chosen = {} if partitioner is None else {"custom_partitioner_fn": partitioner}

    def compile_(watcher: _torch_compat.CompilationWatcher | None) -> tuple[Generated, Generated]:
        with _torch_compat.observed_schedules(watcher.observe if watcher else None):
            generated = generate(captured, inductor={**config.inductor, **chosen}, functorch=config.functorch)
        if watcher:
            watcher.settle()
        return generated

    generated, reports = compile_and_judge(compile_)
    for report in reports:
        publish(report)
    return generated  # type: ignore[no-any-return]


def _fresh(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _figures(
    forward_peak_bytes: int, backward_peak_bytes: int, saved_bytes: int, forward: Work, backward: Work, gradients: Any
) -> GpuLowering:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in gradients if isinstance(t, Tensor)}
    return GpuLowering(
        peak_bytes=max(forward_peak_bytes, backward_peak_bytes),
        forward_peak_bytes=forward_peak_bytes,
        backward_peak_bytes=backward_peak_bytes,
        saved_bytes=saved_bytes,
        returned_gradient_bytes=sum(storage.nbytes() for storage in storages.values()),
        forward_triton_kernels=forward.triton_kernels,
        forward_extern_kernels=forward.extern_kernels,
        backward_triton_kernels=backward.triton_kernels,
        backward_extern_kernels=backward.extern_kernels,
        forward_flops=forward.flops,
        backward_flops=backward.flops,
        forward_moved_bytes=forward.moved_bytes,
        backward_moved_bytes=backward.moved_bytes,
        forward_modelled_ns=forward.modelled_ns,
        backward_modelled_ns=backward.modelled_ns,
    )
