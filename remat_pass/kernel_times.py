"""How long things take on this machine: what a processor can do, and with `cost_model="measured"` each kernel.

Rates of a processor are measured once and kept on disk by its name (`kept_times`), in some seconds. GPUs have
datasheets (`costs`).

A kernel is timed on dummy data, and kept on disk (`kept_times`) by op, shapes, strides, dtypes, device and settings of
speed, so that a second process plans with the same times. What Inductor generates itself is not there to be timed
before there is a plan: its loops are priced by the bytes they move, at the rate of a loop that is measured here, and
by their slow arithmetic. Loops are as fast as caches let them be; what forward leaves to backward is too much for
those, and costs more.

Fresh memory is not a kernel's own time. The C library maps large blocks anew for every run, and each first touch of a
page is a fault; a kernel that writes 64 MiB seems to take twice as long. A caching allocator, and a training step that
reuses its memory, do not pay that, so the faults of a run are counted and taken off at what one costs here.
"""

import itertools
import math
import mmap
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import fx
from torch.nn.functional import scaled_dot_product_attention

from remat_pass import _torch_compat
from remat_pass.costs import DRAW, TYPICAL_CPU, TYPICAL_THREADS, DeviceRates, card_rates
from remat_pass.kept_times import keep_times, processor_name, read_times
from remat_pass.probe import dummy_run
from remat_pass.progress import shown_if_slow

_RUNS = 5
_ENOUGH_NS = 500_000_000
"""No further run is made of an op that has taken so long."""
_LEAST_NS = 100_000_000
"""So long each rate of a processor is measured, for what else runs there must not become one that is kept."""

