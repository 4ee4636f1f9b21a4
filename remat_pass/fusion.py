"""Which values exist in memory when the lowering fuses, and when their kernels run: Inductor's rules, without torch.

    exists     a pointwise value that only generated kernels read is computed inside each of them. It is written to
               memory if it is returned or saved, if an extern kernel reads it, if windows over it are pooled, or if
               several kernels read it and it gathers so many loads, or in C++ such functions, that computing it in
               each would cost more
    runs at    a loop is fused with earlier ones, is hoisted to them or keeps them waiting (`loop_order`)
    overwrite  a kernel may write over a value that it alone still reads, each element behind its last reading, and so
               may a call that updates it
    functions  in C++ all kernels between two library calls are one function (`RematProblem.joins_loops`): what it
               writes is allocated before it, and what it reads is freed behind it

These are the rules that decide peaks; Inductor has many more. The plan that is chosen by them is checked against
Inductor's own schedule (`inductor_peak`).

Source: torch/_inductor/lowering.py, ir.py (`StorageBox.mark_reuse`), scheduler.py (`decide_inplace_update`) of torch
2.13.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from remat_pass.loop_order import Loops, running_positions
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program

_FUSING_READERS = (Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.SYMBOL)
LOOPS = (Kind.POINTWISE, Kind.REDUCTION)
"""Kinds that Inductor generates a loop for."""

_COMPUTED_ONCE = tuple(f"aten.{op}" for op in ("exp", "log", "log10", "log1p", "log2", "sigmoid", "tanh"))
"""In C++, what takes one of these is not computed in several readers, however little it loads."""
_WRITTEN = ("prims.inductor_random",)
"""Written to memory wherever more than one kernel reads it."""

_POOLS = (
    "aten.avg_pool2d",
    "aten.avg_pool2d_backward",
    "aten._adaptive_avg_pool2d",
    "aten.upsample_nearest2d",
    "prims._low_memory_max_pool_with_offsets",
)
"""What these read is written to memory if computing it takes more than one load: they read it several times."""
_SCATTERS = ("aten.index_put", "aten._unsafe_masked_index_put_accumulate")
"""Where they are loops, no other is fused to them for what they write."""
_UPDATES = ("aten.scatter", "aten.scatter_add", "aten.scatter_reduce", *_SCATTERS)
"""Library calls that write over what they read first, if nothing else does."""

_COPIES_EXPANDED = (
    "aten._scaled_dot_product_efficient_attention_backward",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_cudnn_attention_backward",
)
"""For these an expanded mask that is not in memory anyway is written as large as it is read: once for every head
(`sdpa_constraint` in lowering.py)."""

_REALIZE_READS = 4
"""Inductor computes a value in each of several readers only up to this many different loads
(`realize_reads_threshold`)."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How the steps of a program run; arrays are of shape (steps,)."""

    exists: np.ndarray
    """Whether a step writes memory; bool."""
    size_bytes: np.ndarray
    """What it writes; int64."""
    runs_at: np.ndarray
    """Position at which its kernel runs; int64."""
    may_overwrite: tuple[np.ndarray, np.ndarray]
    """New and old values: a new one may take the storage of an old one of its size that ends there; int64."""
    begins: np.ndarray
    ends: np.ndarray
    """First and last position of the generated function or library call that each position is part of; int64."""


def unfused_kernels(problem: RematProblem, program: Program) -> Kernels:
    """One kernel per step, where it stands."""
    positions = np.arange(len(program.values))
    exists, size_bytes = np.ones(len(positions), dtype=bool), problem.size_bytes[program.steps]
    return Kernels(exists, size_bytes, positions, (positions[:0], positions[:0]), positions, positions)


def fused_kernels(problem: RematProblem, program: Program) -> Kernels:
    """The kernels of the module docstring. Linear in steps, apart from a search among the kernels that load a value."""
    steps = program.steps
    is_view = problem.is_kind(Kind.VIEW)[steps]
    exists = _exists(problem, program, is_view)
    loops = np.flatnonzero(problem.is_kind(*LOOPS)[steps] & exists)
    loaded, bounds = _through(program, ~exists | is_view, loops)
    is_pool = problem.is_op(*_POOLS)[program.steps]
    is_elementwise = ~np.repeat(is_pool[loops], np.diff(bounds))
    is_scatter = problem.is_op(*_SCATTERS)[program.steps]
    inputs = _inputs_loaded(problem, program, ~exists | is_view, loops)
    runs_at = running_positions(
        problem, program, exists, Loops(loops, loaded, bounds, is_elementwise, is_scatter, inputs)
    )
    begins, ends = _functions(problem, program, runs_at)
    size_bytes = np.where(exists, _written_bytes(problem, program, is_view), 0)
    may_overwrite = _may_overwrite(problem, program, loops, loaded, bounds, runs_at)
    return Kernels(exists, size_bytes, runs_at, may_overwrite, begins, ends)


