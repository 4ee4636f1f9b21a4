"""How long a compiled graph really takes: its first steps are timed, for the report.

    call 0          its backward is compiled while it runs, and does not count
    calls 1 .. 3    forward from call to return, and backward from when the graph's node in autograd gets its gradients
                    until that of the next compiled graph does, or all is done; the fastest counts
    from call 4     nothing is left but one comparison

On CUDA the timed steps wait for the device.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remat_pass import _torch_compat

_CALLS = 4


@dataclass(slots=True)
class StepTime:
    """What has been measured so far."""

    calls: int = 0
    """How many were timed, the first one included."""
    backward_is_compiled: bool = False
    fastest_ns: int | None = None
    """Forward and backward of the fastest step that was timed, in nanoseconds; None before there is one."""


def time_first_steps(run: Callable[..., Any], measured: StepTime) -> Callable[..., Any]:
    """A callable that does what `run` does, and fills in `measured` as the first steps run."""

    @functools.wraps(run)
    def timed(*args: Any) -> Any:
        if measured.calls == _CALLS or _torch_compat.is_capturing():
            return run(*args)
        measured.calls += 1
        _running.clear()  # what a backward that failed has left
        on_cuda = any(isinstance(a, torch.Tensor) and a.is_cuda for a in args)
        begin = _now(on_cuda)
        results = run(*args)
        forward_ns = _now(on_cuda) - begin
        # What is passed through comes from another function.
        fresh = [r for r in results if all(r is not a for a in args)]
        nodes = filter(None, map(_torch_compat.backward_of_compiled, fresh))
        if node := next(nodes, None):
            _time_backward(node, forward_ns, measured, on_cuda=on_cuda)
        return results

    return timed


def _time_backward(node: torch.autograd.graph.Node, forward_ns: int, measured: StepTime, *, on_cuda: bool) -> None:
    """Time backward if it comes.

    A hook behind the node would do, but autograd keeps the tangents alive for it, and the peak would rise.
    """

    def start(_: Sequence[Any]) -> None:
        _stop_running()
        begin = _now(on_cuda)

        def stop() -> None:
            step_ns = forward_ns + _now(on_cuda) - begin
            if measured.backward_is_compiled:
                measured.fastest_ns = min(step_ns, measured.fastest_ns or step_ns)
            measured.backward_is_compiled = True

        _running.append(stop)
        _torch_compat.call_after_backward(_stop_running)

    node.register_prehook(torch.compiler.disable(start))


_running: list[Callable[[], None]] = []
"""Ends the measurement of the graph whose backward runs now, if there is one."""


def _stop_running() -> None:
    while _running:
        _running.pop()()


def _now(on_cuda: bool) -> int:
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter_ns()