_COPIED_BYTES = 64 * 2**20
"""More than most caches hold."""
_PIECE_BYTES = 2**20
_PIECE_ELEMENTS = _PIECE_BYTES // 4
_ROW = 256
"""Elements of what a loop reduces."""
_SIDE = 512
"""Of the square matrices whose product tells what the processor can do."""
_IMAGES = (4, 64, 32, 32)
"""What a convolution of 3 x 3 reads and writes."""
_HEADS = (1, 4, 256, 64)
"""Of queries, keys and values: batch, heads, positions, width."""
_ATTENTION_FLOPS = 4 * math.prod(_HEADS) * _HEADS[2]
_FLOPS = {
    "product": 2 * _SIDE**3,
    "convolution": 2 * 9 * math.prod(_IMAGES) * _IMAGES[1],
    "attention": _ATTENTION_FLOPS,
    "attention backward": 2.5 * _ATTENTION_FLOPS,
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_FAST_DTYPES = (torch.float32, torch.bfloat16)
"""Those of convolutions and attention; others are taken to be as fast as products."""
_SLOW_OPS = ("exp", "log", "log1p", "sigmoid", "tanh", "erf")
"""Made by the same vector code in a generated loop and in a kernel of torch, if that is one of bfloat16: of float32
torch would call another library."""
_MOVE = "square"
"""What is taken off, for they read and write, and round, too."""

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


def rates_of(device_type: str) -> DeviceRates:
    """What a device can do: a processor as measured, a GPU by its datasheet."""
    return processor_rates() if device_type == "cpu" else card_rates()


def processor_rates() -> DeviceRates:
    """Of this processor with the threads that torch has now, measured once and kept on disk.

    Slow arithmetic that is not measured is that of a typical one, for this one as much faster as its products are;
    draws, which are no vector arithmetic, as it has more threads. Under a profiler, which would be timed, too, a
    processor that is not known yet is taken for that one.

    Threads share the memory: how much faster they are together only they can tell, if nothing else runs.
    """
    threads = torch.get_num_threads()
    together = f"memory, {threads} threads"
    measurements = {together: _memory_ns, **_ON_ONE_THREAD}
    if _torch_compat.profiler_is_running() and not measurements.keys() <= read_times().keys():
        return TYPICAL_CPU
    ns = _times(measurements)
    per_s = {what: threads * flops / ns[what] * 1e9 for what in ns if (flops := _FLOPS.get(what.partition(",")[0]))}
    flops_per_s = {dtype: per_s[f"product, {dtype}"] for dtype in _DTYPES}
    speed = flops_per_s[torch.float32] / TYPICAL_CPU.flops_per_s[torch.float32]
    return DeviceRates(
        processor_name(),
        flops_per_s,
        threads * 2 * _PIECE_BYTES / ns["loop"] * 1e9,
        ns["launch"],
        held_ns_per_byte=min(ns[together], ns["memory"]) / _PIECE_BYTES,
        convolution_flops_per_s={d: per_s[f"convolution, {d}"] for d in _FAST_DTYPES},
        attention_flops_per_s={
            **{(d, False): per_s[f"attention, {d}"] for d in _FAST_DTYPES},
            **{(d, True): per_s[f"attention backward, {d}"] for d in _FAST_DTYPES},
        },
        slow_ns={
            **{
                op: slow / (threads / TYPICAL_THREADS if op == DRAW else speed)
                for op, slow in TYPICAL_CPU.slow_ns.items()
            },
            **{f"aten.{op}": max(0, ns[op] - ns[_MOVE]) / _PIECE_ELEMENTS / threads for op in _SLOW_OPS},
        },
    )


def _at_best_ns(run: Run) -> int:
    return _fastest_ns(run, 0, least_ns=_LEAST_NS)


def _loop_ns() -> int:
    """Over a piece in a cache: like most loops of a training step it reduces rows, and reads what it has just made."""
    rows = torch.full((_PIECE_ELEMENTS // _ROW, _ROW), 0.5, device="cpu")
    return _at_best_ns(partial(torch.softmax, rows, -1, out=torch.empty_like(rows)))


def _elementwise_ns(op: str) -> int:
    """Over a piece in a cache."""
    piece = torch.full((_PIECE_ELEMENTS,), 0.5, dtype=torch.bfloat16, device="cpu")
    return _at_best_ns(partial(getattr(torch, op), piece, out=torch.empty_like(piece)))


def _memory_ns() -> int:
    """Of a copy of one piece, what it takes longer if the piece is each time another one, which is in no cache."""
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device="cpu")
    pieces = [*zip(source.clone().split(_PIECE_BYTES), source.split(_PIECE_BYTES), strict=True)]

    def copy_ns(pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        following = itertools.cycle(pieces)

        def copy() -> None:
            to, piece = next(following)
            to.copy_(piece)

        return _at_best_ns(copy)

    return copy_ns(pieces) - copy_ns(pieces[:1])


def _alone(measure: Callable[[], int]) -> int:
    """On one thread, which is soon left alone for a while where other processes run; of several one always waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(threads)


def _launch_ns() -> int:
    one = torch.ones(1, device="cpu")
    return _at_best_ns(partial(torch.add, one, one, out=one))


def _product_ns(dtype: torch.dtype) -> int:
    matrix = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype, device="cpu")
    return _at_best_ns(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)))


def _convolution_ns(dtype: torch.dtype) -> int:
    images = torch.full(_IMAGES, 0.5, dtype=dtype, device="cpu").to(memory_format=torch.channels_last)
    filters = torch.full((_IMAGES[1], _IMAGES[1], 3, 3), 0.5, dtype=dtype, device="cpu")
    filters = filters.to(memory_format=torch.channels_last)
    return _at_best_ns(partial(torch.conv2d, images, filters, padding=1))


def _attention_ns(dtype: torch.dtype) -> int:
    heads = torch.full(_HEADS, 0.5, dtype=dtype, device="cpu")
    return _at_best_ns(partial(scaled_dot_product_attention, heads, heads, heads))


def _attention_backward_ns(dtype: torch.dtype) -> int:
    with torch.enable_grad():
        heads = torch.full(_HEADS, 0.5, dtype=dtype, device="cpu", requires_grad=True)
        result = scaled_dot_product_attention(heads, heads, heads)
        gradient = torch.ones_like(result)
        return _at_best_ns(partial(torch.autograd.grad, result, heads, gradient, retain_graph=True))


_MEASUREMENTS: Mapping[str, Callable[[], int]] = {
    "launch": _launch_ns,
    "loop": _loop_ns,
    "memory": _memory_ns,
    **{op: partial(_elementwise_ns, op) for op in (_MOVE, *_SLOW_OPS)},
    **{f"product, {dtype}": partial(_product_ns, dtype) for dtype in _DTYPES},
    **{f"convolution, {dtype}": partial(_convolution_ns, dtype) for dtype in _FAST_DTYPES},
    **{f"attention, {dtype}": partial(_attention_ns, dtype) for dtype in _FAST_DTYPES},
    **{f"attention backward, {dtype}": partial(_attention_backward_ns, dtype) for dtype in _FAST_DTYPES},
}
_ON_ONE_THREAD: Mapping[str, Callable[[], int]] = {
    what: partial(_alone, measure) for what, measure in _MEASUREMENTS.items()
}
"""What is measured of a processor, beside what its threads together do to memory: nanoseconds by what it is."""


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


def _fastest_ns(run: Run, fault_ns: int, least_ns: int = 0) -> int:
    """Of some runs, and of as many as take `least_ns` together."""
    spent, durations = 0, list[int]()
    while (len(durations) < _RUNS and spent < _ENOUGH_NS) or spent < least_ns:
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
