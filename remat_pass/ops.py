"""What kind of work a node is, and whether running it twice is allowed.

The tables follow what Inductor lowers to a loop (pointwise, reduction) and what it calls as a kernel of its own
(extern). Everything unknown is extern: it then counts as expensive, exists in memory, and is never fused away.
"""

import operator
from typing import Any

import torch
from torch import fx

from remat_pass import _torch_compat
from remat_pass.problem import Kind

aten = torch.ops.aten
prims = torch.ops.prims

_POINTWISE = {
    aten._to_copy,
    aten.arange,
    aten.cat,
    aten.clone,
    aten.constant_pad_nd,
    aten.copy,
    aten.embedding,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.expand_copy,
    aten.fill,
    aten.flip,
    aten.full,
    aten.full_like,
    aten.gather,
    aten.index,
    aten.index_select,
    aten.lift_fresh_copy,
    aten.masked_fill,
    aten.new_empty,
    aten.new_empty_strided,
    aten.new_full,
    aten.new_ones,
    aten.new_zeros,
    aten.ones,
    aten.ones_like,
    aten.repeat,
    aten.roll,
    aten.scalar_tensor,
    aten.select_scatter,
    aten.slice_backward,
    aten.select_backward,
    aten.slice_scatter,
    aten.stack,
    aten.tril,
    aten.triu,
    aten.where,
    aten.zeros,
    aten.zeros_like,
    aten._unsafe_index,
    aten._unsafe_masked_index,
    aten.avg_pool2d_backward,
    aten.upsample_nearest2d,
    prims._low_memory_max_pool_offsets_to_indices,
    prims.convert_element_type,
    prims.iota,
    prims.inductor_lookup_seed if hasattr(prims, "inductor_lookup_seed") else aten.clone,
}
"""Ops that Inductor lowers to a loop over their output although they lack torch's `pointwise` tag."""

_REDUCTIONS = {
    aten.all,
    aten.amax,
    aten.amin,
    aten.any,
    aten.argmax,
    aten.argmin,
    aten.max,
    aten.mean,
    aten.min,
    aten.prod,
    aten.sum,
    aten.std,
    aten.var,
    aten.var_mean,
    aten.avg_pool2d,
    aten.adaptive_avg_pool2d,
    aten._adaptive_avg_pool2d,
    aten.linalg_vector_norm,
    prims._low_memory_max_pool_with_offsets,
    prims.prepare_softmax_online,
    prims.sum,
    prims.var,
}

_OVER_DIMENSIONS = {aten.amax, aten.amin, aten.mean, aten.std, aten.sum, aten.var, aten.var_mean, prims.sum, prims.var}
"""Those of them whose second argument is a list of dimensions."""

_SCATTERS = {aten.index_put, aten._unsafe_masked_index_put_accumulate}
"""Ops that Inductor lowers to a loop where the device can add in place."""

_COLLECTIVES = {"_c10d_functional", "c10d_functional", "c10d"}

_SEEDED = {"inductor_random", "inductor_randint"}
"""Inductor's random ops that read an explicit seed: drawing again gives the same numbers."""


_STATISTICS_UPDATES = {
    aten._native_batch_norm_legit_functional.default: (5, (3, 4)),
    aten._batch_norm_with_update_functional.default: (None, (4, 5)),
}
"""Normalisations that return new running statistics: position of their `training` argument (None: always training),
and which results are the new statistics. In training nothing else depends on the old ones."""


OVERWRITTEN = "reads an input that the step overwrites: in backward its old contents are gone"
"""Why such a value may not run a second time."""

READS_BY_STRIDES = "trusts the strides that were traced: in backward Inductor may have laid out its input otherwise"
"""Why such a view may not run a second time. Inductor hands values to backward channels last where that suits it, and
what is computed from them there follows. The decomposition of GroupNorm has `as_strided`; beside convolutions its
gradients then were wrong, without a word (2.13)."""

DRAWN_BY_SHAPE = "random: on CUDA Inductor may draw other numbers from the same seed in another kernel"
"""Why such a value may not run a second time. Inductor 2.13 and 2.14 draw in blocks of four in kernels of one dimension
and one by one in others, and recomputing puts a draw in a kernel of another shape: wrong gradients, without a word.
Source: https://github.com/pytorch/pytorch/issues/198333; delete it once one seed gives one mask there."""


def packet(node: fx.Node) -> object:
    """The op without its overload; the target itself for anything that is not an aten-like op."""
    return getattr(node.target, "overloadpacket", node.target)


def reads_by_strides(node: fx.Node) -> bool:
    """Whether what a node computes depends on the strides of what it reads, not only on the elements."""
    return node.target in (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_copy.default)


