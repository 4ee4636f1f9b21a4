"""A smaller problem with the same plans: views and other values that take neither time nor memory are left out.

    x ──► a ──► view ──► transpose ──► matmul        becomes        x ──► a ──► matmul

What read a view reads the storage behind it. A value is alive as long as something reads it through whatever views, so
every plan of the smaller problem has the peak and the time of the same decisions on the whole graph; half of a joint
graph's nodes are views. A view that is itself an output stands for the storages behind it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from remat_pass.problem import Kind, RematProblem, Value

_LEFT_OUT = frozenset({Kind.VIEW, Kind.SYMBOL, Kind.CONSTANT})


@dataclass(frozen=True)
class Contracted:
    """The smaller problem, and how to get back."""

    problem: RematProblem
    original: tuple[int, ...]
    """For every value of the smaller problem which one it is."""
    views: tuple[tuple[int, ...], ...]
    """For every value of the smaller problem the values left out that hold on to it."""

    def expand(self, values: Iterable[int], *, with_views: bool = False) -> frozenset[int]:
        """Values of the smaller problem as values of the whole one, on demand with the views of them."""
        chosen = list(values)
        found = [self.original[v] for v in chosen]
        if with_views:
            found += [view for v in chosen for view in self.views[v]]
        return frozenset(found)


def contract(problem: RematProblem) -> Contracted:
    """Leave out what costs nothing."""
    smaller: list[Value] = []
    original: list[int] = []
    behind: list[tuple[int, ...]] = []
    """For every value of the whole problem the values of the smaller one that its storage, or itself, stands for."""
    views: list[list[int]] = []
    for i, value in enumerate(problem.values):
        reads = _union(behind, value.reads)
        is_bound = value.has_effect or value.cannot_recompute or value.is_input or value.size.hint
        if value.kind in _LEFT_OUT and not is_bound:
            behind.append(reads)
            for v in reads:
                views[v].append(i)
            continue
        behind.append((len(smaller),))
        smaller.append(replace(value, reads=reads, holds=_union(behind, value.holds)))
        original.append(i)
        views.append([])
    return Contracted(
        replace(
            problem,
            values=tuple(smaller),
            forward_outputs=_union(behind, problem.forward_outputs),
            gradients=_union(behind, problem.gradients),
        ),
        tuple(original),
        tuple(map(tuple, views)),
    )


def _union(behind: list[tuple[int, ...]], values: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(v for i in values for v in behind[i]))
