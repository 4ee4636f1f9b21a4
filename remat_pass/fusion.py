"""Which values exist in memory when the lowering fuses, and when their kernels run: Inductor's rules, without torch.

    exists     a pointwise value that only generated kernels read is computed inside each of them. It is written to
               memory if it is returned or saved, if an extern kernel reads it, or if it gathers so many loads that
               computing it in several readers would cost more than loading it
    runs at    kernels over the same extent that load the same value are fused, wherever they stood: the later one is
               hoisted to the earlier one, if what it needs is there by then. Its output is then alive from there on
    overwrite  a kernel may write over a value that it alone still reads

These are the rules that decide peaks; Inductor has many more. The plan that is chosen by them is checked against
Inductor's own schedule (`inductor_peak`).

Source: torch/_inductor/lowering.py, ir.py (`StorageBox.mark_reuse`), scheduler.py (`can_fuse`, `decide_inplace_update`)
of torch 2.13.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import chain

import numpy as np

from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program

_FUSING_READERS = (Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.SYMBOL)
_LOOPS = (Kind.POINTWISE, Kind.REDUCTION)

_REALIZE_READS = 4
"""Inductor computes a value in each of several readers only up to this many loads (`realize_reads_threshold`)."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How the steps of a program run; arrays are of shape (steps,)."""

    exists: np.ndarray
    """Whether a step writes memory; bool."""
    runs_at: np.ndarray
    """Position at which its kernel runs; int64."""
    may_overwrite: list[tuple[int, int]]
    """(new, old): the value at `new` may take the storage of the one at `old`."""


def unfused_kernels(program: Program) -> Kernels:
    """One kernel per step, where it stands."""
    count = len(program.values)
    return Kernels(np.ones(count, dtype=bool), np.arange(count), [])


def fused_kernels(problem: RematProblem, program: Program) -> Kernels:
    """The kernels of the module docstring. Linear in steps, apart from a search among the kernels that load a value."""
    is_view = problem.is_kind(Kind.VIEW)[program.steps]
    reads = _through_views(program.reads, is_view) if is_view.any() else program.reads
    exists = _exists(problem, program, is_view, reads)
    stored = exists & ~is_view
    sources = _loaded(program.reads, stored.tolist())
    loops = np.flatnonzero(problem.is_kind(*_LOOPS)[program.steps] & exists).tolist()
    runs_at, loads_at = _hoisted(problem, program, loops, sources)
    return Kernels(exists, np.array(runs_at, dtype=np.int64), _overwrites(program, loops, sources, loads_at, runs_at))


def _hoisted(
    problem: RematProblem, program: Program, loops: list[int], sources: list[list[int]]
) -> tuple[list[int], dict[tuple[int, int], int]]:
    """When each step runs, and how many loops load a storage at a moment."""
    runs_at = list(range(len(program.values)))
    ready_at = list(range(1, len(program.values) + 1))
    sizes = problem.size_bytes[program.steps].tolist()
    # By storage and extent: when the kernels run that load or write it, in order.
    moments: dict[tuple[int, int], list[int]] = {}
    loads_at: dict[tuple[int, int], int] = {}
    for p in loops:
        loaded = sources[p]
        begin = program.forward_end if p >= program.forward_end else 0
        extent = max([sizes[p], *[sizes[s] for s in loaded]])
        ready = max([begin, *[ready_at[s] for s in loaded if s >= begin]])
        best = p
        for s in loaded:
            same = moments.get((s, extent))
            if same and same[-1] >= ready:
                best = min(best, same[bisect_left(same, ready)])
        runs_at[p] = ready_at[p] = best
        moments[p, extent] = [best]
        for s in loaded:
            insort(moments.setdefault((s, extent), []), best)
            loads_at[s, best] = loads_at.get((s, best), 0) + 1
    return runs_at, loads_at


def _overwrites(
    program: Program,
    loops: list[int],
    sources: list[list[int]],
    loads_at: dict[tuple[int, int], int],
    runs_at: list[int],
) -> list[tuple[int, int]]:
    """At most one old value per new one: the first that no other kernel of the same moment reads."""
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for p in loops:
        begin, at = program.forward_end if p >= program.forward_end else 0, runs_at[p]
        for s in sources[p]:
            if s >= begin and runs_at[s] < at and s not in taken and loads_at[s, at] == 1:
                taken.add(s)
                pairs.append((p, s))
                break
    return pairs


def _loaded(reads: list[list[int]], stored: list[bool]) -> list[list[int]]:
    """For every step the positions of the storages it really reads, through views and values computed in place."""
    loaded: list[list[int]] = []
    for read in reads:
        if len(read) == 1:
            loaded.append(read if stored[read[0]] else loaded[read[0]])
            continue
        found: dict[int, None] = {}
        for r in read:
            if stored[r]:
                found[r] = None
            else:
                found.update(dict.fromkeys(loaded[r]))
        loaded.append(list(found))
    return loaded


def _exists(problem: RematProblem, program: Program, is_view: np.ndarray, reads: list[list[int]]) -> np.ndarray:
    """Which steps write memory, where pointwise values may be computed inside their readers instead."""
    steps = program.steps
    must = ~problem.is_kind(Kind.POINTWISE)[steps]
    for p in (*program.saved, *program.returned, *program.output_positions(problem)):
        must[reads[p] if is_view[p] else p] = True
    lengths = np.fromiter(map(len, reads), dtype=np.int64, count=len(reads))
    lengths[is_view] = 0
    read = np.fromiter(
        chain.from_iterable(r for r, n in zip(reads, lengths.tolist(), strict=True) if n), dtype=np.int64
    )
    must[read[np.repeat(~problem.is_kind(*_FUSING_READERS)[steps], lengths)]] = True
    several = np.bincount(read, minlength=len(reads)) > 1
    loads = [1] * len(reads)
    exists = must.copy()
    for p in np.flatnonzero(~must).tolist():
        count = sum([loads[r] for r in reads[p]])
        if several[p] and count > _REALIZE_READS:
            exists[p] = True
        else:
            loads[p] = count
    return exists


def _through_views(reads: list[list[int]], is_view: np.ndarray) -> list[list[int]]:
    """For every step the positions it reads, where views stand for what they show."""
    view = is_view.tolist()
    through: list[list[int]] = []
    for read in reads:
        if any(view[r] for r in read):
            through.append(list(dict.fromkeys(q for r in read for q in (through[r] if view[r] else (r,)))))
        else:
            through.append(read)
    return through
