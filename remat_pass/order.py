"""The order of backward: what waits for a later reader steps aside for what frees memory now.

Autograd computes the gradient of a layer's input before that of its weight:

    dy ──► dx ──► (next layer)          dx  dw           dy, dx and x are alive while dw runs
    dy, x ──► dw                        dw  dx           dy and x are, then dy and dx

A backward value that reads nothing of forward *sinks* towards its first reader, over the steps in between, as far as
all that it reads is in use there anyway. It then keeps nothing alive for longer than before and is itself alive for
less: while any step runs, no more is alive than was, whatever is saved or recomputed. Recomputed values gain most: what
dw needs of forward is computed when dx does not exist yet.

What has an effect stays where it is, and nothing passes it; an op with several outputs stays with its parts.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from remat_pass.problem import Kind, RematProblem


@dataclass(frozen=True, slots=True)
class _Uses:
    """Which storages the values read, and which values read a storage, through views; both by value."""

    read_by: list[tuple[int, ...]]
    """Without inputs and gradients that are returned, which are there to the end anyway."""
    users: list[list[int]]


def late_order(problem: RematProblem) -> tuple[int, ...]:
    """All values in the order of the module docstring; an execution order, as the given one is."""
    order = list(range(len(problem.values)))
    position = list(order)
    uses = _uses(problem)
    effects = [i for i, v in enumerate(problem.values) if v.has_effect]
    for v in reversed(order.copy()):
        if not _may_move(problem, v, uses.read_by[v]):
            continue
        here = position[v]
        # An effect does not move, so its position is its index.
        barrier = effects[k] if (k := bisect_left(effects, here)) < len(effects) else len(order)
        behind = min([barrier, *(position[r] for r in problem.readers[v])]) - 1
        for storage in uses.read_by[v]:
            behind = min(behind, max((position[u] for u in uses.users[storage] if u != v), default=here))
        if behind <= here or problem.values[v].workspace_bytes > problem.values[order[behind]].workspace_bytes:
            continue
        order[here:behind] = order[here + 1 : behind + 1]
        order[behind] = v
        for p in range(here, behind + 1):
            position[order[p]] = p
    return tuple(order)


def reorder(problem: RematProblem, order: tuple[int, ...]) -> RematProblem:
    """The same problem with its values in another execution order."""
    new = {old: i for i, old in enumerate(order)}
    values = (problem.values[old] for old in order)
    return replace(
        problem,
        values=tuple(
            replace(v, reads=tuple(new[r] for r in v.reads), holds=tuple(new[r] for r in v.holds)) for v in values
        ),
        forward_outputs=tuple(new[i] for i in problem.forward_outputs),
        gradients=tuple(new[i] for i in problem.gradients),
    )


def _may_move(problem: RematProblem, v: int, storages: tuple[int, ...]) -> bool:
    """Whether a value is an op of backward with one output that somebody reads and that reads no storage of forward."""
    value = problem.values[v]
    is_op = value.needs_tangent and value.kind not in (Kind.TANGENT, Kind.PART) and v not in problem.parts
    of_backward = all(problem.values[s].needs_tangent for s in storages)
    return is_op and of_backward and not value.has_effect and bool(problem.readers[v])


def _uses(problem: RematProblem) -> _Uses:
    stands_for: list[tuple[int, ...]] = []
    """For every value the storages that are in use when it is read."""
    read_by: list[tuple[int, ...]] = []
    users: list[list[int]] = [[] for _ in problem.values]
    for v, value in enumerate(problem.values):
        read = tuple(dict.fromkeys(s for r in value.reads for s in stands_for[r]))
        held = tuple(dict.fromkeys(s for r in value.holds for s in stands_for[r]))
        owns = (v,) if value.size.hint and v not in problem.inputs else ()
        stands_for.append((*owns, *held))
        read_by.append(read)
        for s in read:
            users[s].append(v)
    kept = {s for g in problem.gradients for s in stands_for[g]}
    return _Uses([tuple(s for s in read if s not in kept) for read in read_by], users)