def _through(program: Program, is_open: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What some steps read, where open steps stand for what they read themselves.

    Args:
        program: The program.
        is_open: Which steps are looked through; shape (steps,), bool.
        rows: The steps to look from, in order.

    Returns:
        Positions, each once per row, and bounds: those of the k-th row are `positions[bounds[k] : bounds[k + 1]]`.
    """
    bounds = program.bounds
    reads_open = np.zeros(len(program.values), dtype=bool)
    reads_open[program.readers[is_open[program.read]]] = True
    if not reads_open[rows].any():
        lengths = bounds[rows + 1] - bounds[rows]
        ends = lengths.cumsum()
        entries = np.arange(lengths.sum()) + np.repeat(bounds[rows] - ends + lengths, lengths)
        return program.read[entries], np.concatenate(([0], ends))
    wanted = is_open.copy()
    wanted[rows] = True
    read, ends, is_open_step, mixed = program.read.tolist(), bounds.tolist(), is_open.tolist(), reads_open.tolist()
    seen: list[list[int]] = [[]] * len(is_open_step)
    for p in np.flatnonzero(wanted).tolist():
        row = read[ends[p] : ends[p + 1]]
        if mixed[p]:
            if len(row) == 1:
                row = seen[row[0]]
            else:
                row = list(dict.fromkeys([q for r in row for q in (seen[r] if is_open_step[r] else (r,))]))
        seen[p] = row
    found = [seen[p] for p in rows.tolist()]
    return np.array([*chain.from_iterable(found)], dtype=np.int64), np.cumsum([0, *map(len, found)])


def _inputs_loaded(
    problem: RematProblem, program: Program, is_open: np.ndarray, loops: np.ndarray
) -> list[tuple[int, ...]]:
    """The inputs that loops load, by themselves or through open steps, one tuple per loop."""
    direct = problem.loaded_inputs
    found: dict[int, tuple[int, ...]] = {}
    wanted = is_open.copy()
    wanted[loops] = True
    steps, read, bounds, opened = program.values, program.read.tolist(), program.bounds.tolist(), is_open.tolist()
    for p in np.flatnonzero(wanted).tolist():
        through = [r for r in read[bounds[p] : bounds[p + 1]] if r in found and opened[r]]
        mine = direct.get(steps[p], ())
        if through:
            mine = tuple(dict.fromkeys([*mine, *(i for r in through for i in found[r])]))
        if mine:
            found[p] = mine
    return [found.get(p, ()) for p in loops.tolist()]


def _exists(problem: RematProblem, program: Program, is_view: np.ndarray) -> np.ndarray:
    """Which steps write memory, where pointwise values may be computed inside their readers instead."""
    steps = program.steps
    kernels = np.flatnonzero(~is_view)
    read, bounds = _through(program, is_view, kernels)
    must = (~problem.is_kind(Kind.POINTWISE) | problem.is_op(*_WRITTEN))[steps]
    kept = np.zeros(len(steps), dtype=bool)
    kept[program.kept_positions(problem)] = True
    must[_through(program, is_view, np.flatnonzero(kept & is_view))[0]] = True
    must |= kept
    readers = np.repeat(kernels, np.diff(bounds))
    must[read[~problem.is_kind(*_FUSING_READERS)[steps[readers]]]] = True
    several = (np.bincount(read, minlength=len(steps)) > 1).tolist()
    none = frozenset[int]()
    loads = [none] * len(steps)
    """What an inlined value loads: positions, of views where it reads through them."""
    pooled = np.zeros(len(steps), dtype=bool)
    pooled[read[problem.is_op(*_POOLS)[steps[readers]]]] = True
    is_pooled = pooled.tolist()
    computes_much = (problem.is_op(*_COMPUTED_ONCE)[steps] & problem.joins_loops).tolist()
    much = [False] * len(steps)
    exists = must.copy()
    rows, reads = np.flatnonzero(~must[kernels]), read.tolist()
    of_row = zip(kernels[rows].tolist(), bounds[rows].tolist(), bounds[rows + 1].tolist(), strict=True)
    for p, first, end in of_row:
        mine = none.union(*[loads[r] or (r,) for r in reads[first:end]])
        count = len(mine)
        is_much = computes_much[p] or any([much[r] for r in reads[first:end]])
        if is_pooled[p] and count > 1:
            must[p] = exists[p] = True
        elif several[p] and (is_much or count > _REALIZE_READS):
            exists[p] = True
        else:
            loads[p], much[p] = mine, is_much
    reused = np.flatnonzero(exists & ~must).tolist()
    if reused:
        _inline_into_one_kernel(exists, reused, kernels.tolist(), reads, bounds.tolist())
    return exists


def _written_bytes(problem: RematProblem, program: Program, is_view: np.ndarray) -> np.ndarray:
    """Bytes of each step, where it is written at all; shape (steps,), int64."""
    size_bytes, expanded_bytes = problem.size_bytes[program.steps], problem.expanded_bytes[program.steps]
    if expanded_bytes.any():
        copying = np.flatnonzero(problem.is_op(*_COPIES_EXPANDED)[program.steps])
        is_copied = np.zeros(len(size_bytes), dtype=bool)
        is_copied[_through(program, is_view, copying)[0]] = True
        is_copied &= problem.is_kind(Kind.POINTWISE)[program.steps]
        is_copied[program.kept_positions(problem)] = False
        size_bytes = np.where(is_copied, np.maximum(size_bytes, expanded_bytes), size_bytes)
    return size_bytes


def _inline_into_one_kernel(
    exists: np.ndarray, reused: list[int], kernels: list[int], reads: list[int], bounds: list[int]
) -> None:
    """What several values read that end up in one kernel is not written: that kernel computes it, once."""
    none, several = -1, -2
    kernel_of = [none] * len(exists)
    candidates = set(reused)
    for row in range(len(kernels) - 1, -1, -1):
        p = kernels[row]
        if p < reused[0]:
            break
        if p in candidates and kernel_of[p] >= 0:
            exists[p] = False
        kernel = p if exists[p] else kernel_of[p]
        for r in reads[bounds[row] : bounds[row + 1]]:
            kernel_of[r] = kernel if kernel_of[r] in (none, kernel) else several


def _may_overwrite(
    problem: RematProblem,
    program: Program,
    loops: np.ndarray,
    loaded: np.ndarray,
    bounds: np.ndarray,
    runs_at: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`Kernels.may_overwrite`."""
    new = np.repeat(loops, np.diff(bounds))
    may = _reads_before_it_writes(problem, program, new, loaded, runs_at)
    # These read one element and write another.
    elsewhere = problem.is_op(*_POOLS, *_SCATTERS)[program.steps]
    may &= (runs_at[loaded] < runs_at[new]) & ~elsewhere[new]
    updates, updated = _updates(problem, program)
    new, old = np.concatenate((new[may], updates)), np.concatenate((loaded[may], updated))
    returned = np.zeros(len(runs_at), dtype=bool)
    returned[program.output_positions(problem)] = True
    returned[program.returned] = True
    return new[~returned[old]], old[~returned[old]]


def _reads_before_it_writes(
    problem: RematProblem, program: Program, new: np.ndarray, loaded: np.ndarray, runs_at: np.ndarray
) -> np.ndarray:
    """Whether each loop writes when its kernel has read what it loads; shape (loads,), bool.

    No other loop of the kernel loads it, or all its loops are elementwise, or this one is computed from what the others
    make of it.
    """
    at = runs_at[new]
    _, which, loads = np.unique(loaded * len(runs_at) + at, return_inverse=True, return_counts=True)
    is_elementwise = problem.is_kind(Kind.POINTWISE) & ~problem.is_op(*_POOLS, *_SCATTERS)
    may: np.ndarray = (loads[which] == 1) | ~np.isin(at, at[~is_elementwise[program.steps[new]]])
    last = np.zeros(len(loads), dtype=np.int64)
    last[which] = np.arange(len(which))
    sizes = problem.size_bytes[program.steps]
    for k in last[~may[last] & (sizes[new[last]] == sizes[loaded[last]])].tolist():
        may[k] = _needs(program, int(new[k]), {*new[:k][which[:k] == which[k]].tolist()})
    return may


def _needs(program: Program, p: int, others: set[int]) -> bool:
    """Whether a step is computed from all of some earlier ones."""
    first, found, pending = min(others), {p}, [p]
    while pending and not others <= found:
        q = pending.pop()
        reads = program.read[program.bounds[q] : program.bounds[q + 1]].tolist()
        fresh = {r for r in reads if r >= first}.difference(found)
        found |= fresh
        pending += fresh
    return others <= found


def _updates(problem: RematProblem, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Library calls that may write over what they read first, and that."""
    is_update = problem.is_op(*_UPDATES) & problem.is_kind(Kind.EXTERN)
    calls = np.flatnonzero(is_update[program.steps] & (np.diff(program.bounds) > 0))
    first = program.read[program.bounds[calls]]
    is_first = [
        problem.values[v].reads[0] == program.values[r]
        for v, r in zip(program.steps[calls].tolist(), first.tolist(), strict=True)
    ]
    return calls[is_first], first[is_first]


def _functions(problem: RematProblem, program: Program, runs_at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Kernels.begins` and `Kernels.ends`."""
    positions = np.arange(len(program.values))
    if not problem.joins_loops:
        return positions, positions
    calls = runs_at[problem.runs_alone[program.steps]]
    bounds = np.unique(np.concatenate(([0, program.forward_end, len(positions)], calls, calls + 1)))
    which = np.searchsorted(bounds, positions, side="right") - 1
    return bounds[which], bounds[which + 1] - 1
