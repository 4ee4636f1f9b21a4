"""What holds up a peak: the bytes alive at the worst moment, by what they are."""

from dataclasses import dataclass

from remat_pass.liveness import simulate
from remat_pass.problem import Kind, RematPlan, RematProblem
from remat_pass.schedule import Program, program_of

GRADIENTS, SAVED, TANGENTS, RECOMPUTED = "gradients", "saved", "tangents", "recomputed"
INTERMEDIATES, WORKSPACE, RESIDENT = "intermediates", "workspace", "other graphs"


@dataclass(frozen=True, slots=True)
class PeakBreakdown:
    """The moment of the peak."""

    peak_bytes: int
    program: str
    """"forward" or "backward"."""
    value: str
    source: str | None
    bytes_by_role: tuple[tuple[str, int], ...]
    """Largest first; they add up to `peak_bytes`."""
    largest: tuple[tuple[str, str, int], ...]
    """(value, role, bytes) of the largest storages alive, largest first."""

    def describe(self) -> str:
        """The roles and their bytes, as in "640.0 MiB gradients, 512.0 MiB saved"."""
        return ", ".join(f"{count / 2**20:.1f} MiB {role}" for role, count in self.bytes_by_role)


def break_down(problem: RematProblem, plan: RematPlan, *, largest: int = 8) -> PeakBreakdown:
    """Explain the simulated peak of a plan."""
    program = program_of(problem, plan)
    liveness = simulate(problem, program)
    at = liveness.peak_position
    alive = [
        (problem.values[program.values[p]].name, _role(problem, program, p), size)
        for p, size in enumerate(liveness.born.tolist())
        if size and liveness.begin[p] <= at <= liveness.last_use[p]
    ]
    if program.values and liveness.workspace[at]:
        alive.append((problem.values[program.values[at]].name, WORKSPACE, int(liveness.workspace[at])))
    in_forward = at < program.forward_end
    resident = problem.resident_forward_bytes if in_forward else problem.resident_backward_bytes
    if resident:
        alive.append(("", RESIDENT, resident))
    totals: dict[str, int] = {}
    for _, role, size in alive:
        totals[role] = totals.get(role, 0) + size
    unexplained = liveness.peak_bytes - sum(totals.values())
    if unexplained:  # generator states, copies of inputs
        totals[SAVED] = totals.get(SAVED, 0) + unexplained
    value = problem.values[program.values[at]] if program.values else None
    return PeakBreakdown(
        liveness.peak_bytes,
        "forward" if in_forward else "backward",
        value.name if value else "",
        value.source if value else None,
        tuple(sorted(totals.items(), key=lambda item: -item[1])),
        tuple(sorted(alive, key=lambda item: -item[2])[:largest]),
    )


def _role(problem: RematProblem, program: Program, position: int) -> str:
    value = problem.values[program.values[position]]
    if value.kind is Kind.TANGENT:
        return TANGENTS
    if position < program.forward_end:
        return SAVED if position in program.saved or _holds_saved(problem, program, position) else INTERMEDIATES
    if program.copies[position]:
        return RECOMPUTED
    returned = set(program.returned)
    bases = {p for p in returned for p in _bases(problem, program, p)}
    return GRADIENTS if position in bases else INTERMEDIATES


def _holds_saved(problem: RematProblem, program: Program, position: int) -> bool:
    return any(position in _bases(problem, program, p) for p in program.saved)


def _bases(problem: RematProblem, program: Program, position: int) -> set[int]:
    """The position and those whose storage it shares."""
    bases, pending = set(), [position]
    while pending:
        p = pending.pop()
        bases.add(p)
        held = problem.values[program.values[p]].holds
        pending += [r for r in program.reads[p] if program.values[r] in held]
    return bases
