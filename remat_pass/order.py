"""The order of a step: what waits for a later reader steps aside for what frees memory now.

*Backward* is put in late order before planning. Autograd computes the gradient of a layer's input before that of its
weight:

    dy ──► dx ──► (next layer)          dx  dw           dy, dx and x are alive while dw runs
    dy, x ──► dw                        dw  dx           dy and x are, then dy and dx

A backward value that reads nothing of forward *sinks* towards its first reader, over the steps in between, as far as
all that it reads is in use there anyway. It then keeps nothing alive for longer than before and is itself alive for
less. It *waits* for the reader, sinking all the way, if what ends with it is smaller than itself, and no larger than
what the reader creates, beside which that is not alive:

    dy ──► dh1 ──► dx1          dh1  dh2  dx1  dx2        both large dh are alive at once
    dy ──► dh2 ──► dx2          dh1  dx1  dh2  dx2        one after the other, and dy for longer

What the reader needs of forward is then recomputed before the value that waits, beside the smaller dy.

Op by op, the peak is no higher than it was, whatever is saved or recomputed. Recomputed values gain most: what dw needs
of forward is computed when dx does not exist yet. Where the lowering fuses, order is a proposal that it may change, and
its schedule decides.

*Forward* computes what only backward reads, if that is saved, right behind what it is computed from, where it is
smaller than that. Autograd writes the mask of a ReLU into the graph of backward, and there forward would keep what went
into all of them to its end. Where the lowering fuses, it need not be smaller: at the end of forward what is made of the
statistics of each layer norm would be a kernel by itself.

Forward may also run depth first: each value right before the first that reads it and needs it next.

    u1 = up(x)   u2 = up(x)   d1 = down(u1)   d2 = down(u2)   d1 + d2         both large u are alive at once
    u1  d1  u2  d2  d1 + d2                                                   one after the other

That frees early where branches come back together, and may as well keep more alive. So it is tried, not preferred.

What has an effect stays where it is, and nothing passes it; draws stay in turn, and ops with several outputs with their
parts.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from remat_pass.problem import Kind, RematProblem


@dataclass(frozen=True, slots=True)
class _Uses:
    """Which storages the values read, and which values read a storage, through views; both by value."""

    read_by: list[frozenset[int]]
    """Inputs and what takes no bytes left out."""
    users: list[list[int]]
    returned: frozenset[int]
    """Storages of gradients, which are there to the end anyway."""


def early_order(problem: RematProblem) -> tuple[int, ...]:
    """All values, those of forward in the order of the module docstring; an execution order as the given one is."""
    uses = _uses(problem)
    given = {storage for v, value in enumerate(problem.values) if value.has_effect for storage in uses.read_by[v]}
    """What an effect may change."""
    of_input: list[bool] = []
    for v, value in enumerate(problem.values):
        of_input.append(
            (v in problem.inputs and value.kind is not Kind.SYMBOL) or any(of_input[h] for h in value.holds)
        )
    behind = list(range(len(problem.values)))
    for v in problem.forward_values:
        value = problem.values[v]
        is_loop = value.kind in (Kind.POINTWISE, Kind.REDUCTION) and v not in problem.parts
        # What is computed from an input frees nothing, and an effect may write over the input.
        if not is_loop or problem.runs_in_forward[v] or any(of_input[r] for r in value.reads):
            continue
        freed = uses.read_by[v].difference(problem.forward_outputs)
        largest = max((problem.values[s].size.hint for s in freed), default=0)
        is_small = value.size.hint < largest or (problem.fuses and value.size.hint == largest)
        if is_small and given.isdisjoint(uses.read_by[v]):
            behind[v] = _behind_parts(problem, range(len(behind)), max(behind[r] for r in value.reads))
    return tuple(sorted(range(len(behind)), key=behind.__getitem__))


def late_order(problem: RematProblem) -> tuple[tuple[int, ...], frozenset[int]]:
    """All values in the order of the module docstring, an execution order as the given one is; and which ones wait."""
    order = list(range(len(problem.values)))
    position = list(order)
    uses = _uses(problem)
    effects = [i for i, v in enumerate(problem.values) if v.has_effect]
    waiting, runs = set[int](), frozenset(problem.runs_in_backward)
    for v in reversed(order.copy()):
        if not _may_move(problem, v, uses.read_by[v]):
            continue
        here = position[v]
        # An effect does not move, so its position is its index.
        barrier = effects[k] if (k := bisect_left(effects, here)) < len(effects) else len(order)
        limit = min([barrier, *(position[r] for r in problem.readers[v])])
        ends = {
            storage: max((position[u] for u in uses.users[storage] if u != v), default=here)
            for storage in uses.read_by[v] - uses.returned
        }
        behind = limit - 1
        later = (order[p] for p in range(limit, len(order)))
        reader = next((r for r in later if r in runs and problem.values[r].kind is not Kind.VIEW), v)
        if v in uses.read_by[reader] and _gains_by_waiting(problem, v, reader, limit, ends):
            waiting.add(v)
        else:
            behind = min([behind, *ends.values()])
            if problem.values[v].workspace_bytes > problem.values[order[behind]].workspace_bytes:
                continue
        if behind <= here:
            continue
        behind = _behind_parts(problem, order, behind)
        order[here:behind] = order[here + 1 : behind + 1]
        order[behind] = v
        for p in range(here, behind + 1):
            position[order[p]] = p
    return tuple(order), frozenset(waiting)


def run_depth_first(problem: RematProblem, steps: Sequence[int]) -> list[int]:
    """Steps of forward, given in an execution order, in that of the module docstring."""
    order: list[int] = []
    free: list[int] = []
    """What may move: the steps since the last effect."""
    for v in steps:
        value = problem.values[v]
        if value.has_effect or (value.kind is Kind.PART and problem.values[value.reads[0]].has_effect):
            order += [*_depth_first(problem, free), v]
            free = []
        else:
            free.append(v)
    return order + _depth_first(problem, free)


def _depth_first(problem: RematProblem, steps: Sequence[int]) -> list[int]:
    """What none of the steps reads, in the given order, and each behind what it needs."""
    within = set(steps)
    turn = {later: draw for draw, later in pairwise(v for v in steps if problem.values[v].kind is Kind.RANDOM)}
    order: dict[int, None] = {}
    for last in steps:
        pending = [] if within.intersection(problem.readers[last]) else [last]
        while pending:
            v = pending[-1]
            first = [r for r in (*problem.values[v].reads, turn.get(v)) if r in within and r not in order]
            if first and v not in order:
                pending += reversed(first)
            else:
                order |= dict.fromkeys((v, *(part for part in problem.parts.get(v, ()) if part in within)))
                pending.pop()
    return list(order)


def reorder(problem: RematProblem, order: tuple[int, ...], waiting: frozenset[int]) -> RematProblem:
    """The same problem with its values in another execution order, in which some wait (`Value.waits`)."""
    new = {old: i for i, old in enumerate(order)}
    values = (replace(problem.values[old], waits=old in waiting) for old in order)
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


def _gains_by_waiting(problem: RematProblem, v: int, reader: int, limit: int, ends: Mapping[int, int]) -> bool:
    """Whether a value may run right before a step although it keeps some storages alive for longer.

    Args:
        problem: The graph.
        v: The value.
        reader: The step.
        limit: Its position, or that of views right before it.
        ends: For each storage that the value reads the position of the last other step that uses it.
    """
    value, reading = problem.values[v], problem.values[reader]
    kept = sum(int(problem.size_bytes[s]) for s, end in ends.items() if end < limit)
    return kept < value.size.hint and kept + value.workspace_bytes <= reading.size.hint + reading.workspace_bytes


def _behind_parts(problem: RematProblem, order: Sequence[int], behind: int) -> int:
    """The position itself, or that of the last part of the op that stands there."""
    while behind + 1 < len(order) and problem.values[order[behind + 1]].kind is Kind.PART:
        behind += 1
    return behind


def _uses(problem: RematProblem) -> _Uses:
    stands_for: list[frozenset[int]] = []
    """For every value the storages that are in use when it is read."""
    read_by: list[frozenset[int]] = []
    users: list[list[int]] = [[] for _ in problem.values]
    runs = {*problem.forward_values, *problem.runs_in_backward}
    for v, value in enumerate(problem.values):
        held = frozenset(s for r in value.holds for s in stands_for[r])
        is_new = value.size.hint or value.kind not in (Kind.VIEW, Kind.SYMBOL, Kind.CONSTANT)
        stands_for.append(held | {v} if is_new and v not in problem.inputs else held)
        read_by.append(frozenset(s for r in value.reads for s in stands_for[r]))
        for s in read_by[v] if v in runs else ():
            users[s].append(v)
    return _Uses(read_by, users, frozenset(s for g in problem.gradients for s in stands_for[g]))
