"""The peak of a program: which storages exist when.

A storage is born when the step that creates it runs and dies after the last step that reads it, through views too:

    alive(p) = storages born at or before p and used at or after p
    peak     = max over p of  alive(p) + workspace of the step at p

That is how the generated code behaves: it drops every name after its last use. Forward outputs live until forward
returns, saved values on to their last use in backward, tangents from the start of backward, gradients to its end.
Inputs and what the caller keeps are not counted.

Where the lowering fuses (`RematProblem.fuses`), `fusion` says which values exist at all and when their kernels run. A
value that does not exist takes no bytes and keeps what it is computed from alive instead.
"""

from dataclasses import dataclass

from remat_pass.fusion import Kernels, fused_kernels, unfused_kernels
from remat_pass.problem import Kind, RematProblem
from remat_pass.schedule import Program


@dataclass(frozen=True, slots=True)
class Liveness:
    """Bytes alive at every step of a program.

    `born[p]` are the bytes of the storage that the step at p creates, alive from `begin[p]` to `last_use[p]`.
    """

    peak_bytes: int
    peak_position: int
    alive_bytes: list[int]
    """While each step runs, its workspace included."""
    born: list[int]
    begin: list[int]
    last_use: list[int]
    workspace: list[int]


def simulate(problem: RematProblem, program: Program) -> Liveness:
    """Run the storages of a program through time. Linear in steps and reads; ties go to the earliest position."""
    values, steps = problem.values, program.values
    kernels = fused_kernels(problem, program) if problem.fuses else unfused_kernels(program)
    last_use = _last_uses(problem, program, kernels)
    born = [values[v].size.hint if exists else 0 for v, exists in zip(steps, kernels.exists, strict=True)]
    for new, old in kernels.may_overwrite:
        if born[new] == born[old] and last_use[old] == kernels.runs_at[new]:
            last_use[old] -= 1
    workspace = [values[v].workspace_bytes for v in steps]
    begin = [
        # Tangents are all there when backward starts.
        program.forward_end if values[v].kind is Kind.TANGENT else kernels.runs_at[p]
        for p, v in enumerate(steps)
    ]
    alive = _add_up(problem, program, born, begin, last_use, workspace)
    peak = max(alive, default=0)
    return Liveness(peak, alive.index(peak) if alive else 0, alive, born, begin, last_use, workspace)


def _last_uses(problem: RematProblem, program: Program, kernels: Kernels) -> list[int]:
    """For every step the position after which its storage is free."""
    values, steps, reads = problem.values, program.values, program.reads
    count = len(steps)
    last_use = list(range(count))
    for p in program.output_positions(problem):
        last_use[p] = program.forward_end - 1
    for p in program.saved:
        last_use[p] = max(last_use[p], program.forward_end)
    for p in program.returned:
        last_use[p] = count - 1
    for p in range(count - 1, -1, -1):
        end, at = last_use[p], kernels.runs_at[p]
        held = values[steps[p]].holds if kernels.exists[p] else None
        for r in reads[p]:
            use = end if held is None or steps[r] in held else at
            if last_use[r] < use:
                last_use[r] = use
    return last_use


def _add_up(
    problem: RematProblem,
    program: Program,
    born: list[int],
    begin: list[int],
    last_use: list[int],
    workspace: list[int],
) -> list[int]:
    """Bytes alive while each step runs."""
    count = len(born)
    change = [0] * (count + 1)
    for p, size in enumerate(born):
        if size:
            change[begin[p]] += size
            change[last_use[p] + 1] -= size
    for first, last, size in _rng_states(problem, program):
        change[first] += size
        change[last + 1] -= size
    alive, now = [], 0
    for p in range(count):
        now += change[p]
        resident = problem.resident_forward_bytes if p < program.forward_end else problem.resident_backward_bytes
        alive.append(now + workspace[p] + resident)
    return alive


def _rng_states(problem: RematProblem, program: Program) -> list[tuple[int, int, int]]:
    """(born, last use, bytes) of the generator states that recomputed random values need."""
    drawn = {program.values[p]: p for p in range(program.forward_end)}
    return [
        (drawn[v], p, problem.values[v].rng_state_bytes)
        for p, v in enumerate(program.values)
        if p >= program.forward_end and v in drawn and problem.values[v].rng_state_bytes
    ]
