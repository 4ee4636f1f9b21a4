"""What a fixed order of values takes at every step, whatever is saved or recomputed beside it.

The exact planners and the lower bound add what they decide on to these figures. The rules are those of
`liveness.simulate`: a storage lives from the step that creates it to its last use, through views too; tangents are all
there when backward starts, and what is returned lives to the end.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from remat_pass.problem import RematProblem


@dataclass(frozen=True, slots=True)
class BackwardBytes:
    """What backward values and tangents alone take, at every position of (tangents, backward values).

    At the positions of the tangents only `arrival` counts: they come together.
    """

    order: tuple[int, ...]
    """The values at the positions."""
    before: list[int]
    """Bytes alive before the value runs."""
    during: list[int]
    """Bytes alive while it runs, its workspace included."""
    last: list[int]
    """Position of its last use; behind the last position for gradients."""
    arrival: int
    """Bytes alive when the tangents have arrived."""
    after: int
    """Bytes alive when all have run."""


def backward_bytes(problem: RematProblem) -> BackwardBytes:
    """Add up what the order of backward fixes, whatever is saved or recomputed."""
    values, tangents = problem.values, len(problem.tangents)
    order = (*problem.tangents, *problem.runs_in_backward)
    sizes, last = lifetimes(problem, list(order), returned=problem.gradients)
    resident = problem.resident_backward_bytes
    alive = [size + resident for size in add_up(sizes, list(range(len(order))), last)]
    return BackwardBytes(
        order,
        before=[bytes_alive - size for bytes_alive, size in zip(alive, sizes, strict=True)],
        during=[alive[p] + values[v].workspace_bytes for p, v in enumerate(order)],
        last=last,
        arrival=resident + sum(sizes[:tangents]),
        after=resident + sum(s for s, at in zip(sizes, last, strict=True) if at == len(order)),
    )


def lifetimes(problem: RematProblem, steps: list[int], *, returned: Iterable[int]) -> tuple[list[int], list[int]]:
    """(bytes, position of the last use) of each step among the given ones; len(steps) if the last use is behind."""
    values = problem.values
    position = {v: p for p, v in enumerate(steps)}
    last = list(range(len(steps)))
    for v in returned:
        if v in position:
            last[position[v]] = len(steps)
    for p in reversed(range(len(steps))):
        value = values[steps[p]]
        for r in value.reads:
            if r in position:
                use = last[p] if r in value.holds else p
                last[position[r]] = max(last[position[r]], use)
    return [values[v].size.hint for v in steps], last


def add_up(sizes: list[int], begin: list[int], last: list[int]) -> list[int]:
    """Bytes alive at every position, of storages alive from `begin` to `last`."""
    change = [0] * (len(sizes) + 2)
    for size, first, final in zip(sizes, begin, last, strict=True):
        change[first] += size
        change[final + 1] -= size
    return list(accumulate(change[: len(sizes)]))
