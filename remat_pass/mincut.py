"""The priced min cut: the cheapest set to save at a given price of memory.

Every forward-computable value v that backward may need is split into v_in -> v_out:

    arc                     capacity                            cut means
    v_in   -> v_out         save_ns(v) + price * bytes(v)       v is saved
    source -> v_in          recompute_ns(v)                     v is recomputed
    u_out  -> v_in          uncuttable                          recomputing v needs u at hand
    v_out  -> sink          uncuttable if backward reads v      backward has what it reads

One minimum cut is the exact optimum of `recompute time + price * saved bytes`, whatever the graph's shape. Arcs of a
value that cannot be saved or cannot be recomputed are uncuttable too, with the reason in the problem.

SciPy's `maximum_flow` computes it in milliseconds but counts in int32 and wraps silently, so capacities are scaled:
all cuttable ones sum to less than 2^30, and "uncuttable" is one more than their sum.

Among equal cuts the one nearest to the sink is taken: it recomputes least. No state, no randomness: equal problems
have equal cuts.

Over all prices the cheapest cuts are the corners of a convex curve of time against bytes. At the price at which two of
them cost the same, either a third one costs less, and lies between, or they are neighbours: so each is found by about
two maximum flows, however near the prices at which one gives way to the next.

Sources: Boykov and Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms", 2004, for the reduction of
labelling to cuts; the split of save and recompute arcs is ours. Eisner and Severance, "Mathematical techniques for
efficient record segmentation in large shared databases", 1976, for the search of all prices.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from remat_pass.problem import RematProblem

_CAPACITY_LIMIT = 2**30
_MOST_FLOWS = 16
"""Beside those for the two ends."""
_PRECISION = 1e-6
"""By what share the costs of two cuts differ at least: capacities are rounded."""
_NOTHING, _EVERYTHING = 1 / 4000, 4
"""Of the lowest and of the highest ratio of time to bytes."""


def cheapest_saved_set(
    problem: RematProblem, price_ns_per_byte: float, *, forced: Collection[int] = (), honour_wishes: bool = True
) -> frozenset[int]:
    """Values to save, so that recompute time plus priced bytes is least.

    Args:
        problem: The graph.
        price_ns_per_byte: What a saved byte costs; 0 minimises time alone.
        forced: Values that are not to be recomputed and cost nothing to save, unless the user wants them recomputed.
        honour_wishes: Whether values the user tagged are saved or recomputed as tagged.

    Returns:
        The saved values, inputs left out. Feed it to `schedule.decide`.
    """
    network = _network(problem, forced, honour_wishes)
    return network.cut(price_ns_per_byte).saved if network else frozenset()


def cheapest_saved_sets(
    problem: RematProblem, *, forced: Collection[int] = (), honour_wishes: bool = True
) -> list[frozenset[int]]:
    """All that is cheapest at some price of `_extreme_prices` and between, from the fastest to the one of fewest bytes.

    Where these are many, those that differ most from their neighbours in time and bytes. Arguments are those of
    `cheapest_saved_set`.
    """
    network = _network(problem, forced, honour_wishes)
    if network is None:
        return [frozenset()]
    fastest, smallest = map(network.cut, _extreme_prices(problem))
    found = {smallest.size_bytes: smallest, fastest.size_bytes: fastest}
    all_ns, all_bytes = max(1.0, smallest.ns - fastest.ns), max(1, fastest.size_bytes - smallest.size_bytes)

    def apart(faster: _Cut, smaller: _Cut) -> float:
        return (smaller.ns - faster.ns) / all_ns + (faster.size_bytes - smaller.size_bytes) / all_bytes

    pairs = [(-apart(fastest, smallest), fastest, smallest)]
    for _ in range(_MOST_FLOWS):
        if not pairs:
            break
        _, faster, smaller = heappop(pairs)
        if faster.size_bytes <= smaller.size_bytes or faster.ns >= smaller.ns:
            continue
        price = (smaller.ns - faster.ns) / (faster.size_bytes - smaller.size_bytes)
        between = network.cut(price)
        is_between = smaller.size_bytes < between.size_bytes < faster.size_bytes
        if is_between and between.cost(price) < faster.cost(price) * (1 - _PRECISION):
            found[between.size_bytes] = between
            for a, b in ((faster, between), (between, smaller)):
                heappush(pairs, (-apart(a, b), a, b))
    return [found[size_bytes].saved for size_bytes in sorted(found, reverse=True)]


def _extreme_prices(problem: RematProblem) -> tuple[float, float]:
    """At which a byte is worth next to nothing, and worth recomputing everything, in nanoseconds per byte."""
    values = [v for v in problem.values if not v.needs_tangent]
    ratios = [v.recompute_ns / v.size.hint for v in values if v.recompute_ns and v.size.hint]
    total_ns, largest = sum(v.recompute_ns for v in values), max(v.size.hint for v in problem.values)
    return min(ratios, default=0.0) * _NOTHING, max([*ratios, total_ns / max(1, largest)]) * _EVERYTHING


@dataclass(frozen=True, order=True, slots=True)
class _Cut:
    """A minimum cut."""

    ns: float
    """Of its arcs, without priced bytes."""
    size_bytes: int
    """That are priced."""
    saved: frozenset[int] = field(compare=False)

    def cost(self, price_ns_per_byte: float) -> float:
        return self.ns + price_ns_per_byte * self.size_bytes


@dataclass(frozen=True)
class _Network:
    """Arcs of the module docstring; arrays of shape (arcs,). v_in of the k-th value is vertex 2k, v_out 2k + 1."""

    vertices: int
    tails: np.ndarray
    heads: np.ndarray
    capacity_ns: np.ndarray
    """Infinite where the arc is uncuttable."""
    priced_bytes: np.ndarray
    """To be added to the capacity at the price of memory."""
    values: np.ndarray
    """Of the vertices, two for each; shape ((vertices - 2) / 2,)."""
    is_savable: np.ndarray
    """Which of them, inputs aside; bool, same shape."""

    def cut(self, price_ns_per_byte: float) -> _Cut:
        """The cheapest cut; of equal ones that nearest to the sink."""
        on_sink_side = self._sink_side(price_ns_per_byte)
        inner, outer = on_sink_side[0:-2:2], on_sink_side[1:-2:2]
        is_cut = ~on_sink_side[self.tails] & on_sink_side[self.heads]
        return _Cut(
            float(self.capacity_ns[is_cut].sum()),
            int(self.priced_bytes[is_cut].sum()),
            frozenset(self.values[outer & ~inner & self.is_savable].tolist()),
        )

    def _sink_side(self, price_ns_per_byte: float) -> np.ndarray:
        """Vertices that still reach the sink in the residual graph of a maximum flow; shape (vertices,), bool."""
        capacity = self.capacity_ns + price_ns_per_byte * self.priced_bytes
        used = capacity > 0
        scaled = _scale(capacity[used])
        shape = (self.vertices, self.vertices)
        network = csr_matrix((scaled, (self.tails[used], self.heads[used])), shape=shape, dtype=np.int32)
        source, sink = self.vertices - 2, self.vertices - 1
        result = maximum_flow(network, source, sink)
        assert result.flow_value < scaled.max(), "some value that backward needs can be neither saved nor recomputed"
        residual = network - result.flow
        residual.data = np.where(residual.data > 0, 1, 0)
        residual.eliminate_zeros()
        reached = np.zeros(self.vertices, dtype=bool)
        reached[breadth_first_order(residual.T.tocsr(), sink, return_predecessors=False)] = True
        return reached


def _network(problem: RematProblem, forced: Collection[int], honour_wishes: bool) -> _Network | None:
    """None where backward reads nothing of forward."""
    relevant = _relevant(problem)
    if not relevant:
        return None
    vertex = {v: i for i, v in enumerate(relevant)}
    source, sink = 2 * len(relevant), 2 * len(relevant) + 1
    arcs: list[tuple[int, int, float, int]] = []
    for v in relevant:
        value, inner, outer = problem.values[v], 2 * vertex[v], 2 * vertex[v] + 1
        wish = value.wish if honour_wishes else None
        if wish == "save" and value.cannot_save:
            wish = None
        is_forced = (v in forced and wish != "recompute") or wish == "save"
        if value.is_input or value.cannot_recompute or is_forced:
            arcs.append((source, inner, math.inf, 0))
        else:
            arcs.append((source, inner, _recompute_price(problem, v), 0))
        if value.cannot_save is not None:
            arcs.append((inner, outer, math.inf, 0))
        elif not value.is_input and not is_forced:
            arcs.append((inner, outer, value.save_ns, value.size.hint))
        arcs += [(2 * vertex[read] + 1, inner, math.inf, 0) for read in value.reads]
        if wish == "recompute" and not value.is_input and not value.cannot_recompute:
            arcs.append((inner, sink, math.inf, 0))
        if v in problem.read_in_backward:
            arcs.append((outer, sink, math.inf, 0))
    tails, heads, capacity_ns, priced_bytes = zip(*arcs, strict=True)
    return _Network(
        sink + 1,
        np.array(tails),
        np.array(heads),
        np.array(capacity_ns, dtype=float),
        np.array(priced_bytes),
        np.array(relevant),
        np.array([not problem.values[v].is_input and problem.values[v].cannot_save is None for v in relevant]),
    )


def _recompute_price(problem: RematProblem, v: int) -> float:
    """A value that forward need not run is merely moved to backward."""
    return problem.values[v].recompute_ns if problem.runs_in_forward[v] else 0.0


def _relevant(problem: RematProblem) -> list[int]:
    """Values that backward reads, and all they are computed from, in joint-graph order."""
    needed = [False] * len(problem.values)
    for i in problem.read_in_backward:
        needed[i] = True
    for i in reversed(range(len(needed))):
        if needed[i]:
            for read in problem.values[i].reads:
                needed[read] = True
    return [i for i, n in enumerate(needed) if n]


def _scale(capacity: np.ndarray) -> np.ndarray:
    """Integers in proportion to the capacities, none of them 0; infinity becomes more than all the others together."""
    cuttable = np.isfinite(capacity)
    finite = np.where(cuttable, capacity, 0.0)
    factor = (_CAPACITY_LIMIT - len(capacity)) / finite.sum() if finite.any() else 1.0
    scaled = np.maximum(np.floor(finite * min(factor, 1e6)), np.where(finite > 0, 1, 0)).astype(np.int64)
    uncuttable = int(scaled.sum()) + 1
    return np.where(cuttable, scaled, uncuttable).astype(np.int32)
