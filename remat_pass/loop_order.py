"""When the kernels of a program run, where the lowering fuses loops: Inductor's rules, without torch.

    joins     a loop is fused with the kernel that writes what it loads, or with one that loads the same, if both run
              over the same extent, and not more than `RematProblem.calls_apart` library calls and `_NODES_APART`
              kernels lie between the loop and the first one of that kernel; for inputs that both load only if for
              nothing else, since these are small
    stands    for that distance a pointwise loop that is not kept counts as standing where the first library call reads
              it: no sooner does Inductor write it
    hoisted   if what the loop needs is there when that kernel runs, it runs then, too
    delayed   else the kernel waits for what the loop needs (`RematProblem.delays_loops`), unless that is made of what
              the kernel writes; what reads the kernel waits with it

Inductor joins by the bytes that are spared, and again what is joined; here each loop joins at most one kernel, the
earliest that it can be hoisted to, or else one of the last two that can wait for it. That a kernel waits, and nothing
is brought forward for it, is what `_torch_compat.KernelsInOrder` makes of Inductor's order.

Source: torch/_inductor/scheduler.py (`can_fuse`, `are_long_distant_nodes`) of torch 2.13.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np

from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program

_CALLS = (Kind.EXTERN, Kind.RANDOM)
_NO_KERNELS = (Kind.VIEW, Kind.PART, Kind.SYMBOL, Kind.CONSTANT, Kind.TANGENT)

_SEEDS = ("prims.inductor_seeds",)
"""Each loop that draws loads another one of these."""

_NODES_APART = 64
"""Inductor fuses over this many kernels at most."""
_JOINS_ROWS_BYTES = 4 * 5 * 2**20
"""Bytes of float32 from which on Triton code reduces the same elements over both dimensions in one kernel
(`MixOrderReduction`)."""
_MOST_TO_DELAY = 2
"""How many kernels are asked whether they can wait for a loop."""


@dataclass(frozen=True, slots=True)
class Loops:
    """The generated loops of a program; arrays are int64 where nothing else is said."""

    positions: np.ndarray
    """Of the loops, in order; shape (loops,)."""
    loaded: np.ndarray
    """Positions that they load, one loop's behind the other's; shape (loads,)."""
    bounds: np.ndarray
    """Loop k loads `loaded[bounds[k] : bounds[k + 1]]`; shape (loops + 1,)."""
    is_elementwise: np.ndarray
    """Whether a load reads each element where it is written: not of a pool; bool, shape (loads,)."""
    is_scatter: np.ndarray
    """Whether a step scatters, so that nobody joins it for what it writes; bool, shape (steps,)."""
    inputs: list[tuple[int, ...]]
    """Inputs that each loop loads."""

    @property
    def loop_of_load(self) -> np.ndarray:
        """Which loop each load is one of; shape (loads,)."""
        return np.repeat(np.arange(len(self.positions)), np.diff(self.bounds))


def running_positions(problem: RematProblem, program: Program, exists: np.ndarray, loops: Loops) -> np.ndarray:
    """The position at which each step runs: its own, or where its kernel is hoisted to or waits; shape (steps,), int64.

    Args:
        problem: The graph.
        program: Its plan on a clock.
        exists: Whether a step writes memory; bool, shape (steps,).
        loops: Those of the program.
    """
    timetable = _Timetable(program, exists)
    runs_at, ready_at, kernel_of = timetable.runs_at, timetable.ready_at, timetable.kernel_of
    extents = _extents(problem, program, loops)
    follows, storages, count = _common_loads(problem, program, loops, extents)
    loading: list[list[int]] = [[] for _ in range(count)]
    """Kernels that load a storage at an extent."""
    loading_input: dict[tuple[int, int], list[int]] = {}
    is_scatter = loops.is_scatter.tolist()
    stands = _stands(problem, program, loops.positions)
    # What stands before the second one no later loop reaches.
    reach, outdated = _reach(problem, program, exists, np.stack((stands[loops.positions], loops.positions)))
    stands_at, loaded = stands.tolist(), loops.loaded.tolist()
    bounds = pairwise(loops.bounds.tolist())
    rows = zip(loops.positions.tolist(), reach, outdated, bounds, loops.inputs, extents.tolist(), strict=True)
    for p, farthest, oldest, (a, b), inputs, extent in rows:
        begin = program.forward_end if p >= program.forward_end else 0
        farthest = max(farthest, begin)
        needed = [s for s in loaded[a:b] if s >= begin]
        # What waits at the end of its program is there by then.
        ready = min(max([begin, *[ready_at[s] for s in needed]]), timetable.end_of(p))
        followed = [s for s, may in zip(loaded[a:b], follows[a:b], strict=True) if may and not is_scatter[s]]
        shared = [loading[key] for key in storages[a:b] if key >= 0]
        shared_inputs = [loading_input.setdefault((i, extent), []) for i in inputs]
        for kernels in (*shared, *shared_inputs):
            kernels[:] = [k for k in kernels if stands_at[k] >= oldest]
        joined = p
        for near in ((*map(kernel_of.__getitem__, followed), *chain(*shared)), chain(*shared_inputs)):
            if joined == p:
                within = [k for k in near if k >= 0 and stands_at[k] >= farthest]
                joined = _joined(problem, timetable, p, within, ready, needed, followed)
        timetable.join(p, joined)
        ready_at[p] += is_scatter[p]
        for kernels in (*shared, *shared_inputs):
            if joined not in kernels[-1:]:
                kernels.append(joined)
    return np.array(runs_at, dtype=np.int64)


def _joined(
    problem: RematProblem,
    timetable: "_Timetable",
    p: int,
    near: Sequence[int],
    ready: int,
    needed: Collection[int],
    followed: Collection[int],
) -> int:
    """Which kernel of those near by the loop at p is fused with, or p; arguments are those of `_Timetable.delays`."""
    joined = p
    for k in near:
        if ready <= timetable.runs_at[k] and (joined == p or timetable.runs_at[k] < timetable.runs_at[joined]):
            joined = k
    if joined == p and near and problem.delays_loops:
        last = sorted(set(near))[-_MOST_TO_DELAY:]
        joined = next((k for k in reversed(last) if timetable.delays(k, ready, p, needed, followed)), p)
    return joined


def _extents(problem: RematProblem, program: Program, loops: Loops) -> np.ndarray:
    """What loops run over, as the bytes of the largest tensor; shape (loops,), int64."""
    sizes = problem.size_bytes[program.steps]
    extents = sizes[loops.positions]
    np.maximum.at(extents, loops.loop_of_load, sizes[loops.loaded])
    # What leaves the last dimension runs over the same elements in another order.
    across = problem.reduces_rows[program.steps[loops.positions]]
    if not problem.joins_loops:
        across &= extents < _JOINS_ROWS_BYTES
    return np.where(across, -1 - sizes[loops.positions], extents)


def _common_loads(
    problem: RematProblem, program: Program, loops: Loops, extents: np.ndarray
) -> tuple[list[bool], list[int], int]:
    """What loops may be fused for.

    Returns:
        For each load whether its loop may follow the kernel that writes it; a number for what is loaded and the extent
        it is loaded at, -1 where no other load shares it; and the count of these numbers.
    """
    loop = loops.loop_of_load
    extent_of = np.zeros(len(program.values), dtype=np.int64)
    extent_of[loops.positions] = extents
    follows = (extent_of[loops.loaded] == extents[loop]) & loops.is_elementwise
    keys = loops.loaded + np.unique(extents, return_inverse=True)[1][loop] * len(program.values)
    found, which, met = np.unique(keys, return_inverse=True, return_counts=True)
    is_seed = problem.is_op(*_SEEDS)[program.steps[loops.loaded]]
    shares = (met[which] > 1) & loops.is_elementwise & ~is_seed
    return follows.tolist(), np.where(shares, which, -1).tolist(), len(found)


def _stands(problem: RematProblem, program: Program, loops: np.ndarray) -> np.ndarray:
    """Where Inductor sees each step for the distance between loops; shape (steps,), int64."""
    steps, count = program.steps, len(program.values)
    is_call = problem.is_kind(*_CALLS)[steps]
    first = np.full(count, count)
    """The first call that reads a step, through views or not."""
    np.minimum.at(first, program.read, np.where(is_call[program.readers], program.readers, count))
    for v in np.flatnonzero(problem.is_kind(Kind.VIEW)[steps])[::-1].tolist():
        viewed = program.read[program.bounds[v] : program.bounds[v + 1]]
        first[viewed] = np.minimum(first[viewed], first[v])
    may_wait = np.zeros(count, dtype=bool)
    may_wait[loops] = problem.is_kind(Kind.POINTWISE)[steps[loops]]
    may_wait[program.kept_positions(problem)] = False
    return np.where(may_wait & (first < count), first, np.arange(count))


def _reach(problem: RematProblem, program: Program, exists: np.ndarray, standing: np.ndarray) -> list[list[int]]:
    """The first position that loops may be fused with, by where they stand; `standing` has shape (rows, loops)."""
    calls = np.flatnonzero(problem.is_kind(*_CALLS)[program.steps])
    kernels = np.flatnonzero(exists & ~problem.is_kind(*_NO_KERNELS)[program.steps])
    behind_call = np.concatenate(([0] * (problem.calls_apart + 1), calls + 1))[np.searchsorted(calls, standing)]
    kernel = np.concatenate(([0] * _NODES_APART, kernels))[np.searchsorted(kernels, standing)]
    reach: list[list[int]] = np.maximum(behind_call, kernel).tolist()
    return reach


class _Timetable:
    """When steps run, as far as loops have been joined. A kernel goes by the position of its first loop."""

    def __init__(self, program: Program, exists: np.ndarray) -> None:
        count = len(program.values)
        self.program = program
        self.exists = exists.tolist()
        self.runs_at = list(range(count))
        self.ready_at = list(range(1, count + 1))
        """From when on a step can be read."""
        self.kernel_of = [-1] * count
        self.members: dict[int, list[int]] = {}

    def end_of(self, p: int) -> int:
        """The last position of the program that p is in."""
        return (self.program.forward_end if p < self.program.forward_end else len(self.runs_at)) - 1

    def join(self, p: int, kernel: int) -> None:
        """The loop at p is part of a kernel, or the first of a new one, its own."""
        self.kernel_of[p] = kernel
        self.members.setdefault(kernel, []).append(p)
        self.runs_at[p] = self.ready_at[p] = self.runs_at[kernel]

    def delays(self, kernel: int, ready: int, p: int, needed: Collection[int], followed: Iterable[int]) -> bool:
        """Whether a kernel can wait for what the loop at p needs; then it does, and all that reads it.

        Args:
            kernel: The kernel.
            ready: When all is there that the loop needs.
            p: The loop.
            needed: What it loads.
            followed: Which of that it can take over from the kernel that writes it.
        """
        own = set(self.members[kernel])
        if not own.isdisjoint(set(needed).difference(followed)):
            return False
        waiting = self._readers_before(own, p)
        if not waiting.isdisjoint(needed):
            return False
        for q in own:
            self.runs_at[q] = self.ready_at[q] = ready
        # They run one behind the other, up to the end of their program.
        end = self.end_of(p)
        waiting |= own
        for q in sorted(waiting - own):
            before = max((self.runs_at[r] for r in self.program.reads[q] if r in waiting), default=0)
            self._postpone(q, min(before + self.exists[q], end))
        return True

    def _readers_before(self, steps: Collection[int], p: int) -> set[int]:
        """What reads steps, directly or not, and stands before p, with the kernels that it is part of."""
        found: set[int] = set()
        pending = list(steps)
        while pending:
            for r in self.readers[pending.pop()]:
                if r < p and r not in found and r not in steps:
                    new = set(self.members.get(self.kernel_of[r], (r,))).difference(steps, found)
                    found |= new
                    pending += new
        return found

    def _postpone(self, q: int, at: int) -> None:
        if at <= self.runs_at[q]:
            return
        is_loop = self.kernel_of[q] >= 0
        for member in self.members[self.kernel_of[q]] if is_loop else (q,):
            self.runs_at[member] = at
            self.ready_at[member] = at if is_loop else at + 1

    @cached_property
    def readers(self) -> list[list[int]]:
        """For every step the positions that read it."""
        readers: list[list[int]] = [[] for _ in self.runs_at]
        for q, row in enumerate(self.program.reads):
            for r in row:
                readers[r].append(q)
        return readers
