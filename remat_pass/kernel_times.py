"""How long kernels take on this machine: `cost_model="measured"`.

An op is timed on dummy data, and kept on disk (`kept_times`) by op, shapes, strides, dtypes, device and settings of
speed, so that a second process plans with the same times. What Inductor generates itself is not there to be timed
before there is a plan: its loops are priced by the bytes they move, at the bandwidth that is measured here, and slow
arithmetic at the constants of `costs`, for a processor as much faster as its products are.

Fresh memory is not a kernel's own time. The C library maps large blocks anew for every run, and each first touch of a
page is a fault; a kernel that writes 64 MiB seems to take twice as long. A caching allocator, and a training step that
reuses its memory, do not pay that, so the faults of a run are counted and taken off at what one costs here.
"""

import mmap
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import fx

from remat_pass import _torch_compat
from remat_pass.costs import DeviceRates, device_rates
from remat_pass.kept_times import keep_times, processor_name, read_times
from remat_pass.probe import dummy_run
from remat_pass.progress import shown_if_slow

_RUNS = 5
_ENOUGH_NS = 500_000_000
"""No further run is made of an op that has taken so long."""

_COPIED_BYTES = 64 * 2**20
"""More than most caches hold."""
_SIDE = 512
"""Of the square matrices whose product tells what the processor can do."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

Run = Callable[[], object]


def time_kernels(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Nanoseconds of one run of each op, by the name of its node; those that cannot be run on dummy data are left out.

    The fastest of a few runs counts: other processes can only make one slower. What is not known yet is measured, which
    takes as long as some steps of the model, and is shown if that is more than a second. Under a profiler, which would
    be timed, too, nothing is measured.
    """
    runs = {node.name: run for node in nodes if (run := dummy_run(node))}
    keys = {name: run.key for name, run in runs.items()}
    known = read_times()
    missing = {key: runs[name] for name, key in keys.items() if key not in known}
    if missing and not _torch_compat.profiler_is_running():
        fault = f"page fault, {torch.get_num_threads()} threads"
        fault_ns = _times({fault: _page_fault_ns})[fault]
        found: dict[str, int] = {}
        for key, run in shown_if_slow([*missing.items()], "remat_pass: timing kernels"):
            if (ns := run.measure(lambda once: _fastest_ns(once, fault_ns))) is not None:
                found[key] = ns
        keep_times(found)
        known |= found
    return {name: known[key] for name, key in keys.items() if key in known}


def rates_of(device_type: str, cost_model: str) -> DeviceRates:
    """What a device can do: a processor measured for "measured", a constant otherwise; a GPU by its datasheet."""
    return _processor_rates() if (device_type, cost_model) == ("cpu", "measured") else device_rates(device_type)


def _processor_rates() -> DeviceRates:
    """Of this processor with the threads that torch has now, measured once and kept on disk."""
    measurements: dict[str, Callable[[], int]] = {"copy": _copy_ns, "launch": _launch_ns}
    measurements |= {str(dtype): partial(_product_ns, dtype) for dtype in _DTYPES}
    keys = {name: f"{name}, {torch.get_num_threads()} threads" for name in measurements}
    typical = device_rates("cpu")
    if _torch_compat.profiler_is_running() and not set(keys.values()) <= read_times().keys():
        return typical
    times = _times({keys[name]: measure for name, measure in measurements.items()})
    flops_per_s = {dtype: 2 * _SIDE**3 / times[keys[str(dtype)]] * 1e9 for dtype in _DTYPES}
    speed = flops_per_s[torch.float32] / typical.flops_per_s[torch.float32]
    return replace(
        typical,
        name=processor_name(),
        flops_per_s=flops_per_s,
        bandwidth_bytes_per_s=2 * _COPIED_BYTES / times[keys["copy"]] * 1e9,
        launch_ns=times[keys["launch"]],
        slow_ns={op: ns / speed for op, ns in typical.slow_ns.items()},
    )


def _copy_ns() -> int:
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device="cpu")
    return _fastest_ns(partial(source.clone().copy_, source), 0)


def _launch_ns() -> int:
    one = torch.ones(1, device="cpu")
    return _fastest_ns(partial(torch.add, one, one, out=one), 0)


def _product_ns(dtype: torch.dtype) -> int:
    matrix = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype, device="cpu")
    return _fastest_ns(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)), 0)


def _times(measurements: Mapping[str, Callable[[], int]]) -> dict[str, int]:
    """Of each by its key, measured on real data if it is not known; graphs are planned under a mode of fake ones."""
    known = read_times()
    with _torch_compat.no_fake_tensors(), torch.no_grad():
        times = {key: known.get(key) or max(1, measure()) for key, measure in measurements.items()}
    if any(key not in known for key in times):
        keep_times(times)
    return times


def _page_fault_ns() -> int:
    """What a fault adds to the time of a kernel that touches memory first."""
    costs = []
    for _ in range(_RUNS):
        fresh = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cpu")
        touch = partial(fresh.fill_, 1)
        (first_ns, faults), (again_ns, _) = _observe(touch), _observe(touch)
        # Of huge pages there are fewer than a small output would have: one is not charged more than a common page.
        costs.append(max(0, first_ns - again_ns) // max(faults, _COPIED_BYTES // mmap.PAGESIZE))
    return min(costs)


def _fastest_ns(run: Run, fault_ns: int) -> int:
    spent, durations = 0, list[int]()
    while len(durations) < _RUNS and spent < _ENOUGH_NS:
        duration, faults = _observe(run)
        spent += duration
        durations.append(max(duration // 4, duration - faults * fault_ns))
    return min(durations)


def _observe(run: Run) -> tuple[int, int]:
    """Nanoseconds of one run, and how often it touched memory that the system had still to provide."""
    faults, begin = _page_faults(), time.perf_counter_ns()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter_ns() - begin, _page_faults() - faults


def _page_faults() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
