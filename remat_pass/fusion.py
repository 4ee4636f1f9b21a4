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
    """The kernels of the module docstring. Linear in steps, up to the number of kernels that load one value."""
    values, steps = problem.values, program.values
    exists = _exists(problem, program)
    sources = _loaded(problem, program, exists)
    runs_at = list(range(len(steps)))
    loops_on: list[list[int]] = [[] for _ in steps]
    extent = [0] * len(steps)
    for p, v in enumerate(steps):
        if not exists[p] or values[v].kind not in _LOOPS:
            continue
        extent[p] = max([values[v].size.hint, *(values[steps[s]].size.hint for s in sources[p])])
        begin = program.forward_end if p >= program.forward_end else 0
        is_loop = {s: values[steps[s]].kind in _LOOPS for s in sources[p]}
        ready = max([begin, *(runs_at[s] if is_loop[s] else s + 1 for s in sources[p] if s >= begin)])
        partners = [k for s in sources[p] for k in (*loops_on[s], *((s,) if is_loop[s] else ()))]
        runs_at[p] = min(
            (runs_at[k] for k in partners if extent[k] == extent[p] and ready <= runs_at[k] < p), default=p
        )
        for s in sources[p]:
            loops_on[s].append(p)
    return Kernels(exists, runs_at, _overwrites(program, sources, loops_on, runs_at))


def _overwrites(
    program: Program, sources: list[tuple[int, ...]], loops_on: list[list[int]], runs_at: list[int]
) -> list[tuple[int, int]]:
    """At most one old value per new one: the first that no other kernel of the same moment reads."""
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for p, loaded in enumerate(sources):
        begin = program.forward_end if p >= program.forward_end else 0
        for s in loaded:
            alone = sum(runs_at[k] == runs_at[p] for k in loops_on[s]) == 1
            if alone and p in loops_on[s] and begin <= s and runs_at[s] < runs_at[p] and s not in taken:
                taken.add(s)
                pairs.append((p, s))
                break
    return pairs


def _loaded(problem: RematProblem, program: Program, exists: list[bool]) -> list[tuple[int, ...]]:
    """For every step the positions of the storages it really reads, through views and values computed in place."""
    values, steps = problem.values, program.values
    loaded: list[tuple[int, ...]] = []
    for reads in program.reads:
        found: dict[int, None] = {}
        for r in reads:
            is_storage = exists[r] and values[steps[r]].kind is not Kind.VIEW
            found.update(dict.fromkeys((r,) if is_storage else loaded[r]))
        loaded.append(tuple(found))
    return loaded


def _exists(problem: RematProblem, program: Program) -> list[bool]:
    """Which steps write memory, where pointwise values may be computed inside their readers instead."""
    values, steps, reads = problem.values, program.values, program.reads
    must = [False] * len(steps)
    for p in (*program.saved, *program.returned, *program.output_positions(problem)):
        _mark(problem, program, p, must)
    readers = [0] * len(steps)
    for p, v in enumerate(steps):
        forces = values[v].kind not in _FUSING_READERS
        for r in reads[p]:
            readers[r] += 1
            if forces:
                _mark(problem, program, r, must)
    loads: list[int] = []
    exists: list[bool] = []
    for p, v in enumerate(steps):
        if values[v].kind is not Kind.POINTWISE or must[p]:
            exists.append(True)
            loads.append(loads[reads[p][0]] if values[v].kind is Kind.VIEW and reads[p] else 1)
            continue
        count = sum(loads[r] for r in reads[p])
        realized = readers[p] > 1 and count > _REALIZE_READS
        exists.append(realized)
        loads.append(1 if realized else count)
    return exists


def _mark(problem: RematProblem, program: Program, position: int, must: list[bool]) -> None:
    """Mark a step, or the one whose storage it shares, as needed in memory."""
    pending = [position]
    while pending:
        p = pending.pop()
        held = problem.values[program.values[p]].holds
        must[p] = True
        pending += [r for r in program.reads[p] if program.values[r] in held and not must[r]]
