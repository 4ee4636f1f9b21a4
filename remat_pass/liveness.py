"""The peak of a program: which storages exist when.

A storage is born when the step that creates it runs and dies after the last step that reads it, through views too:

    alive(p) = storages born at or before p and used at or after p
    peak     = max over p of  alive(p) + workspace of the step at p

That is how the generated code behaves: it drops every name after its last use. Forward outputs live until forward
returns, saved values on to their last use in backward, tangents from the start of backward, gradients to its end.
Inputs and what the caller keeps are not counted, but copies of inputs are (`Value.copy_bytes`).

Where the lowering fuses (`RematProblem.fuses`), `fusion` says which values exist at all and when their kernels run. A
value that does not exist takes no bytes and keeps what it is computed from alive instead, until the kernels run that
compute it.
"""

from dataclasses import dataclass

import numpy as np

from remat_pass.fusion import Kernels, fused_kernels, unfused_kernels
from remat_pass.matching import largest_matching
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program


@dataclass(frozen=True, slots=True)
class Liveness:
    """Bytes alive at every step of a program.

    Arrays are int64 of shape (steps,). `born[p]` are the bytes of the storage that the step at p creates, alive from
    `begin[p]` to `last_use[p]`.
    """

    peak_bytes: int
    peak_position: int
    alive_bytes: np.ndarray
    """While each step runs, its workspace included."""
    born: np.ndarray
    begin: np.ndarray
    last_use: np.ndarray
    workspace: np.ndarray


def simulate(problem: RematProblem, program: Program) -> Liveness:
    """Run the storages of a program through time. Linear in steps and reads; ties go to the earliest position."""
    kernels = (fused_kernels if problem.fuses else unfused_kernels)(problem, program)
    runs_at, exists = kernels.runs_at, kernels.exists
    last_use = _last_uses(problem, program, runs_at, exists)
    born = np.where(_stays_in_its_kernel(problem, program, runs_at, last_use), 0, kernels.size_bytes)
    begin, end = kernels.begins[runs_at], kernels.ends[last_use]
    for new, old in _overwrites(kernels, born, last_use):
        end[old] = begin[new] - 1
    workspace = problem.workspace_bytes[program.steps]
    # Tangents are all there when backward starts.
    begin[program.forward_end : program.forward_end + len(problem.tangents)] = program.forward_end
    alive = _add_up(problem, program, born, begin, end) + workspace
    at = int(alive.argmax()) if len(alive) else 0
    return Liveness(int(alive.max(initial=0)), at, alive, born, begin, end, workspace)


def _stays_in_its_kernel(
    problem: RematProblem, program: Program, runs_at: np.ndarray, last_use: np.ndarray
) -> np.ndarray:
    """Which values only the kernel that computes them reads: it keeps them in registers; shape (steps,), bool."""
    stays = problem.is_kind(Kind.POINTWISE, Kind.REDUCTION)[program.steps] & (last_use == runs_at) & problem.fuses
    stays[program.kept_positions(problem)] = False
    return stays


def _overwrites(kernels: Kernels, born: np.ndarray, last_use: np.ndarray) -> list[tuple[int, int]]:
    """(new, old): the value at `new` takes the storage of the one at `old`, which its kernel is the last to read."""
    new, old = kernels.may_overwrite
    may = (born[new] == born[old]) & (last_use[old] == kernels.runs_at[new])
    return largest_matching(new[may], old[may])


def _last_uses(problem: RematProblem, program: Program, runs_at: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """For every step the position after which its storage is free."""
    values, steps = problem.values, program.values
    count = len(steps)
    is_open = ~exists | (problem.is_kind(Kind.VIEW)[program.steps] & problem.fuses)
    last_use = np.where(is_open, 0, runs_at)
    last_use[program.output_positions(problem)] = program.forward_end - 1
    last_use[program.saved] = np.maximum(last_use[program.saved], program.forward_end)
    last_use[program.returned] = count - 1
    by_kernel = ~is_open[program.readers]
    np.maximum.at(last_use, program.read[by_kernel], runs_at[program.readers[by_kernel]])
    # What a view or a value that is never stored reads is in use as long as that value is itself.
    passes_on = problem.has_holds[program.steps] | ~exists
    ends: list[int] = last_use.tolist()
    read, bounds = program.read.tolist(), program.bounds.tolist()
    for p in np.flatnonzero(passes_on)[::-1].tolist():
        held = values[steps[p]].holds if exists[p] else None
        for r in read[bounds[p] : bounds[p + 1]]:
            if (held is None or steps[r] in held) and ends[r] < ends[p]:
                ends[r] = ends[p]
    return np.array(ends, dtype=np.int64)


def _add_up(
    problem: RematProblem, program: Program, born: np.ndarray, begin: np.ndarray, last_use: np.ndarray
) -> np.ndarray:
    """Bytes alive while each step runs, without workspace."""
    count = len(born)
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, begin, born)
    np.subtract.at(change, last_use + 1, born)
    for first, last, size in _rng_states(problem, program) + _input_copies(problem, program):
        change[first] += size
        change[last + 1] -= size
    alive = change.cumsum()[:count]
    alive[: program.forward_end] += problem.resident_forward_bytes
    alive[program.forward_end :] += problem.resident_backward_bytes
    return alive


def _rng_states(problem: RematProblem, program: Program) -> list[tuple[int, int, int]]:
    """(born, last use, bytes) of the generator states that recomputed random values need."""
    if not any(problem.values[v].rng_state_bytes for v in problem.drawn):
        return []
    drawn = {program.values[p]: p for p in range(program.forward_end)}
    return [
        (drawn[v], p, problem.values[v].rng_state_bytes)
        for p, v in enumerate(program.values)
        if p >= program.forward_end and v in drawn and problem.values[v].rng_state_bytes
    ]


def _input_copies(problem: RematProblem, program: Program) -> list[tuple[int, int, int]]:
    """(begin, last use, bytes) of the copies of inputs that convolutions read."""
    if not problem.copied_inputs:
        return []
    last_run = np.zeros(len(problem.values), dtype=np.int64)
    last_run[program.steps] = np.arange(len(program.steps))
    last_run[~problem.is_kind(Kind.EXTERN)] = 0
    return [
        (0, int(last_run[[*problem.readers[i]]].max()), problem.values[i].copy_bytes) for i in problem.copied_inputs
    ]
