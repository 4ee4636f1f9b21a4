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

from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program

_FUSING_READERS = frozenset({Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.SYMBOL})
_LOOPS = frozenset({Kind.POINTWISE, Kind.REDUCTION})

_REALIZE_READS = 4
"""Inductor computes a value in each of several readers only up to this many loads (`realize_reads_threshold`)."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How the steps of a program run; every list is indexed by position."""

    exists: list[bool]
    runs_at: list[int]
    may_overwrite: list[tuple[int, int]]
    """(new, old): the value at `new` may take the storage of the one at `old`."""


def unfused_kernels(program: Program) -> Kernels:
    """One kernel per step, where it stands."""
    count = len(program.values)
    return Kernels([True] * count, list(range(count)), [])


def fused_kernels(problem: RematProblem, program: Program) -> Kernels:
    """The kernels of the module docstring. Linear in steps, apart from a search among the kernels that load a value."""
    values, steps = problem.values, program.values
    exists = _exists(problem, program)
    sources = _loaded(problem, program, exists)
    runs_at = list(range(len(steps)))
    is_loop = [values[v].kind in _LOOPS for v in steps]
    sizes = [values[v].size.hint for v in steps]
    # Of each storage, by extent, when the kernels run that load or write it, in order.
    moments: list[dict[int, list[int]]] = [{} for _ in steps]
    loads_at: dict[tuple[int, int], int] = {}
    for p, loaded in enumerate(sources):
        if not (is_loop[p] and exists[p]):
            continue
        begin = program.forward_end if p >= program.forward_end else 0
        ready, extent = begin, sizes[p]
        for s in loaded:
            extent = max(extent, sizes[s])
            if s >= begin:
                ready = max(ready, runs_at[s] if is_loop[s] else s + 1)
        best = p
        for s in loaded:
            same = moments[s].get(extent, ())
            first = bisect_left(same, ready)
            if first < len(same):
                best = min(best, same[first])
        runs_at[p] = best
        insort(moments[p].setdefault(extent, []), best)
        for s in loaded:
            insort(moments[s].setdefault(extent, []), best)
            loads_at[s, best] = loads_at.get((s, best), 0) + 1
    return Kernels(exists, runs_at, _overwrites(program, sources, loads_at, runs_at))


def _overwrites(
    program: Program, sources: list[tuple[int, ...]], loads_at: dict[tuple[int, int], int], runs_at: list[int]
) -> list[tuple[int, int]]:
    """At most one old value per new one: the first that no other kernel of the same moment reads."""
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for p, loaded in enumerate(sources):
        begin = program.forward_end if p >= program.forward_end else 0
        for s in loaded:
            if s < begin or s in taken or runs_at[s] >= runs_at[p]:
                continue
            if loads_at.get((s, runs_at[p])) == 1:
                taken.add(s)
                pairs.append((p, s))
                break
    return pairs


def _loaded(problem: RematProblem, program: Program, exists: list[bool]) -> list[tuple[int, ...]]:
    """For every step the positions of the storages it really reads, through views and values computed in place."""
    stored = [e and problem.values[v].kind is not Kind.VIEW for e, v in zip(exists, program.values, strict=True)]
    loaded: list[tuple[int, ...]] = []
    for reads in program.reads:
        if len(reads) == 1:
            loaded.append((reads[0],) if stored[reads[0]] else loaded[reads[0]])
            continue
        found: dict[int, None] = {}
        for r in reads:
            if stored[r]:
                found[r] = None
            else:
                found.update(dict.fromkeys(loaded[r]))
        loaded.append(tuple(found))
    return loaded


def _exists(problem: RematProblem, program: Program) -> list[bool]:
    """Which steps write memory, where pointwise values may be computed inside their readers instead."""
    values, steps = problem.values, program.values
    reads = _reads_through_views(problem, program)
    must = [False] * len(steps)
    for p in (*program.saved, *program.returned, *program.output_positions(problem)):
        for r in reads[p] if values[steps[p]].kind is Kind.VIEW else (p,):
            must[r] = True
    readers = [0] * len(steps)
    for p, v in enumerate(steps):
        if values[v].kind is Kind.VIEW:
            continue
        forces = values[v].kind not in _FUSING_READERS
        for r in reads[p]:
            readers[r] += 1
            must[r] = must[r] or forces
    loads: list[int] = []
    exists: list[bool] = []
    for p, v in enumerate(steps):
        if values[v].kind is not Kind.POINTWISE or must[p]:
            exists.append(True)
            loads.append(1)
            continue
        count = sum(loads[r] for r in reads[p])
        realized = readers[p] > 1 and count > _REALIZE_READS
        exists.append(realized)
        loads.append(1 if realized else count)
    return exists


def _reads_through_views(problem: RematProblem, program: Program) -> list[list[int]]:
    """For every step the positions it reads, where views stand for what they show."""
    values, steps = problem.values, program.values
    is_view = [values[v].kind is Kind.VIEW for v in steps]
    through: list[list[int]] = []
    for reads in program.reads:
        if any(is_view[r] for r in reads):
            found = dict.fromkeys(q for r in reads for q in (through[r] if is_view[r] else (r,)))
            through.append(list(found))
        else:
            through.append(reads)
    return through
