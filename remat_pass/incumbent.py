"""What `backend="inductor"` would do: torch's own partition of the same joint graph.

It is always a candidate, so that a user who names no budget is never worse off than with Inductor alone. The exception
is a partition that is wrong, in whose place a plan of ours is to take no more memory. Torch 2.13 and 2.14 may run a
value again that reads a buffer which forward has overwritten since, and gradients then depend on the new contents; on
CUDA they may draw a mask again, and it differs. What `as_strided` reads in backward may have other strides than it
trusts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import fx

from remat_pass import _torch_compat
from remat_pass.joint_graph import JointGraph
from remat_pass.ops import DRAWN_BY_SHAPE, OVERWRITTEN, READS_BY_STRIDES
from remat_pass.problem import RematPlan, RematProblem, Run
from remat_pass.rewrite import Rewritten


@dataclass(frozen=True)
class Incumbent:
    """Torch's two graphs as they are, and the values they save."""

    graphs: Rewritten
    keep: frozenset[int]
    is_wrong: bool
    """Whether its gradients may be wrong: then it is only what our own plan is compared with."""

    def plan(self, problem: RematProblem) -> RematPlan:
        """What the graphs run, in the order that Inductor makes of theirs: products where they are added to something.

        What it runs again it runs once more, for all its readers in backward.
        """
        forward, backward = (
            [values[node.name] for node in _with_products_at_sums(graph) if node.name in values]
            for graph, values in (
                (self.graphs.forward.graph, self.graphs.forward_values),
                (self.graphs.backward.graph, self.graphs.backward_values),
            )
        )
        copies = {v: 0 if problem.values[v].needs_tangent else 1 for v in backward}

        def run(v: int, copies: dict[int, int]) -> Run:
            return Run(v, copies.get(v, 0), tuple((r, copies.get(r, 0)) for r in problem.values[v].reads))

        return RematPlan(tuple(run(v, {}) for v in forward), tuple(run(v, copies) for v in backward))


def torch_partition(joint: JointGraph, problem: RematProblem, inputs: Any) -> Incumbent:
    """Partition a copy of the joint graph the way torch does."""
    forward, backward = _torch_compat.partition_like_torch(
        _torch_compat.copy_graph_module(joint.module),
        inputs,
        forward_count=joint.forward_count,
        static_indices=list(joint.static_indices),
    )
    values = (_values(module, joint, problem) for module in (forward, backward))
    graphs = Rewritten(forward, backward, *values)
    taken = (node.name for node in backward.graph.find_nodes(op="placeholder"))
    saved = (problem.index[name] for name in taken if name in problem.index)
    keep = frozenset(i for i in saved if not problem.values[i].needs_tangent)
    return Incumbent(graphs, keep, _is_wrong(graphs, problem))


def _is_wrong(graphs: Rewritten, problem: RematProblem) -> bool:
    """Whether backward reads old contents, trusts strides, or repeats a draw of forward that gives other numbers."""
    in_forward = set(graphs.computed_in_forward.values())
    reasons = ((i, problem.values[i].cannot_recompute) for i in graphs.computed_in_backward.values())
    always = (OVERWRITTEN, READS_BY_STRIDES)
    return any(why in always or (why == DRAWN_BY_SHAPE and i in in_forward) for i, why in reasons)


def _values(module: fx.GraphModule, joint: JointGraph, problem: RematProblem) -> dict[str, int]:
    """Torch's partitioner keeps the names of the joint graph, but for random ops that it runs in both graphs.

    It wraps those, and takes attention for one. A wrapper is known by what it runs, and has parts with new names. Draws
    that are written alike are told apart by their order.
    """
    wrappers = _torch_compat.RNG_WRAPPERS
    wrapped = {_torch_compat.wrapped_op(n)[0] for n in module.graph.nodes if n.target in wrappers.values()}
    names: dict[str, list[str]] = {}
    for node in reversed(joint.nodes):
        if node.target in wrapped:
            names.setdefault(_written(node, lambda read: read.name), []).append(node.name)
    original: dict[fx.Node, str] = {}
    values: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.target is getitem and node.args[0].target is wrappers["save"]:
            original[node] = original[node.args[0]]
            continue
        original[node] = node.name
        if node.target in wrappers.values():
            alike = names.get(_written(node, original.__getitem__))
            original[node] = alike.pop() if alike else node.name
        if original[node] in problem.index:
            values[node.name] = problem.index[original[node]]
    return values


def _written(node: fx.Node, name_of: Callable[[fx.Node], str]) -> str:
    """The op, wrapped or not, and what it is given."""
    target, args, kwargs, _ = _torch_compat.wrapped_op(node)
    return f"{target} {fx.node.map_arg((tuple(args), kwargs), name_of)}"


def _with_products_at_sums(graph: fx.Graph) -> Iterator[fx.Node]:
    """The computed nodes, in order, the first product of each sum right before it."""
    at_sum = {node: _torch_compat.summed_products(node)[:1] for node in graph.nodes}
    moved = {product for products in at_sum.values() for product in products}
    for node in graph.nodes:
        if node.op == "call_function" and node not in moved:
            yield from at_sum[node]
            yield node
