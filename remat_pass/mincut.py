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

Source: Boykov and Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms", 2004, for the reduction of
labelling to cuts; the split of save and recompute arcs is ours.
"""

from collections.abc import Collection

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from remat_pass.problem import RematProblem

_CAPACITY_LIMIT = 2**30


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
    relevant = _relevant(problem)
    if not relevant:
        return frozenset()
    vertex = {v: i for i, v in enumerate(relevant)}
    source, sink = 2 * len(relevant), 2 * len(relevant) + 1
    tails: list[int] = []
    heads: list[int] = []
    capacities: list[float | None] = []

    def arc(tail: int, head: int, capacity: float | None) -> None:
        if capacity is None or capacity > 0:
            tails.append(tail)
            heads.append(head)
            capacities.append(capacity)

    for v in relevant:
        value, inner, outer = problem.values[v], 2 * vertex[v], 2 * vertex[v] + 1
        wish = value.wish if honour_wishes else None
        if wish == "save" and value.cannot_save:
            wish = None
        is_forced = (v in forced and wish != "recompute") or wish == "save"
        if value.is_input or value.cannot_recompute or is_forced:
            arc(source, inner, None)
        else:
            arc(source, inner, _recompute_price(problem, v))
        if value.cannot_save is not None:
            arc(inner, outer, None)
        elif not value.is_input and not is_forced:
            arc(inner, outer, value.save_ns + price_ns_per_byte * value.size.hint)
        for read in value.reads:
            arc(2 * vertex[read] + 1, inner, None)
        if wish == "recompute" and not value.is_input and not value.cannot_recompute:
            arc(inner, sink, None)
        if v in problem.read_in_backward:
            arc(outer, sink, None)
    on_sink_side = _sink_side(tails, heads, capacities, source, sink)
    return frozenset(
        v
        for v in relevant
        if on_sink_side[2 * vertex[v] + 1]
        and not on_sink_side[2 * vertex[v]]
        and not problem.values[v].is_input
        and problem.values[v].cannot_save is None
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


def _sink_side(
    tails: list[int], heads: list[int], capacities: list[float | None], source: int, sink: int
) -> np.ndarray:
    """Vertices that still reach the sink in the residual graph of a maximum flow; shape (vertices,), bool."""
    size = sink + 1
    scaled = _scale(capacities)
    network = csr_matrix((scaled, (tails, heads)), shape=(size, size), dtype=np.int32)
    network.sum_duplicates()
    result = maximum_flow(network, source, sink)
    assert result.flow_value < scaled.max(), "some value that backward needs can be neither saved nor recomputed"
    residual = network - result.flow
    residual.data = np.where(residual.data > 0, 1, 0)
    residual.eliminate_zeros()
    reached = np.zeros(size, dtype=bool)
    reached[breadth_first_order(residual.T.tocsr(), sink, return_predecessors=False)] = True
    return reached


def _scale(capacities: list[float | None]) -> np.ndarray:
    """Integers in proportion to the capacities, none of them 0; None becomes more than all the others together."""
    finite = np.array([0.0 if c is None else c for c in capacities])
    factor = (_CAPACITY_LIMIT - len(capacities)) / finite.sum() if finite.any() else 1.0
    scaled = np.maximum(np.floor(finite * min(factor, 1e6)), np.where(finite > 0, 1, 0)).astype(np.int64)
    uncuttable = int(scaled.sum()) + 1
    return np.where([c is None for c in capacities], uncuttable, scaled).astype(np.int32)
