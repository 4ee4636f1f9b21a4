"""From a joint graph to a torch-free problem: sizes, aliases, costs, constraints, each with its reason.

torch ends here. Every rule about what may be saved or recomputed is a function that answers with the reason or None,
and the reason travels through the plan into the report and the errors.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import fx

from remat_pass import _torch_compat
from remat_pass.costs import DeviceRates, arithmetic_ns, roofline_ns, transfer_ns
from remat_pass.errors import VerificationError
from remat_pass.fusion import LOOPS
from remat_pass.garbage import collection_paused
from remat_pass.joint_graph import JointGraph
from remat_pass.kernel_times import rates_of, time_kernels
from remat_pass.ops import (
    DRAWN_BY_SHAPE,
    OVERWRITTEN,
    READS_BY_STRIDES,
    has_effect,
    is_convolution,
    is_drawn_by_shape,
    is_statistics_update,
    kind_of,
    op_name,
    reads_by_strides,
    reduces_rows,
    updates_statistics,
    why_not_recompute,
)
from remat_pass.order import early_order, late_order, reorder
from remat_pass.probe import probe
from remat_pass.problem import Kind, RematProblem, Value
from remat_pass.storage import Storages, main_device_type, storage_size, storages_of

_INDUCTOR_MARGIN_PERMILLE = 10
"""How far Inductor's real peak may exceed the prediction, which is read off its schedule: by 0.4% at most on
seven models, under a budget (`benchmarks/results/prediction*.md`)."""

_CONVOLUTION_MARGIN_PERMILLE = 20
"""The same with convolutions, whose layouts and scratch depend on more than that."""

_EAGER_MARGIN_PERMILLE = 1
"""Scalars that autograd allocates around the graphs are not in them."""

_LIBRARY = (Kind.EXTERN, Kind.RANDOM)
"""Kernels of their own, which want what they read in memory."""
_NEARBY = 24
"""How many values that one is made of are looked at."""

_FREE_KINDS = frozenset({Kind.SYMBOL, Kind.CONSTANT, Kind.VIEW, Kind.PART})


@dataclass(frozen=True, slots=True)
class _Context:
    """What every rule may need beside the node."""

    joint: JointGraph
    fuses: bool
    device_type: str
    rates: DeviceRates
    backward: frozenset[str]
    """Nodes that can only run in backward."""
    overwritten: frozenset[str]
    """Inputs whose contents do not last from forward to backward, and views of them."""
    channels_last: bool
    """Whether the lowering lays out what convolutions read and write channels last."""
    drawn: frozenset[str]
    """Draws that may not be repeated, and what is made of them alone, such as masks: one of these must be saved."""


@collection_paused()
def analyze(joint: JointGraph, *, fuses: bool, cost_model: str) -> tuple[JointGraph, RematProblem, tuple[str, ...]]:
    """Describe a joint graph to the planner.

    Args:
        joint: The captured graph.
        fuses: Whether the lowering fuses pointwise ops (Inductor).
        cost_model: "roofline" or "measured".

    Returns:
        A copy of the graph in the order that its plans will have (`order`), the problem, whose values are that copy's
        nodes, and the names of ops whose scratch memory could not be measured.
    """
    device_type = main_device_type(joint.nodes)
    context = _Context(
        joint,
        fuses,
        device_type,
        rates_of(device_type),
        _backward_nodes(joint),
        _overwritten(joint, device_type),
        fuses and _torch_compat.lays_out_channels_last(joint.module),
        _drawn(joint) if fuses else frozenset(),
    )
    index = {node: i for i, node in enumerate(joint.nodes)}
    values: list[Value] = []
    unprobed: dict[str, None] = {}
    for node in joint.nodes:
        value = _placeholder(node, context) if node.op == "placeholder" else _computed(node, index, context, unprobed)
        values.append(_inherit_constraints(value, values))
    if cost_model == "measured":
        values = _timed(joint, values, fuses=fuses)
    values = _with_expanded(joint, values)
    forward_outputs = (index[n] for n in joint.forward_outputs if isinstance(n, fx.Node))
    problem = RematProblem(
        values=tuple(values),
        forward_outputs=tuple(i for i in forward_outputs if not values[i].needs_tangent),
        gradients=tuple(index[n] for n in joint.gradients if isinstance(n, fx.Node)),
        fuses=fuses,
        joins_loops=fuses and device_type == "cpu",
        margin_permille=_margin_permille(joint, fuses),
        symbolic=any(v.size.expression for v in values),
    )
    problem = replace(problem, values=_pin_unread_draws(problem))
    if fuses:
        loops = _loop_bytes(problem)
        problem = replace(
            problem, values=tuple(_fused_costs(problem, i, loops[i], context) for i in range(len(values)))
        )
    early = early_order(problem)
    ordered = reorder(problem, early, frozenset())
    late, waiting = late_order(ordered)
    order = tuple(early[i] for i in late)
    _check_turns(problem, order)
    return joint.reordered(order), reorder(ordered, late, waiting), tuple(unprobed)


def _check_turns(problem: RematProblem, order: tuple[int, ...]) -> None:
    """Effects and draws happen in the order in which they were traced, whatever else moves."""
    in_turn = [i for i in order if problem.values[i].has_effect or problem.values[i].kind is Kind.RANDOM]
    for before, after in pairwise(in_turn):
        if after < before:
            names = f"{problem.values[after].name} and {problem.values[before].name}"
            raise VerificationError(f"the order of backward swaps {names}, of which one has an effect or draws")


def _margin_permille(joint: JointGraph, fuses: bool) -> int:
    if not fuses:
        return _EAGER_MARGIN_PERMILLE
    if any(is_convolution(node) for node in joint.nodes):
        return _CONVOLUTION_MARGIN_PERMILLE
    return _INDUCTOR_MARGIN_PERMILLE


def _backward_nodes(joint: JointGraph) -> frozenset[str]:
    """What depends on a tangent, or was run by the autograd engine and must not move to forward."""
    backward: set[str] = set()
    for node in joint.nodes:
        pinned = node.op == "call_function" and (
            _torch_compat.must_be_in_backward(node)
            or (_torch_compat.was_traced_in_backward(node) and (_torch_compat.is_random(node) or has_effect(node)))
        )
        tangent = node.op == "placeholder" and (_torch_compat.is_tangent(node) or _torch_compat.is_backward_state(node))
        if pinned or tangent or any(n.name in backward for n in node.all_input_nodes):
            backward.add(node.name)
    return frozenset(backward)


def _overwritten(joint: JointGraph, device_type: str) -> frozenset[str]:
    """The inputs that a step overwrites, and all views of them."""
    names = set(joint.overwritten)
    for node in joint.nodes if names else ():
        if any(held.name in names for held in storages_of(node, device_type).holds):
            names.add(node.name)
    return frozenset(names)


def _drawn(joint: JointGraph) -> frozenset[str]:
    """Draws whose numbers depend on the kernel, and what is computed from nothing else."""
    drawn: set[str] = set()
    for node in joint.nodes:
        reads = node.all_input_nodes
        if is_drawn_by_shape(node) or (reads and all(n.name in drawn for n in reads)):
            drawn.add(node.name)
    return frozenset(drawn)


def _placeholder(node: fx.Node, context: _Context) -> Value:
    size = storage_size(node.meta.get("val"), context.device_type)
    if node.name in context.backward:
        return Value(node.name, "placeholder", Kind.TANGENT, size=size, needs_tangent=True)
    if _torch_compat.is_symbol(node):
        return Value(node.name, "placeholder", Kind.SYMBOL)
    static = node in context.joint.static_inputs
    return Value(
        node.name,
        "placeholder",
        Kind.STATIC_INPUT if static else Kind.ACTIVATION_INPUT,
        size=size,
        copy_bytes=size.hint if context.channels_last and _is_copied_for_convolutions(node) else 0,
    )


def _is_copied_for_convolutions(node: fx.Node) -> bool:
    """Whether convolutions over two dimensions read an input that is not laid out channels last."""
    value = node.meta["val"]
    is_read = any(is_convolution(user) for user in node.users)
    return is_read and value.dim() == 4 and not value.is_contiguous(memory_format=torch.channels_last)


def _computed(node: fx.Node, index: dict[fx.Node, int], context: _Context, unprobed: dict[str, None]) -> Value:
    storages = storages_of(node, context.device_type)
    kind = kind_of(node, is_view=bool(storages.holds) and not storages.output_bytes)
    workspace, recompute_ns = _run_figures(node, kind, storages, context, unprobed)
    by_strides = context.fuses and node.name not in context.backward and _trusts_computed_strides(node, context)
    return Value(
        name=node.name,
        op=op_name(node),
        kind=kind,
        reads=tuple(index[n] for n in node.all_input_nodes),
        size=storages.size,
        holds=tuple(index[n] for n in storages.holds),
        workspace_bytes=workspace,
        rng_state_bytes=_rng_state_bytes(node),
        recompute_ns=recompute_ns,
        arithmetic_ns=arithmetic_ns(node, context.rates),
        needs_tangent=node.name in context.backward,
        has_effect=has_effect(node),
        reduces_rows=reduces_rows(node),
        cannot_recompute=READS_BY_STRIDES if by_strides else _why_not_recompute(node, context),
        cannot_save=None if by_strides else _why_not_save(node, kind),
        # Where a draw may not be repeated, recomputing its mask means saving the wider draw: the planner decides.
        wish=None if node.name in context.drawn else context.joint.wishes.get(node.name),
        source=source_line(node),
    )


def _run_figures(
    node: fx.Node, kind: Kind, storages: Storages, context: _Context, unprobed: dict[str, None]
) -> tuple[int, int]:
    """(workspace bytes, recompute ns) of one run. Fused loops have no scratch, so only extern kernels are probed."""
    if kind in _FREE_KINDS:
        return 0, 0
    # An op with several outputs has them in its workspace; its parts own them once it has run.
    workspace = storages.output_bytes
    if _is_own_kernel(kind, fuses=context.fuses):
        peak_bytes = probe(node)
        if peak_bytes is None:
            unprobed[op_name(node)] = None
        else:
            workspace = max(workspace, peak_bytes - storages.size.hint)
    return workspace, roofline_ns(node, context.rates)


def _is_own_kernel(kind: Kind, *, fuses: bool) -> bool:
    """Whether an op runs as the kernel that torch has for it."""
    return kind in (Kind.EXTERN, Kind.RANDOM) or not (fuses or kind in _FREE_KINDS)


def _with_expanded(joint: JointGraph, values: list[Value]) -> list[Value]:
    """The values with the bytes of what library calls read of them through views that are larger."""
    found = list(values)
    base = list(range(len(values)))
    """For every view what it is a view of."""
    for i, (node, value) in enumerate(zip(joint.nodes, values, strict=True)):
        tensor = node.meta.get("val")
        if value.kind is Kind.VIEW and len(value.holds) == 1 and isinstance(tensor, torch.Tensor):
            base[i] = of = base[value.holds[0]]
            view_bytes = _torch_compat.local_bytes(tensor)
            is_called = any(kind_of(user, is_view=False) is Kind.EXTERN for user in node.users)
            if is_called and view_bytes > max(found[of].size.hint, found[of].expanded_bytes):
                found[of] = replace(found[of], expanded_bytes=view_bytes)
    return found


def _timed(joint: JointGraph, values: list[Value], *, fuses: bool) -> list[Value]:
    """The values with the measured times of those that can be timed."""
    kernels = [n for n, v in zip(joint.nodes, values, strict=True) if _is_own_kernel(v.kind, fuses=fuses)]
    times = time_kernels([node for node in kernels if node.op == "call_function"])
    return [replace(v, recompute_ns=times.get(v.name, v.recompute_ns)) for v in values]


def _trusts_computed_strides(node: fx.Node, context: _Context) -> bool:
    """Whether it is a view by strides of something computed; inputs have the strides that were traced."""
    if not reads_by_strides(node):
        return False
    bases = list(node.all_input_nodes[:1])
    for base in bases:  # grows
        bases += storages_of(base, context.device_type).holds
    return bases[-1].op != "placeholder"


def _why_not_recompute(node: fx.Node, context: _Context) -> str | None:
    if node.name in context.joint.pinned:
        return "torch requires it to be saved: its source is mutated, or it has effects or hooks"
    if _needs_old_contents(node, context):
        return OVERWRITTEN
    if context.fuses and is_drawn_by_shape(node):
        return DRAWN_BY_SHAPE
    if _torch_compat.is_random(node) and context.fuses and context.joint.wishes.get(node.name) != "recompute":
        return "random: a second draw would give other numbers"
    if _torch_compat.is_symbol(node) and isinstance(node.meta.get("val"), torch.SymInt):
        return "a symbolic size: handed to backward as an integer"
    return why_not_recompute(node, is_checkpointed=context.joint.wishes.get(node.name) == "recompute")


def _needs_old_contents(node: fx.Node, context: _Context) -> bool:
    """Views of an overwritten input are as good as the input itself; what is computed from them is not.

    BatchNorm in training mode reads its running statistics for their own update alone.
    """
    if node.name in context.overwritten:
        return False
    if is_statistics_update(node):
        return any(n.name in context.overwritten for n in node.all_input_nodes[0].all_input_nodes)
    return not updates_statistics(node) and any(n.name in context.overwritten for n in node.all_input_nodes)


def _why_not_save(node: fx.Node, kind: Kind) -> str | None:
    if kind is Kind.VIEW:
        return "a view: its base is saved instead, for the same bytes"
    if kind is Kind.CONSTANT:
        return "an attribute of the module: it is there already"
    if kind is Kind.SYMBOL:
        return None if isinstance(node.meta.get("val"), torch.SymInt) else "only integers can be handed over"
    if _torch_compat.is_opaque(node):
        return None
    return None if isinstance(node.meta.get("val"), torch.Tensor) else "not a tensor: its parts are saved instead"


def _inherit_constraints(value: Value, earlier: list[Value]) -> Value:
    """A part is as repeatable as the op it belongs to: where that may not run again, every part has to be saved."""
    if value.kind is not Kind.PART or value.cannot_recompute:
        return value
    whole = earlier[value.reads[0]]
    wish = value.wish or whole.wish
    return replace(value, cannot_recompute=whole.cannot_recompute, wish=wish)


def _pin_unread_draws(problem: RematProblem) -> tuple[Value, ...]:
    """A draw that only backward reads must still happen in forward, in its turn: then its numbers are saved."""
    values: list[Value] = []
    for i, value in enumerate(problem.values):
        if value.kind is Kind.RANDOM and not value.needs_tangent and not problem.runs_in_forward[i]:
            value = replace(value, cannot_recompute="random: forward draws it for backward alone")
        values.append(_inherit_constraints(value, values))
    return tuple(values)


def _rng_state_bytes(node: fx.Node) -> int:
    """Size of the generator state that forward saves if the draw is repeated; CUDA keeps it outside of memory."""
    if not _torch_compat.is_random(node):
        return 0
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    on_cpu = isinstance(first, torch.Tensor) and first.device.type == "cpu"
    return torch.get_rng_state().numel() if on_cpu else 0


def _loop_bytes(problem: RematProblem) -> list[int]:
    """How much the largest loop writes that computes a value for itself, at its own extent.

    So the scale of a row is computed once more for each of its elements. What is made of nothing takes no time there.
    """
    loops = [v.size.hint for v in problem.values]
    for i in reversed(range(len(loops))):
        readers = problem.readers[i] if problem.values[i].reads else ()
        loops[i] = max(
            [loops[i], *(loops[r] for r in readers if problem.values[r].kind in (Kind.POINTWISE, Kind.VIEW))]
        )
    return loops


def _fused_costs(problem: RematProblem, i: int, loop_bytes: int, context: _Context) -> Value:
    """Costs where pointwise ops are computed inside their readers: memory traffic, not launches.

    Recomputing a pointwise value costs its arithmetic (at least a small part of its traffic) in the largest loop that
    reads it and, if an extern kernel wants it in memory, writing it, in a kernel of its own unless a loop of backward
    can do it. Saving one costs writing it, unless forward has it in memory anyway; for the least of them that is still
    more than to make it of nothing.
    """
    value = problem.values[i]
    if value.needs_tangent or value.is_input or value.kind in _FREE_KINDS - {Kind.PART}:
        return value
    write_ns = transfer_ns(value.size.hint, context.rates)
    if value.kind is Kind.POINTWISE:
        called = {r for r in _through_views(problem, problem.readers[i]) if problem.values[r].kind in _LIBRARY}
        in_memory = i in problem.forward_outputs or any(problem.runs_in_forward[r] for r in called)
        times = loop_bytes / max(1, value.size.hint)
        fused_ns = round(value.arithmetic_ns * times) + transfer_ns(loop_bytes, context.rates) // 8
        if called:
            fused_ns = fused_ns + write_ns if _shares_a_loop(problem, i) else max(fused_ns, value.recompute_ns)
        return replace(value, recompute_ns=fused_ns, save_ns=0 if in_memory else max(1, write_ns))
    return value


def _through_views(problem: RematProblem, readers: Iterable[int]) -> Iterator[int]:
    """The readers, and in place of each view those of the view."""
    for r in readers:
        if problem.values[r].kind is Kind.VIEW:
            yield from _through_views(problem, problem.readers[r])
        else:
            yield r


def _shares_a_loop(problem: RematProblem, i: int) -> bool:
    """Whether a loop of backward reads what a value is made of, and is as large: one kernel then computes both."""
    values = problem.values
    found, pending = {i}, [i]
    while pending and len(found) < _NEARBY:
        for r in values[pending.pop(0)].reads:
            if r in found or values[r].needs_tangent:
                continue
            found.add(r)
            if 2 * values[r].size.hint >= values[i].size.hint and _feeds_backward_loop(problem, r):
                return True
            if values[r].kind in (Kind.POINTWISE, Kind.VIEW):
                pending.append(r)
    return False


def _feeds_backward_loop(problem: RematProblem, i: int) -> bool:
    """Also one for the derivative of a function, before the tangent is multiplied in."""
    readers = _through_views(problem, problem.readers[i])
    return any(not problem.runs_in_forward[r] and problem.values[r].kind in LOOPS for r in readers)


def source_line(node: fx.Node) -> str | None:
    """The user's file:line that the node comes from: the innermost frame of its stack trace."""
    trace = node.meta.get("stack_trace")
    if not trace:
        return None
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith('File "')]
    if not frames:
        return None
    path, _, rest = frames[-1].removeprefix('File "').partition('", line ')
    return f"{path}:{rest.split(',')[0]}"
