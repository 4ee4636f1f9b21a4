"""A read-only view of AOTAutograd's joint forward/backward graph.

`capture` works on a copy: dead nodes are removed, equal ones merged, the parts of
multi-output ops stand right behind them, and the tags of `checkpoint()` are settled as torch settles them.
After that nobody writes to a node. What later stages know about a node they keep in side tables by its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import fx

from remat_pass import _torch_compat


@dataclass(frozen=True)
class JointGraph:
    """A private copy of the joint graph and what AOTAutograd says about it.

    `nodes` are in execution order without the output node. `forward_outputs` and `gradients` are what the two
    programs return, in order; entries that are not nodes (`None` for inputs without a gradient) are kept.
    """

    module: fx.GraphModule
    forward_count: int
    """How many of the outputs belong to forward."""
    static_indices: tuple[int, ...]
    """Which primals are parameters or buffers."""
    forward_outputs: tuple[Any, ...]
    gradients: tuple[Any, ...]
    wishes: dict[str, str]
    """"save" or "recompute" by node name, as the user's checkpointing tagged it."""
    pinned: frozenset[str]
    """Nodes that torch requires to be saved rather than run twice."""
    overwritten: frozenset[str]
    """Inputs that have other contents in backward than in forward, or that backward changes."""

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes but the output, in execution order."""
        return tuple(n for n in self.module.graph.nodes if n.op != "output")

    @cached_property
    def position(self) -> dict[fx.Node, int]:
        """Position of each node in `nodes`: the index of its value in the problem."""
        return {node: i for i, node in enumerate(self.nodes)}

    def reordered(self, order: Sequence[int]) -> "JointGraph":
        """A copy in another execution order, given as positions in `nodes`."""
        module = _torch_compat.copy_graph_module(self.module)
        nodes = [n for n in module.graph.nodes if n.op != "output"]
        for before, node in pairwise(nodes[i] for i in order):
            before.append(node)
        module.recompile()
        forward_outputs, gradients = _torch_compat.split_outputs(module, self.forward_count)
        return replace(self, module=module, forward_outputs=tuple(forward_outputs), gradients=tuple(gradients))

    @cached_property
    def static_inputs(self) -> tuple[fx.Node, ...]:
        """Placeholders of parameters and buffers, in argument order."""
        primals = [n for n in self.nodes if n.op == "placeholder" and _torch_compat.is_primal(n)]
        return tuple(primals[i] for i in self.static_indices if i < len(primals))


def capture(module: fx.GraphModule, *, forward_count: int, static_indices: Sequence[int] | None) -> JointGraph:
    """Copy and clean a joint graph.

    Args:
        module: What AOTAutograd hands to a partitioner; left as it was.
        forward_count: How many leading outputs are forward's (`num_fwd_outputs`).
        static_indices: Positions of parameters and buffers among the primals, or None if unknown.
    """
    module = _torch_compat.copy_graph_module(module)
    module.graph.eliminate_dead_code()
    _torch_compat.merge_common_subexpressions(module)
    _torch_compat.raise_parts(module)
    wishes, pinned = _settle_tags(module)
    forward_outputs, gradients = _torch_compat.split_outputs(module, forward_count)
    return JointGraph(
        module=module,
        forward_count=forward_count,
        static_indices=tuple(static_indices or ()),
        forward_outputs=tuple(forward_outputs),
        gradients=tuple(gradients),
        wishes=wishes,
        pinned=pinned,
        overwritten=_torch_compat.overwritten_inputs(module),
    )


def _settle_tags(module: fx.GraphModule) -> tuple[dict[str, str], frozenset[str]]:
    """Tell what the user wishes (may be overruled by a budget) from what torch requires (may not)."""
    _torch_compat.apply_user_tags(module)
    wishes = {n.name: tag for n in module.graph.nodes if (tag := _torch_compat.recompute_tag(n))}
    _torch_compat.force_required_saves(module)
    pinned = {
        n.name for n in module.graph.nodes if _torch_compat.recompute_tag(n) == "save" and wishes.get(n.name) != "save"
    }
    pinned |= {name for name, tag in wishes.items() if tag == "save" and _has_backward_hook(module, name)}
    for name in pinned:
        wishes.pop(name, None)
    return wishes, frozenset(pinned)


def _has_backward_hook(module: fx.GraphModule, name: str) -> bool:
    """FSDP's hooks make recomputing a checkpointed region's output depend on its own gradient."""
    return any(n.name == name and n.meta.get("has_backward_hook", False) for n in module.graph.nodes)
