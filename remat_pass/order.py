"""The order of backward: what waits for a later reader steps aside for what frees memory now.

Autograd computes the gradient of a layer's input before that of its weight:

    dy ──► dx ──► (next layer)          dx  dw           dy, dx and x are alive while dw runs
    dy, x ──► dw                        dw  dx           dy and x are, then dy and dx

A backward value that reads nothing of forward *sinks* towards its first reader, over the steps in between, as far as
all that it reads is in use there anyway. It then keeps nothing alive for longer than before and is itself alive for
less: op by op, no more is alive while any step runs than was, whatever is saved or recomputed. Recomputed values gain
most: what dw needs of forward is computed when dx does not exist yet. Where the lowering fuses, order is a proposal
that it may change, and its schedule decides.

What has an effect stays where it is, and nothing passes it; draws stay in turn, and ops with several outputs with their
parts.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from remat_pass.problem import Kind, RematProblem


@dataclass(frozen=True, slots=True)
class _Uses:
    """Which storages the values read, and which values read a storage, through views; both by value."""

    read_by: list[frozenset[int]]
    """Inputs and what takes no bytes left out."""
    users: list[list[int]]
    returned: frozenset[int]
    """Storages of gradients, which are there to the end anyway."""


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
        for storage in uses.read_by[v] - uses.returned:
            behind = min(behind, max((position[u] for u in uses.users[storage] if u != v), default=here))
        step = problem.values[order[behind]]
        if behind <= here or problem.values[v].workspace_bytes > step.workspace_bytes:
            continue
        behind = _behind_parts(problem, order, behind)
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


def _may_move(problem: RematProblem, v: int, storages: frozenset[int]) -> bool:
    """Whether a value is an op of backward with one output that somebody reads and that reads no storage of forward."""
    value = problem.values[v]
    is_op = value.needs_tangent and value.kind not in (Kind.TANGENT, Kind.PART, Kind.RANDOM) and v not in problem.parts
    of_backward = all(problem.values[s].needs_tangent for s in storages)
    return is_op and of_backward and not value.has_effect and bool(problem.readers[v])


def _behind_parts(problem: RematProblem, order: list[int], behind: int) -> int:
    """The position itself, or that of the last part of the op that stands there."""
    while behind + 1 < len(order) and problem.values[order[behind + 1]].kind is Kind.PART:
        behind += 1
    return behind


def _uses(problem: RematProblem) -> _Uses:
    stands_for: list[frozenset[int]] = []
    """For every value the storages that are in use when it is read."""
    read_by: list[frozenset[int]] = []
    users: list[list[int]] = [[] for _ in problem.values]
    for v, value in enumerate(problem.values):
        held = frozenset(s for r in value.holds for s in stands_for[r])
        stands_for.append(held | {v} if value.size.hint and v not in problem.inputs else held)
        read_by.append(frozenset(s for r in value.reads for s in stands_for[r]))
        for s in read_by[v]:
            users[s].append(v)
    return _Uses(read_by, users, frozenset(s for g in problem.gradients for s in stands_for[g]))