def op_name(node: fx.Node) -> str:
    """How the op is called in reports."""
    if node.op != "call_function":
        return str(node.op)
    return (
        str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node._pretty_print_target(node.target)
    )


def is_convolution(node: fx.Node) -> bool:
    """Whether it is a convolution, whose layout Inductor may choose, or the backward of one."""
    return packet(node) in (aten.convolution, aten.convolution_backward)


def is_attention(node: fx.Node) -> bool:
    """Whether it is a library's fused attention, or the backward of one."""
    return str(packet(node)).startswith(("aten._scaled_dot_product_", "aten._flash_", "aten._efficient_attention"))


def is_drawn_by_shape(node: fx.Node) -> bool:
    """Whether it is a draw on CUDA that depends on the kernel Inductor puts it in; integers are drawn one by one."""
    value = node.meta.get("val")
    on_cuda = isinstance(value, torch.Tensor) and value.device.type == "cuda"
    return on_cuda and str(packet(node)) == "prims.inductor_random"


def updates_statistics(node: fx.Node) -> bool:
    """Whether it is a normalisation in training mode, which reads running statistics only to update them."""
    target: Any = node.target
    training, _ = _STATISTICS_UPDATES.get(target, (None, ()))
    return target in _STATISTICS_UPDATES and (training is None or bool(node.args[training]))


def is_statistics_update(node: fx.Node) -> bool:
    """Whether it is the new running statistics among the results of such a normalisation."""
    if node.target is not operator.getitem or not updates_statistics(node.all_input_nodes[0]):
        return False
    whole: Any = node.all_input_nodes[0].target
    return node.args[1] in _STATISTICS_UPDATES[whole][1]


def is_collective(node: fx.Node) -> bool:
    """Whether it communicates with other processes."""
    return getattr(node.target, "namespace", None) in _COLLECTIVES


def has_effect(node: fx.Node) -> bool:
    """Whether it must run exactly once even if nothing reads it."""
    return node.op == "call_function" and (
        is_collective(node) or _torch_compat.is_impure(node) or _mutates(node) or _is_effect_token_op(node)
    )


def kind_of(node: fx.Node, *, is_view: bool) -> Kind:
    """Kind of a `call_function` or `get_attr` node; `is_view` comes from the storages of its fake values."""
    if node.op == "get_attr":
        return Kind.CONSTANT
    if _torch_compat.is_symbol(node):
        return Kind.SYMBOL
    if is_view:
        return Kind.VIEW
    if node.target is operator.getitem:
        return Kind.PART
    if _torch_compat.is_random(node):
        return Kind.RANDOM
    if packet(node) in _REDUCTIONS or (packet(node) in _SCATTERS and _torch_compat.scatters_in_a_loop(node)):
        return Kind.REDUCTION
    if (
        torch.Tag.pointwise in getattr(node.target, "tags", ())
        or packet(node) in _POINTWISE
        or str(packet(node)).rpartition(".")[2] in _SEEDED
    ):
        return Kind.POINTWISE
    return Kind.EXTERN


def reduces_rows(node: fx.Node) -> bool:
    """Whether it is a reduction that leaves the last dimension, which runs over its elements in another order."""
    if packet(node) not in _OVER_DIMENSIONS or len(node.args) < 2:
        return False
    reduced, dims = node.args[:2]
    rank = reduced.meta["val"].dim() if isinstance(reduced, fx.Node) else 0
    if not isinstance(dims, list | tuple) or not dims or not rank:
        return False
    return all(isinstance(d, int) and d % rank < rank - 1 for d in dims)


def why_not_recompute(node: fx.Node, *, is_checkpointed: bool) -> str | None:
    """Why the op may not run a second time, or None. Random draws are judged by analysis: a state can be carried.

    By checkpointing a region the user vouches for the custom and higher-order ops in it.
    """
    if is_collective(node):
        return "a collective: every rank would have to run it again"
    if has_effect(node):
        return "has a side effect: running it twice would repeat it"
    if is_checkpointed:
        return None
    if isinstance(node.target, torch._ops.HigherOrderOperator) and not _repeats_its_bodies(node):
        return "a higher-order op: its body is not known to be repeatable"
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims", "inductor"):
        return "a custom op: not known to be repeatable"
    return None


def _repeats_its_bodies(node: fx.Node) -> bool:
    """Whether it is attention with functions of the user's in it, all of them made of ops that may run again."""
    if node.target is not torch.ops.higher_order.flex_attention:
        return False
    held = [getattr(node.graph.owning_module, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
    inner = [n for body in held if isinstance(body, fx.GraphModule) for n in body.graph.nodes]
    return not any(_torch_compat.is_random(n) or why_not_recompute(n, is_checkpointed=False) for n in inner)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_effect_token_op(node: fx.Node) -> bool:
    return node.target is torch.ops.higher_order.with_effects
