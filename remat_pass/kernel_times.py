"""How long kernels take on this machine: `cost_model="measured"`.

An op is timed on dummy data, and kept on disk (`kept_times`) by op, shapes, strides, dtypes, device and thread count,
so that a second process plans with the same times. What Inductor generates itself is not there to be timed before there
is a plan: its loops are priced by the bytes they move, at the bandwidth that is measured here.

Fresh memory is not a kernel's own time. The C library maps large blocks anew for every run, and each first touch of a
page is a fault; a kernel that writes 64 MiB seems to take twice as long. A caching allocator, and a training step that
reuses its memory, do not pay that, so the faults of a run are counted and taken off at what one costs here.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
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

_MEBIBYTE = 2**20
_COPIED_BYTES = 64 * _MEBIBYTE
"""More than caches hold."""
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
    known = read_times()
    missing = {run.key: run for run in runs.values() if run.key not in known}
    if missing and not _torch_compat.profiler_is_running():
        fault_ns = _times({"page fault": _page_fault_ns})["page fault"]
        found: dict[str, int] = {}
        for key, run in shown_if_slow([*missing.items()], "remat_pass: timing kernels"):
            if (ns := run.measure(lambda once: _fastest_ns(once, fault_ns))) is not None:
                found[key] = ns
        keep_times(found)
        known |= found
    return {name: known[run.key] for name, run in runs.items() if run.key in known}


def rates_of(device_type: str, cost_model: str) -> DeviceRates:
    """What a device can do: a processor measured for "measured", a constant otherwise; a GPU by its datasheet."""
    return _processor_rates() if (device_type, cost_model) == ("cpu", "measured") else device_rates(device_type)


def _processor_rates() -> DeviceRates:
    """Of this processor with the threads that torch has now, measured once and kept on disk."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8).fill_(1)
    target = source.clone()
    one = torch.ones(1)
    runs: dict[str, Run] = {"copy": partial(target.copy_, source), "launch": partial(torch.add, one, one, out=one)}
    for dtype in _DTYPES:
        matrix = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype)
        runs[str(dtype)] = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
    threads = torch.get_num_threads()
    times = _times({f"{name}, {threads} threads": partial(_fastest_ns, run, 0) for name, run in runs.items()})
    found = dict(zip(runs, times.values(), strict=True))
    return DeviceRates(
        processor_name(),
        {dtype: 2 * _SIDE**3 / found[str(dtype)] * 1e9 for dtype in _DTYPES},
        2 * _COPIED_BYTES / found["copy"] * 1e9,
        found["launch"],
    )


def _times(measurements: Mapping[str, Callable[[], int]]) -> dict[str, int]:
    """Of each by its key, measured if it is not known."""
    known = read_times()
    times = {key: known.get(key) or max(1, measure()) for key, measure in measurements.items()}
    if any(key not in known for key in times):
        keep_times(times)
    return times


def _page_fault_ns() -> int:
    """What a fault adds to the time of a kernel that touches memory first."""
    costs = []
    for _ in range(_RUNS):
        fresh = torch.empty(_COPIED_BYTES, dtype=torch.uint8)
        touch = partial(fresh.fill_, 1)
        (first_ns, faults), (again_ns, _) = _observe(touch), _observe(touch)
        costs.append(max(0, first_ns - again_ns) // max(1, faults))
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
