"""Which loop writes over which storage: as many pairs as possible, none of which share a member."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


def largest_matching(left: np.ndarray, right: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of a largest subset in which no number appears twice on the same side.

    Args:
        left: Numbers from 0 on; shape (pairs,), int64.
        right: Those that they may be matched with, likewise.
    """
    if len(left) < 2:
        return list(zip(left.tolist(), right.tolist(), strict=True))
    lefts, rows = np.unique(left, return_inverse=True)
    rights, columns = np.unique(right, return_inverse=True)
    graph = csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(lefts), len(rights)))
    matched = maximum_bipartite_matching(graph, perm_type="column")
    return [(int(lefts[k]), int(rights[c])) for k, c in enumerate(matched.tolist()) if c >= 0]
