"""The peak of a program: which storages exist when.

A storage is born when the step that creates it runs and dies after the last step that reads it, through views too:

    alive(p) = storages born at or before p and used at or after p
    peak     = max over p of  alive(p) + workspace of the step at p

That is how the generated code behaves: it drops every name after its last use. Forward outputs live until forward
returns, saved values on to their last use in backward, tangents from the start of backward, gradients to its end.
Inputs and what the caller keeps are not counted.

Where the lowering fuses (`RematProblem.fuses`) a pointwise value exists only if some kernel needs it in memory: it is
returned or saved, or an extern kernel reads it, or it gathers so many reads that Inductor realizes it. All others are
computed inside their readers: they take no bytes, and keep what they read alive instead (`_exists`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program

_FUSING_READERS = frozenset({Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.SYMBOL})

_REALIZE_READS = 4
"""Inductor computes a value in each of several readers only up to this many loads (`realize_reads_threshold`)."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """Bytes alive at every step of a program.

    `born[p]` are the bytes that the step at p creates, `last_use[p]` the position after which they die.
    """

    peak_bytes: int
    peak_position: int
    alive_bytes: list[int]
    """While each step runs, its workspace included."""
    born: list[int]
    last_use: list[int]
    workspace: list[int]


def simulate(problem: RematProblem, program: Program) -> Liveness:
    """Run the storages of a program through time. Linear in steps and reads; ties go to the earliest position."""
    values = problem.values
    steps, reads = program.values, program.reads
    count, forward_end = len(steps), program.forward_end
    last_use = list(range(count))
    for p in _forward_output_positions(problem, program):
        last_use[p] = forward_end - 1
    for p in program.saved:
        last_use[p] = max(last_use[p], forward_end)
    for p in program.returned:
        last_use[p] = count - 1
    exists = _exists(problem, program) if problem.fuses else [True] * count
    for p in range(count - 1, -1, -1):
        end = last_use[p]
        if exists[p]:
            held = values[steps[p]].holds
            for r in reads[p]:
                use = end if held and steps[r] in held else p
                if last_use[r] < use:
                    last_use[r] = use
        else:
            for r in reads[p]:
                if last_use[r] < end:
                    last_use[r] = end
    born = [values[v].size.hint if e else 0 for v, e in zip(steps, exists, strict=True)]
    workspace = [values[v].workspace_bytes for v in steps]
    extra = _rng_states(problem, program)
    return _sweep(problem, program, born, last_use, workspace, extra)


def _sweep(
    problem: RematProblem,
    program: Program,
    born: list[int],
    last_use: list[int],
    workspace: list[int],
    extra: list[tuple[int, int, int]],
) -> Liveness:
    count, forward_end = len(born), program.forward_end
    change = [0] * (count + 1)
    for p, size in enumerate(born):
        if size:
            # Tangents are all there when backward starts.
            begin = forward_end if problem.values[program.values[p]].kind is Kind.TANGENT else p
            change[begin] += size
            change[last_use[p] + 1] -= size
    for begin, end, size in extra:
        change[begin] += size
        change[end + 1] -= size
    alive = []
    now = 0
    for p in range(count):
        now += change[p]
        resident = problem.resident_forward_bytes if p < forward_end else problem.resident_backward_bytes
        alive.append(now + workspace[p] + resident)
    peak = max(alive, default=0)
    return Liveness(peak, alive.index(peak) if alive else 0, alive, born, last_use, workspace)


def _forward_output_positions(problem: RematProblem, program: Program) -> list[int]:
    outputs = set(problem.forward_outputs)
    return [p for p in range(program.forward_end) if program.values[p] in outputs]


def _rng_states(problem: RematProblem, program: Program) -> list[tuple[int, int, int]]:
    """(born, last use, bytes) of the generator states that recomputed random values need."""
    drawn = {program.values[p]: p for p in range(program.forward_end)}
    return [
        (drawn[v], p, problem.values[v].rng_state_bytes)
        for p, v in enumerate(program.values)
        if p >= program.forward_end and v in drawn and problem.values[v].rng_state_bytes
    ]


def _exists(problem: RematProblem, program: Program) -> list[bool]:
    """Which steps write memory, where pointwise values may be computed inside their readers instead."""
    values, steps, reads = problem.values, program.values, program.reads
    must = [False] * len(steps)
    for p in (*program.saved, *program.returned, *_forward_output_positions(problem, program)):
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
        held: Sequence[int] = problem.values[program.values[p]].holds
        must[p] = True
        pending += [r for r in program.reads[p] if program.values[r] in held and not must[r]]
