"""The only importer of torch's private names; each with the versions it holds for.

Importing `torch._inductor.config` for the first time takes about a second (2.13, 2.14), so the functions that need
Inductor import it when they are called: a user of the eager lowering never pays.
"""

from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any, Protocol, TypeVar
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import fx
from torch._C._autograd import _profiler_enabled
from torch._C._profiler import _ExperimentalConfig, _ExtraFields_Allocation
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.exc import Unsupported
from torch._functorch import partitioners
from torch._functorch._aot_autograd.descriptors import (
    InputMutationAOTOutput,
    SubclassGetAttrAOTInput,
    SubclassGetAttrAOTOutput,
)
from torch._functorch._aot_autograd.graph_compile import is_opaque_node
from torch._functorch._aot_autograd.utils import _is_bwd_seed_offset, _is_primal, _is_tangent
from torch._functorch.compile_utils import fx_graph_cse, raise_getitems
from torch._guards import CompileContext
from torch._inductor.custom_graph_pass import CustomPartitionerFn, CustomSchedulerPass
from torch._library.utils import is_impure as is_impure_op
from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import is_sym_node
from torch.fx.experimental.symbolic_shapes import free_symbols, optimization_hint
from torch.multiprocessing.reductions import StorageWeakRef
from torch.torch_version import TorchVersion
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import flop_registry

from remat_pass.matching import largest_matching

_Error = TypeVar("_Error", bound=BaseException)


def inductor_option_names() -> frozenset[str]:
    """Names that `torch.compile(options=...)` accepts for Inductor (2.13, 2.14)."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def inductor_option_type(name: str) -> object:
    """Declared type of one Inductor option, possibly a union or a generic alias (2.13, 2.14)."""
    from torch._inductor import config

    declared: object = config.get_type(name)  # type: ignore[attr-defined]
    return declared


def expand_inductor_mode(mode: str) -> dict[str, object]:
    """Inductor options that `torch.compile(mode=...)` stands for (2.13, 2.14).

    Raises:
        RuntimeError: torch knows no such mode; the message lists those it knows.
    """
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))


# Capture: reading and cleaning a joint graph.


def copy_graph_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose graph, nodes and `meta` dictionaries are its own; parameters and fake values are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    copy = make_graph_module(module, graph)
    copy.meta.update(module.meta)
    return copy


def copy_captured(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of Dynamo's graph, with what AOTAutograd reads of Dynamo there and on the module (2.13, 2.14).

    That is which inputs are parameters, and for its cache keys the hooks that pack saved tensors, which no node refers
    to. Inductor changes the graph that it is given.
    """
    copy = copy_graph_module(module)
    for own, shared in ((vars(copy), vars(module)), (copy._modules, module._modules)):
        own.update({name: value for name, value in shared.items() if name not in own})
    for old, new in zip(module.graph.nodes, copy.graph.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return copy


def make_graph_module(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A module of the graph that shares the attributes of `root` (2.13, 2.14).

    Its Python code is generated when somebody runs or reads it: of most graphs on the way nobody does.
    """
    return _LazyGraphModule(root, graph)


def merge_common_subexpressions(module: fx.GraphModule) -> None:
    """Torch's own CSE, in place (2.13, 2.14).

    It leaves random ops alone, but its list of them lacks some, such as `randn_like`: what lost a draw is undone.
    """
    merged = fx_graph_cse(module.graph)
    if _count_draws(merged) == _count_draws(module.graph):
        module.graph = merged


def _count_draws(graph: fx.Graph) -> int:
    return sum(map(is_random, graph.nodes))


def is_random(node: fx.Node) -> bool:
    """Whether running it draws from a generator (2.13, 2.14).

    Attention with `dropout_p=0` carries the tag but draws nothing.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema: Any = getattr(node.target, "_schema", None)
    names = [] if schema is None else [argument.name for argument in schema.arguments]
    if "dropout_p" not in names:
        return True
    position = names.index("dropout_p")
    default = schema.arguments[position].default_value
    dropout = node.args[position] if len(node.args) > position else node.kwargs.get("dropout_p", default)
    return bool(dropout != 0)


def float32_precision(*, convolves: bool) -> str:
    """To what products, or convolutions, of float32 may be rounded on CUDA, such as "tf32" (2.13, 2.14)."""
    backends: Any = torch.backends
    return str((backends.cudnn.conv if convolves else backends.cuda.matmul).fp32_precision)


def speed_settings() -> str:
    """What else the speed of kernels depends on: threads, and to what float32 may be rounded (2.13, 2.14)."""
    backends: Any = torch.backends
    precisions = [float32_precision(convolves=convolves) for convolves in (False, True)]
    precisions += [backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision]
    return f"{torch.get_num_threads()} threads, float32 {' '.join(precisions)}"


def apply_user_tags(module: fx.GraphModule) -> None:
    """Settle the tags of `checkpoint()` where two checkpointed regions touch, in place (2.13, 2.14)."""
    if partitioners.has_recomputable_ops(module):
        partitioners.cleanup_recompute_tags(module, is_default_partition=False)


def force_required_saves(module: fx.GraphModule) -> None:
    """Tag MUST_SAVE what may never run twice: collectives, effectful ops, mutation sources (2.13, 2.14)."""
    partitioners.force_save_collectives(module)
    partitioners.force_save_effectful_ops(module)
    partitioners.force_save_bw_mutation_src(module)


def recompute_tag(node: fx.Node) -> str | None:
    """What a tag on the node asks for: "save", "recompute" or None (CheckpointPolicy in 2.13, 2.14)."""
    if partitioners.must_recompute(node):
        return "recompute"
    return "save" if node.meta.get("recompute") is CheckpointPolicy.MUST_SAVE else None


def set_recompute_tag(node: fx.Node, *, recompute: bool) -> None:
    """Tag the node for `carry_rng_states`, or clear its tag."""
    node.meta.pop("recompute", None)
    if recompute:
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def split_outputs(module: fx.GraphModule, forward_count: int) -> tuple[list[Any], list[Any]]:
    """What forward and what backward must return, nodes or None, in order (2.13, 2.14)."""
    forward, backward, _, _ = partitioners._extract_fwd_bwd_outputs(module, num_fwd_outputs=forward_count)
    return forward, backward


def overwritten_inputs(module: fx.GraphModule) -> frozenset[str]:
    """Names of the placeholders whose contents a step replaces: statistics, counters, arguments changed in place.

    AOTAutograd makes every mutation a computation of the new contents. It writes them back by a `copy_` in the graph,
    or returns them and writes them back itself between forward and backward (2.13, 2.14).
    """
    names: set[str] = set()
    returned: set[Any] = set()
    for node in module.graph.nodes:
        names.update(a.name for a in written_arguments(node) if a.op == "placeholder")
    for desc in module.graph.output_node().meta.get("desc", ()):
        root = _root_desc(desc)
        if isinstance(root, InputMutationAOTOutput):
            returned.add(_root_desc(root.mutated_input))
    for node in module.graph.find_nodes(op="placeholder"):
        if returned and _root_desc(node.meta.get("desc")) in returned:
            names.add(node.name)
    return frozenset(names)


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments that a node changes in place, by the schema of its op (2.13, 2.14)."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    given = [*zip(node.args, arguments, strict=False), *((node.kwargs.get(a.name), a) for a in arguments)]
    written = [value for value, a in given if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in written if isinstance(value, fx.Node)]


def _root_desc(desc: Any) -> Any:
    """What a part of a tensor subclass is a part of."""
    while isinstance(desc, (SubclassGetAttrAOTInput, SubclassGetAttrAOTOutput)):
        desc = desc.base
    return desc


def is_tangent(node: fx.Node) -> bool:
    """Whether the placeholder belongs to backward only: a tangent or the random seed of backward (2.13, 2.14)."""
    return _is_tangent(node) or _is_bwd_seed_offset(node)


def is_primal(node: fx.Node) -> bool:
    """Whether the placeholder is an argument of the compiled function, the order of static indices (2.13, 2.14)."""
    return _is_primal(node)


def must_be_in_backward(node: fx.Node) -> bool:
    """Whether AOTAutograd pinned the node to backward: a mutation made there (2.13, 2.14)."""
    return partitioners._must_be_in_backward(node)


def was_traced_in_backward(node: fx.Node) -> bool:
    """Whether the autograd engine, not the forward code, ran the op (2.13, 2.14)."""
    return node.meta.get("partitioner_tag") in ("is_backward", "must_be_in_backward")


def is_backward_state(node: fx.Node) -> bool:
    """Whether the placeholder carries compiled-autograd hooks, which backward receives by itself (2.13, 2.14)."""
    return partitioners._is_backward_state(node)


def is_symbol(node: fx.Node) -> bool:
    """Whether the node yields a SymInt, SymFloat or SymBool (2.13, 2.14)."""
    return is_sym_node(node)


def is_opaque(node: fx.Node) -> bool:
    """Whether the node yields an opaque object that rides along with the symbols (2.13, 2.14)."""
    return bool(is_opaque_node(node))


def enables_gradients(node: fx.Node) -> bool:
    """Whether a node of Dynamo's graph is `torch.enable_grad()` (2.13, 2.14)."""
    return node.target is torch._C._set_grad_enabled and bool(node.args[0])


def has_checkpoints(module: fx.GraphModule) -> bool:
    """Whether Dynamo's graph has regions of `torch.utils.checkpoint` (2.13, 2.14)."""
    checkpoint = torch.ops.higher_order.tag_activation_checkpoint
    graphs = [m.graph for m in module.modules() if isinstance(m, fx.GraphModule)]
    return any(node.target is checkpoint for graph in graphs for node in graph.nodes)


def is_impure(node: fx.Node) -> bool:
    """Whether torch's dead-code elimination keeps an unread node; random draws do not count (2.13, 2.14)."""
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return _aten_is_impure(target)
    return bool(node.is_impure(False))


@cache
def _aten_is_impure(op: torch._ops.OpOverload) -> bool:
    """Of these the arguments do not matter, and nobody registers an effect."""
    return bool(is_impure_op(op, impure_random=False))


def size_hint(size: Any) -> int:
    """The concrete value that planning uses for a possibly symbolic size, without a guard (2.13, 2.14)."""
    return int(optimization_hint(size, fallback=4096)) if isinstance(size, torch.SymInt) else int(size)


def local_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements in this process: of a subclass such as DTensor those of its parts (2.13, 2.14)."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(local_bytes(getattr(tensor, name)) for name in names)
    return size_hint(tensor.numel() * tensor.element_size())


# Rewrite: cutting a joint graph in two.


def extract_forward_and_backward(
    module: fx.GraphModule,
    saved: list[fx.Node],
    *,
    forward_count: int,
    static_inputs: list[fx.Node],
) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    """Cut at `saved`; returns forward, backward and how many symbols forward hands over (2.13, 2.14)."""
    symbols = [n for n in saved if is_sym_node(n) and not partitioners._is_assert_only_symbool(n)]
    opaque = [n for n in saved if is_opaque_node(n)]
    tensors = [n for n in saved if not is_sym_node(n) and not is_opaque_node(n)]
    forward, backward = partitioners._extract_fwd_bwd_modules(
        module,
        tensors,
        symbols,
        opaque,
        num_fwd_outputs=forward_count,
        static_lifetime_input_nodes=OrderedSet(static_inputs),
    )
    return forward, backward, len(symbols)


def carry_rng_states(
    module: fx.GraphModule, forward: fx.GraphModule, backward: fx.GraphModule, symbol_count: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Make random ops of the same name in both graphs draw the same numbers (2.13, 2.14).

    The ops must be tagged by `set_recompute_tag(recompute=True)` in `module`.
    """
    return partitioners.functionalize_rng_ops(module, forward, backward, symbol_count)


def rename(node: fx.Node, name: str) -> None:
    """Give a node the name, which no other node of its graph may have (2.13, 2.14).

    A graph remembers the names of erased nodes and would number this one instead of giving it such a name.
    """
    node.graph._graph_namespace._used_names.discard(name)
    node._rename(name)


def thread_rng_from_higher_order_ops(
    forward: fx.GraphModule, backward: fx.GraphModule
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Pass the random states that nested graphs ask for through the outer ones (2.13, 2.14)."""
    return (
        partitioners.thread_graphsafe_rng_from_hops(forward, is_backward=False),
        partitioners.thread_graphsafe_rng_from_hops(backward, is_backward=True),
    )


def raise_parts(module: fx.GraphModule) -> fx.GraphModule:
    """Move every `getitem` right behind the op it takes a part of, in place (2.13, 2.14)."""
    return raise_getitems(module)


def partition_like_torch(
    module: fx.GraphModule, inputs: Any, *, forward_count: int, static_indices: list[int]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What `backend="inductor"` would do with the joint graph, which is changed in place (2.13, 2.14)."""
    return partitioners.min_cut_rematerialization_partition(
        module, inputs, num_fwd_outputs=forward_count, static_lifetime_input_indices=static_indices
    )


def allocation_peak(run: Callable[[], object]) -> int:
    """Most bytes that `run` has allocated at one moment, on the CPU and CUDA together (2.13, 2.14).

    The profiler's legacy mode sees every allocation, starts in milliseconds and prints nothing, which matters for an
    observer that starts once per kernel; `torch.profiler` takes a hundred times as long.
    """
    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    _enable_profiler_legacy(config)
    try:
        kept = run()
    finally:
        threads = _disable_profiler_legacy()
    del kept
    now = peak = 0
    for event in (event for thread in threads for event in thread):
        if str(event.kind()) == "memory_alloc":
            now += event.cpu_memory_usage() + event.cuda_memory_usage()
            peak = max(peak, now)
    return peak


RNG_WRAPPERS = {
    "save": torch.ops.higher_order.run_and_save_rng_state,
    "replay": torch.ops.higher_order.run_with_rng_state,
    "graphsafe": torch.ops.higher_order.graphsafe_run_with_rng_state,
}
"""The ops `carry_rng_states` puts around random ops (2.13, 2.14)."""


def wrapped_op(node: fx.Node) -> tuple[Any, list[Any], dict[str, Any], Any]:
    """Target and arguments of the op in a wrapper of `RNG_WRAPPERS`, and the state it draws from (2.13, 2.14).

    The node's own, and no state, where it is no wrapper.
    """
    args, kwargs = list(node.args), dict(node.kwargs)
    if node.target not in RNG_WRAPPERS.values():
        return node.target, args, kwargs, None
    state = args.pop(0) if node.target is RNG_WRAPPERS["replay"] else kwargs.pop("rng_state", None)
    return args.pop(0), args, kwargs, state


def no_fake_tensors() -> AbstractContextManager[None]:
    """Run real kernels although a fake or proxy mode is active (2.13, 2.14)."""
    return _disable_current_modes()


# Lowering.


class RematPartitionerBase(CustomPartitionerFn):
    """What Inductor demands of `config.custom_partitioner_fn` (2.13, 2.14)."""


def compile_with_inductor(
    module: fx.GraphModule,
    inputs: Any,
    config_patches: dict[str, Any],
    watcher: "CompilationWatcher | None" = None,
) -> Any:
    """Inductor's whole compiler, whose partitioner is set in `config_patches` (2.13, 2.14).

    Backward is compiled at once, and not when it first runs, so that it can be watched. That is part of AOTAutograd's
    cache keys, and the same without a watcher: what the first attempt has to give up is found under them.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    inner_compile = configured_choices()(compile_fx_inner)

    def watched_compile(module: fx.GraphModule, inputs: Any, **more: Any) -> Any:
        with observed_schedules(watcher.observe if watcher else None):
            compiled = inner_compile(module, inputs, **more)
        if watcher and more.get("is_backward"):
            watcher.settle()
        return compiled

    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        return compile_fx(module, inputs, inner_compile=watched_compile, config_patches=config_patches)


@contextmanager
def configured_choices() -> Iterator[None]:
    """Inside, and as a decorator, the option `inductor_choices_class` holds (2.13, 2.14).

    Inductor looks at it once per thread and keeps what it found.
    """
    from torch._inductor import config
    from torch._inductor.virtualized import V

    if config.inductor_choices_class is None:
        yield
    else:
        with V.set_choices_handler(config.inductor_choices_class()):
            yield


def user_has_set(option: str, ours: Any) -> bool:
    """Whether the user has given a value to one of Inductor's options that are None by default (2.13, 2.14).

    While we compile, it has ours.
    """
    from torch._inductor import config

    return getattr(config, option) not in (None, ours)


_CALLS_APART = "remat_pass_calls_apart"
_DELAYS_LOOPS = "remat_pass_delays_loops"
_MOST_CALLS_TO_A_SUM = 8


def set_calls_apart(module: fx.GraphModule, count: int, *, delays_loops: bool = False) -> None:
    """Say for one graph how many library calls may lie between two loops that are fused.

    Inductor's cache keys hold what is in `meta` (2.13, 2.14).

    Args:
        module: The graph.
        count: That many.
        delays_loops: Whether the later one may need the results of some of them.
    """
    module.meta[_CALLS_APART] = count
    module.meta[_DELAYS_LOOPS] = delays_loops


def order_keeping_choices() -> Any:
    """For `inductor_choices_class`: two loops are fused only if few library calls lie between them.

    How many, and whether the later loop may need the result of one of them, `set_calls_apart` says. Graphs that it was
    not called for are left to Inductor.

    Inductor runs both where the earlier one stands. What a plan computes late, because there is no room for it before,
    would then be there early: copies of one value would meet, and what is recomputed for one layer would come with that
    for another. Close by, fusing spares loads and launches for little memory (2.13, 2.14).
    """
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    class OrderKeepingChoices(InductorChoices):
        def __init__(self) -> None:
            self.calls: WeakKeyDictionary[Any, list[tuple[int, str]]] = WeakKeyDictionary()

        def uuid(self) -> str:
            return "remat_pass: loops are fused over as many library calls as the plan allows"

        def can_fuse(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
            if not (node1.is_template() or node2.is_template() or self.keeps_order(scheduler, node1, node2)):
                return False
            return bool(InductorChoices.can_fuse(scheduler, node1, node2, shared_data_score))

        def keeps_order(self, scheduler: Any, node1: Any, node2: Any) -> bool:
            module: Any = V.graph.module
            apart = module.meta.get(_CALLS_APART)
            if apart is None:
                return True
            if scheduler not in self.calls:
                called = (n for n in scheduler.nodes if n.is_extern() or n.is_template())
                self.calls[scheduler] = sorted((n.min_order, n.get_name()) for n in called)
            calls = self.calls[scheduler]
            first, later = sorted((node1, node2), key=lambda node: node.min_order)
            last = max(node1.max_order, node2.max_order)
            between = calls[bisect(calls, (first.min_order,)) : bisect(calls, (last,))]
            if len(between) > apart:
                return False
            return module.meta[_DELAYS_LOOPS] or not any(name in later.ancestors for _, name in between)

    return OrderKeepingChoices()


ReadSchedule = Callable[[Collection[str]], "InductorSchedule"]
"""Reads the schedule of the graph that is compiled; takes the names of the inputs that are copies (`owned`)."""

ScheduleObserver = Callable[[tuple[str, ...], bool, ReadSchedule], None]
"""Is told the names of a graph's inputs, whether it is a backward graph, and how to read its schedule."""


class CompilationWatcher(Protocol):
    """Follows the compilation of a captured graph, and ends it by an exception."""

    def observe(self, inputs: tuple[str, ...], is_backward: bool, read: ReadSchedule) -> None:
        """A `ScheduleObserver`."""

    def settle(self) -> None:
        """Both graphs are compiled, maybe by a cache that shows no schedule, and AOTAutograd keeps nothing yet."""


_observer: ContextVar[ScheduleObserver | None] = ContextVar("remat_schedule_observer", default=None)


@contextmanager
def observed_schedules(observer: ScheduleObserver | None) -> Iterator[None]:
    """Inside, and as a decorator, the observer sees the schedule of each graph that Inductor compiles.

    `KernelsInOrder` shows them. What the observer raises ends the compilation before code is generated.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


class KernelsInOrder(CustomSchedulerPass):
    """For `_post_fusion_custom_pass`: a fused kernel runs in the place of its first loop, or once it can.

    It writes over what dies in it (`_overwrite_what_dies`).

    Inductor instead runs whatever its last loop needs before that place, and so brings forward what a plan computes
    late. Graphs that `set_calls_apart` was not called for are left to Inductor (2.13, 2.14).
    """

    def uuid(self) -> str:
        """What it does, for Inductor's cache keys."""
        return "remat_pass: kernels run in the place of their first loop, or once they can, and write over what dies"

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """The kernels of one graph in their order, which the observer is shown."""
        from torch._inductor.graph import SubgraphLowering
        from torch._inductor.virtualized import V

        module: Any = V.graph.module
        ordered = nodes
        if _CALLS_APART in module.meta:
            ordered = _in_order(nodes)
            _overwrite_what_dies(ordered)
        if (observer := _observer.get()) and not isinstance(V.graph, SubgraphLowering):
            names = tuple(node.name for node in module.graph.find_nodes(op="placeholder"))
            observer(names, V.graph.is_backward, lambda owned: _schedule_of(ordered, owned))
        return ordered

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelsInOrder)

    def __hash__(self) -> int:
        return hash(KernelsInOrder)


def _in_order(nodes: list[Any]) -> list[Any]:
    """Always the one whose first loop stands earliest of those that can run; draws of the library as they stand."""
    writers = {name: k for k, node in enumerate(nodes) for name in node.get_buffer_names()}
    needs = [{writers.get(dep.name, k) for dep in node.unmet_dependencies} - {k} for k, node in enumerate(nodes)]
    draws = [k for k, node in enumerate(nodes) if any(map(_draws, node.get_nodes()))]
    for earlier, later in pairwise(draws):
        needs[later].add(earlier)
    readers: list[list[int]] = [[] for _ in nodes]
    for k, needed in enumerate(needs):
        for n in needed:
            readers[n].append(k)
    missing = [len(needed) for needed in needs]
    ready = [(node.min_order, k) for k, node in enumerate(nodes) if not missing[k]]
    heapify(ready)
    ordered = []
    while ready:
        _, k = heappop(ready)
        ordered.append(nodes[k])
        for reader in readers[k]:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (nodes[reader].min_order, reader))
    # Were they to need one another in a circle, which Inductor itself would run, none may be lost.
    return ordered if len(ordered) == len(nodes) else nodes


def _draws(part: Any) -> bool:
    """Whether a library call advances a random generator, so that the order of such calls tells what they draw."""
    op = getattr(part.node, "op_overload", None)
    draws = op in RNG_WRAPPERS.values() or torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())
    return bool(part.is_extern() and draws)


def _overwrite_what_dies(nodes: list[Any]) -> None:
    """Let elementwise kernels write over what only they still read, however many of their loops read it.

    Inductor does so if a single loop still reads it (`SchedulerNode.decide_inplace_update`, 2.13, 2.14). But where all
    loops of a kernel read the same element that one of them writes, it is loaded before anything is stored. So it is
    left with that one as its reader, which the kernel has among its parts either way. Nothing may be fused after that:
    Inductor does not see the other readers any more. What shares its memory under another name is left alone.
    """
    completed: set[str] = set()
    buffers = nodes[0].scheduler.name_to_buf.values() if nodes else ()
    shared = {name for b in buffers if b.get_aliases() for name in (b.get_name(), *b.get_aliases())}
    for node in nodes:
        parts = node.get_nodes()
        names = {part.get_name() for part in parts}
        if _is_one_elementwise_loop(node):
            free = sorted({dep.name for dep in node.read_writes.reads} - node.get_buffer_names() - shared)
            users = {
                (k, j): found
                for k, part in enumerate(parts)
                for j, name in enumerate(free)
                if (found := _users_without(names, part, node, name, completed))
            }
            left, right = (np.array([pair[side] for pair in users], dtype=np.int64) for side in (0, 1))
            for k, j in largest_matching(left, right):
                _source(parts[k], free[j]).users = users[k, j]
        completed |= names


def _users_without(names: set[str], part: Any, kernel: Any, name: str, completed: set[str]) -> list[Any]:
    """The users of what a loop reads but for others of its kernel, if it may write over it when these are done."""
    (buffer,) = part.get_outputs()
    stays_in_registers = names.issuperset(user.node.get_name() for user in buffer.users)
    source = _source(part, name)
    if stays_in_registers or not _is_overwritable(source, buffer):
        return []
    others = names - {part.get_name()}
    users = [user for user in source.users if user.node.get_name() not in others]
    return users if _is_last_reader(part, kernel, name, users, completed) else []


def _is_one_elementwise_loop(kernel: Any) -> bool:
    """Whether all loops of a kernel are one, which computes each element of each result once.

    Loops side by side, or inside a common outer one, are not: one of them would read what another has written.
    """
    from torch._inductor.scheduler import FusedSchedulerNode, SchedulerNode

    if type(kernel) is not FusedSchedulerNode:
        return False
    parts = kernel.get_nodes()
    are_loops = all(
        isinstance(part, SchedulerNode)
        and not (part.is_template() or part.is_reduction() or part.has_aliasing_or_mutation())
        for part in parts
    )
    return are_loops and len({part.group for part in parts}) == 1


@cache
def far_sums_apart() -> Any:
    """For `post_grad_custom_pre_pass`: a product is added to something in one call only if few calls lie between.

    As many as `set_calls_apart` says, but eight at most; graphs that it was not called for are left to Inductor.

    Inductor would turn product and sum into one `addmm` where the sum stands, and what is multiplied would be alive
    until then: of a tied embedding that is the gradient of the logits, all of backward long. With a dimension put
    between them the two do not match its pattern (`fx_passes/post_grad.py`, 2.13, 2.14).
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class FarSumsApart(CustomGraphPass):
        def uuid(self) -> str:
            return "remat_pass: products far from their sums stay where they are"

        def __call__(self, graph: fx.Graph) -> None:
            module: Any = graph.owning_module
            apart = module.meta.get(_CALLS_APART)
            if apart is not None:
                _hide_far_products(graph, min(apart, _MOST_CALLS_TO_A_SUM))

    return FarSumsApart()


def _hide_far_products(graph: fx.Graph, apart: int) -> None:
    """Put a dimension of size 1 between products and their sums if more than so many calls lie between them."""
    calls = 0
    calls_before: dict[fx.Node, int] = {}
    for node in list(graph.nodes):
        calls_before[node] = calls
        calls += _flop_formula(node.target) is not None
        far = [product for product in summed_products(node) if calls - calls_before[product] - 1 > apart]
        if far:
            _add_with_a_dimension_more(graph, node, far[0])


def summed_products(node: fx.Node) -> list[fx.Node]:
    """The products that Inductor may make one call of, an `addmm`, with the sum that a node is (2.13, 2.14)."""
    aten = torch.ops.aten
    if node.target is not aten.add.Tensor or not all(isinstance(x, fx.Node) for x in node.args):
        return []
    products: list[Any] = [x for x in node.args if isinstance(x, fx.Node) and x.target is aten.mm.default]
    return [x for x in products if len(x.users) == 1 and x.meta["val"].shape == node.meta["val"].shape]


def _add_with_a_dimension_more(graph: fx.Graph, total: fx.Node, product: fx.Node) -> None:
    aten = torch.ops.aten
    with graph.inserting_before(total):
        hidden = graph.call_function(aten.unsqueeze.default, (product, 0))
    hidden.meta["val"] = product.meta["val"].unsqueeze(0)
    total.replace_input_with(product, hidden)
    with graph.inserting_after(total):
        shown = graph.call_function(aten.squeeze.dim, (total, 0))
    shown.meta["val"] = total.meta["val"]
    total.replace_all_uses_with(shown, lambda user: user is not shown)
    total.meta["val"] = shown.meta["val"].unsqueeze(0)


@dataclass(frozen=True, slots=True)
class ScheduledBuffer:
    """A buffer that Inductor's generated code will allocate, or take as an argument and free."""

    name: str
    size_bytes: int
    freed_bytes: int
    """Differs from `size_bytes` for ops of several outputs: the op allocates them all, each part frees its own."""
    first_kernel: int
    last_kernel: int
    """Kernel after which it is freed; the number of kernels if it is returned."""
    is_input: bool


@dataclass(frozen=True, slots=True)
class InductorSchedule:
    """What Inductor will run for one graph, in order."""

    kernels: tuple[tuple[str, ...], ...]
    """Names of the graph's nodes that each kernel computes."""
    is_loop: tuple[bool, ...]
    """Whether Inductor generates loops for the kernel, and not from a template of a library's op."""
    is_call: tuple[bool, ...]
    """Whether the kernel is a call of a library or made from a template for one. Neither: a place to concatenate in, a
    part of what a call returned."""
    is_template: tuple[bool, ...]
    """Whether it is made from a template, which takes no memory but its buffers."""
    is_update: tuple[bool, ...]
    """Whether it is a call that writes its result over a tensor that it is given."""
    call_layouts: tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], ...]
    """Shape and strides of the tensors that each library call is given, in its order; empty for what is none."""
    moved_bytes: tuple[int, ...]
    """What the generated part of each kernel reads and writes, by Inductor's own count."""
    buffers: tuple[ScheduledBuffer, ...]
    overwritten: dict[str, str]
    """Buffer by the one it is written over: they share their memory."""
    result_strides: tuple[tuple[int, ...] | None, ...]
    """Of what the graph returns, in elements; None where it is no tensor or its strides are not known as numbers."""
    result_storages: tuple[tuple[str, int] | None, ...]
    """Buffer behind each result, which views share, and its bytes. None for inputs, and where it is no tensor or its
    size is no number."""


_EMPTY_SCHEDULE = InductorSchedule((), (), (), (), (), (), (), (), {}, (), ())


class _ScheduleIsKnown(Exception):
    """Ends a compilation once its schedule is known."""


class _ScheduleReader:
    """A scheduler pass that reads the fused and reordered kernels, and stops before code is generated."""

    def __init__(self, owned: Collection[str], before: Callable[[list[Any]], list[Any]] | None) -> None:
        self.owned = owned
        self.before = before
        """The pass that will run in this place."""
        self.schedule: InductorSchedule | None = None

    def uuid(self) -> None:
        """Never cache what is not finished."""

    def __call__(self, nodes: list[Any]) -> list[Any]:
        self.schedule = _schedule_of(self.before(nodes) if self.before else nodes, self.owned)
        raise _ScheduleIsKnown


def _schedule_of(nodes: list[Any], owned: Collection[str]) -> InductorSchedule:
    """Of the graph that Inductor lowers now; empty where there is nothing to run."""
    from torch._inductor import config
    from torch._inductor.virtualized import V

    if not nodes:
        return _EMPTY_SCHEDULE
    inputs, outputs = OrderedSet(V.graph.graph_inputs), OrderedSet(V.graph.get_output_names())
    schedule = _read_schedule(nodes, inputs, outputs, owned, config.reorder_for_peak_memory)
    results = V.graph.graph_outputs
    return replace(
        schedule, result_strides=tuple(map(_strides, results)), result_storages=tuple(map(_storage_behind, results))
    )


def _read_schedule(
    nodes: list[Any], inputs: Any, outputs: Any, owned: Collection[str], reorders: bool
) -> InductorSchedule:
    from torch._inductor import memory
    from torch._inductor.scheduler import SchedulerNode

    scheduler = nodes[0].scheduler
    fused = scheduler.name_to_fused_node
    if reorders:  # Inductor's own last pass, which would come next
        nodes = memory.reorder_for_peak_memory(nodes, scheduler.name_to_buf, fused, inputs, outputs)
    _, freeable = memory.prepare_planning_info(nodes, scheduler.name_to_buf, fused, inputs, outputs)
    is_generated = [all(isinstance(part, SchedulerNode) for part in node.get_nodes()) for node in nodes]
    kernel_of = _kernel_of(nodes)
    buffers = []
    for info in memory.compute_memory_timeline(nodes, freeable, outputs)[0]:
        name, last = info.buffer.get_name(), len(nodes) if info.end_step == -1 else info.end_step
        if name in freeable:
            size_bytes = _input_bytes(name, info.size_free)
            buffers.append(ScheduledBuffer(name, size_bytes, size_bytes, 0, kernel_of[last], True))
        elif not (is_generated[info.start_step] and last == info.start_step):  # else it lives in registers
            first = kernel_of[info.start_step]
            buffers.append(ScheduledBuffer(name, info.size_alloc, info.size_free, first, kernel_of[last], False))
    for name, last in _last_reads(nodes, inputs & OrderedSet(owned)).items():
        size_bytes = _input_bytes(name, 0)
        buffers.append(ScheduledBuffer(name, size_bytes, size_bytes, 0, kernel_of[last], True))
    members: list[list[int]] = [[] for _ in range(kernel_of[-1])]
    for k in range(len(nodes)):
        members[kernel_of[k]].append(k)
    buffers = _join_concatenations(buffers, scheduler)
    return InductorSchedule(
        kernels=tuple(tuple(name for k in of for name in _origins(nodes[k])) for of in members),
        is_loop=tuple(any(is_generated[k] and not nodes[k].is_template() for k in of) for of in members),
        is_call=tuple(
            any(_is_library_call(part) or part.is_template() for k in of for part in nodes[k].get_nodes())
            for of in members
        ),
        is_template=tuple(any(nodes[k].is_template() for k in of) for of in members),
        is_update=tuple(any(_is_update(part) for k in of for part in nodes[k].get_nodes()) for of in members),
        call_layouts=tuple(
            tuple(layout for k in of for part in nodes[k].get_nodes() for layout in _call_layouts(part))
            for of in members
        ),
        moved_bytes=tuple(
            sum(size_hint(nodes[k].get_read_write_buffers_sizes()) for k in of if is_generated[k]) for of in members
        ),
        buffers=tuple(buffers),
        overwritten=_find_overwritten(nodes, {b.name for b in buffers}),
        result_strides=(),
        result_storages=(),
    )


def _last_reads(nodes: list[Any], inputs: Any) -> dict[str, int]:
    """The last kernel that reads each of some graph inputs, by name."""
    return {dep.name: k for k, node in enumerate(nodes) for dep in node.read_writes.reads if dep.name in inputs}


def _input_bytes(name: str, otherwise: int) -> int:
    """Of the input itself (2.13, 2.14). Inductor counts what a kernel loads: heads that are read twice, twice.

    Where shapes are dynamic, and for what is no tensor, the other figure is returned.
    """
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    value = V.graph.graph_inputs[name]
    numbers = _numbers([value.get_layout().storage_size()]) if isinstance(value, ir.TensorBox) else None
    return otherwise if numbers is None else numbers[0] * value.get_dtype().itemsize


def _kernel_of(nodes: list[Any]) -> list[int]:
    """The generated function or library call that each scheduled kernel is part of, and one more for the end.

    In C++ all loops up to the next library call become one function: what they write is allocated before it and what
    they read is freed behind it. On a GPU each is one by itself.
    """
    kernel_of: list[int] = []
    joins = False
    """Whether a loop would be part of the latest function."""
    for node in nodes:
        device = node.get_device()
        in_cpp = device is not None and device.type == "cpu" and not (node.is_extern() or node.is_template())
        latest = kernel_of[-1] if kernel_of else -1
        kernel_of.append(latest if joins and in_cpp else latest + 1)
        joins = in_cpp
    return [*kernel_of, kernel_of[-1] + 1]


def _origins(node: Any) -> list[str]:
    return [origin.name for part in node.get_nodes() if part.node for origin in part.node.get_origins()]


def _is_library_call(part: Any) -> bool:
    """Concatenations are no-ops of the scheduler; parts of a call with several results are extern kernels to it."""
    from torch._inductor import ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    return isinstance(part, ExternKernelSchedulerNode) and not isinstance(part.node, ir.MultiOutput)


def _is_update(part: Any) -> bool:
    return _is_library_call(part) and bool(part.node.get_mutation_names())


def _call_layouts(part: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    if not _is_library_call(part):
        return []
    inputs = [x for given in part.node.inputs for x in (given if isinstance(given, (list, tuple)) else (given,))]
    known = ((_numbers(x.get_size()), _strides(x)) for x in inputs if x.has_tensor_output())
    return [(shape or (), strides or ()) for shape, strides in known]


def _strides(result: Any) -> tuple[int, ...] | None:
    from torch._inductor import ir

    if not isinstance(result, ir.IRNode) or not result.has_tensor_output():
        return None
    return _numbers(result.get_stride())


def _storage_behind(result: Any) -> tuple[str, int] | None:
    """`InductorSchedule.result_storages` of one result."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    buffer = V.graph.try_get_buffer(result.get_name()) if _strides(result) is not None else None
    if not isinstance(buffer, ir.Buffer):
        return None
    layout: Any = buffer.get_output_spec()
    while isinstance(layout, ir.NonOwningLayout):  # a piece of a concatenation
        buffer = V.graph.get_buffer(layout.view.get_name())
        layout = buffer.get_output_spec()
    numbers = _numbers([layout.storage_size()]) if isinstance(layout, ir.Layout) else None
    return None if numbers is None else (buffer.get_name(), numbers[0] * layout.dtype.itemsize)


def _numbers(sizes: Any) -> tuple[int, ...] | None:
    return tuple(int(s) for s in sizes) if all(isinstance(s, int) or s.is_number for s in sizes) else None


def _join_concatenations(buffers: list[ScheduledBuffer], scheduler: Any) -> list[ScheduledBuffer]:
    """Pieces of a concatenation are written straight into it: it is there from the first piece on."""
    from torch._inductor import ir

    whole_of = {}
    for b in buffers:
        node = None if b.is_input else scheduler.name_to_buf[b.name].node
        if node is not None and isinstance(node.get_output_spec(), ir.NonOwningLayout):
            whole_of[b.name] = node.get_output_spec().view.get_name()
    begin: dict[str, int] = {}
    for b in buffers:
        if b.name in whole_of:
            begin[whole_of[b.name]] = min(b.first_kernel, begin.get(whole_of[b.name], b.first_kernel))
    return [
        replace(b, first_kernel=min(b.first_kernel, begin.get(b.name, b.first_kernel)))
        for b in buffers
        if b.name not in whole_of
    ]


def _find_overwritten(nodes: list[Any], allocated: set[str]) -> dict[str, str]:
    """The rule of `SchedulerNode.decide_inplace_update`: one reader is left, and it reads where it writes."""
    from torch._inductor import config
    from torch._inductor.scheduler import SchedulerNode

    overwritten: dict[str, str] = {}
    completed: set[str] = set()
    for node in nodes if config.inplace_buffers else ():
        for part in node.get_nodes():
            for buffer in part.get_outputs() if isinstance(part, SchedulerNode) else ():
                if buffer.get_name() not in allocated or not buffer.node.should_allocate():
                    continue
                sources = {
                    read.name: _source(part, read.name)
                    for read in part.read_writes.reads
                    if read.name not in overwritten.values()
                }
                free = [
                    name
                    for name, source in sources.items()
                    if _is_overwritable(source, buffer) and _is_last_reader(part, node, name, source.users, completed)
                ]
                # The first one is taken, be it a value that the kernel would have kept in registers.
                if free and free[0] in allocated:
                    overwritten[buffer.get_name()] = free[0]
        completed.update(part.get_name() for part in node.get_nodes())
    return overwritten


def _source(part: Any, name: str) -> Any:
    """The buffer that a loop reads under a name, or the input that the caller gives away; else None."""
    scheduler = part.scheduler
    return scheduler.name_to_donated_buffer.get(name) or scheduler.name_to_buf.get(name)


def _is_overwritable(source: Any, buffer: Any) -> bool:
    """Whether a `_source`, if there is one, has memory of its own, as much as another buffer needs."""
    from torch._inductor import ir
    from torch._inductor.codegen.wrapper import can_match_buffer_size
    from torch._inductor.scheduler import NopKernelSchedulerNode

    not_its_own = (ir.NoneLayout, ir.MultiOutputLayout, ir.MutationLayoutSHOULDREMOVE, ir.CommBufferLayout)
    if source is None or isinstance(source.defining_op, NopKernelSchedulerNode):
        return False
    if isinstance(source.node.get_output_spec(), not_its_own):
        return False
    return bool(can_match_buffer_size(source.node, buffer.node))


def _is_last_reader(part: Any, kernel: Any, name: str, users: list[Any], completed: set[str]) -> bool:
    """Whether of the users of a buffer only a loop is left, and its kernel reads only the element that it writes."""
    readers = ((user, user.node.get_name()) for user in users)
    left = [user for user, reader in readers if reader not in completed and reader not in part.ancestors]
    if len(left) != 1 or not left[0].can_inplace or left[0].node is not part:
        return False
    accesses = {a for p in kernel.get_nodes() for a in p.read_writes.reads_and_writes() if a.name == name}
    return len(accesses) == 1


def schedule_with_inductor(
    module: fx.GraphModule,
    *,
    is_backward: bool,
    visible: int,
    strides: Mapping[str, tuple[int, ...]],
    donated: Collection[str] = (),
    owned: Collection[str] = (),
    config_patches: dict[str, Any],
) -> InductorSchedule:
    """Lower a forward or backward graph as Inductor will, up to its final order, without generating code (2.13, 2.14).

    Works on a copy of the graph. Autotuning is off: it would run kernels, and changes which kernel, not which buffer.

    Args:
        module: The graph.
        is_backward: Which of the two it is.
        visible: How many leading results the user sees; Inductor keeps their strides.
        strides: Those that placeholders really have, by name, where they may differ from the traced ones: AOTAutograd
            lowers backward for the layout that forward's lowering gave to what it saves.
        donated: Placeholders that nobody needs afterwards, so that kernels may write over them.
        owned: Placeholders of the user's inputs that are copies, free after their last use.
        config_patches: Inductor options.
    """
    from torch._inductor import config, graph
    from torch._inductor.compile_fx import compile_fx_inner

    copy = copy_graph_module(module)
    inputs = [_restrided(node.meta["val"], strides.get(node.name)) for node in copy.graph.find_nodes(op="placeholder")]
    reader = _ScheduleReader(owned, config_patches.get("_post_fusion_custom_pass", config._post_fusion_custom_pass))
    patches = {
        **config_patches,
        "_post_fusion_custom_pass": reader,
        "fx_graph_cache": False,
        "fx_graph_remote_cache": False,
        "max_autotune": False,
        "max_autotune_gemm": False,
        "max_autotune_pointwise": False,
        "triton.cudagraphs": False,
    }
    names = [node.name for node in copy.graph.find_nodes(op="placeholder")]
    given_away = [i for i, name in enumerate(names) if name in donated]
    # AOTAutograd settles this after partitioning, in its own metadata, where Inductor looks it up.
    with (
        config.patch(patches),
        configured_choices(),
        observed_schedules(None),
        mock.patch.object(graph, "get_donated_idxs", lambda: given_away),
    ):
        keeps_strides = config.bw_outputs_user_visible if is_backward else config.keep_output_stride
        _mark_visible(copy.graph.output_node(), visible if keeps_strides else 0)
        try:
            compile_fx_inner(copy, inputs, is_backward=is_backward)
        except Exception as error:
            if find_cause(error, _ScheduleIsKnown) is None:
                raise
    return reader.schedule or _EMPTY_SCHEDULE


def donated_buffers(forward: fx.GraphModule, backward: fx.GraphModule, visible: int) -> frozenset[str]:
    """Saved values that share no storage with what the user holds or gets: backward may write over them (2.13, 2.14).

    Args:
        forward: Its results are the user's, then what it saves.
        backward: Takes the saved values under their names.
        visible: How many results are the user's.
    """
    if not torch._functorch.config.donated_buffer:
        return frozenset()
    results: Any = forward.graph.output_node().args[0]
    returned: Any = backward.graph.output_node().args[0]
    held = (*forward.graph.find_nodes(op="placeholder"), *results[:visible], *returned)
    taken = {_storage_of(node) for node in held}
    saved = [node for node in results[visible:] if isinstance(node, fx.Node)]
    return frozenset(node.name for node in saved if _storage_of(node) not in taken)


def _storage_of(node: Any) -> StorageWeakRef | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return StorageWeakRef(value.untyped_storage()) if isinstance(value, torch.Tensor) else None


def _mark_visible(output: fx.Node, count: int) -> None:
    """As `compile_fx` does."""
    results: Any = output.args[0]
    output.meta["user_visible_output_idxs"] = [i for i in range(count) if isinstance(results[i], fx.Node)]


def has_other_strides(value: Any, strides: tuple[int, ...] | None) -> bool:
    """Whether a value is a tensor whose strides, in elements, are known to be others than these (2.13, 2.14)."""
    is_known = strides is not None and isinstance(value, torch.Tensor) and not free_symbols(value)
    return is_known and tuple(value.stride()) != strides


def lays_out_channels_last(module: fx.GraphModule) -> bool:
    """Whether Inductor lays out what the convolutions of a graph read and write channels last."""
    from torch._inductor.graph import GraphLowering

    return GraphLowering.decide_layout_opt(module, is_inference=False)


def _restrided(value: Any, strides: tuple[int, ...] | None) -> Any:
    with torch.no_grad():
        return value.as_strided(value.size(), strides) if has_other_strides(value, strides) else value


def find_cause(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """The exception of a kind that a compiler's exception wraps or followed upon (2.13, 2.14)."""
    while error is not None and not isinstance(error, kind):
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return error


def compile_op_by_op(module: fx.GraphModule, inputs: Any, partition: Any) -> Any:
    """AOTAutograd without decompositions; both graphs run as they are, freeing as they go (2.13, 2.14)."""
    return aot_autograd(
        fw_compiler=boxed_nop,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )(module, inputs)


def backward_of_compiled(result: Any) -> torch.autograd.graph.Node | None:
    """The node in autograd of the AOTAutograd function that computed the result (2.13, 2.14)."""
    node = result.grad_fn if isinstance(result, torch.Tensor) else None
    return node if node is not None and node.name() == "CompiledFunctionBackward" else None


def call_after_backward(callback: Callable[[], None]) -> None:
    """Call it when the pass of autograd that is running is done (2.13, 2.14)."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def is_capturing() -> bool:
    """Whether a CUDA graph is being recorded, which must not wait for the device (2.13, 2.14)."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@contextmanager
def compile_without_traces() -> Iterator[None]:
    """Compile what is not to be kept: no cache answers or remembers, and no size becomes dynamic by it (2.13, 2.14).

    Dynamo takes a size that differs from the last compilation of the same function for a dynamic one.
    """
    from torch._inductor import config as inductor_config

    uncached = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
    with (
        torch._dynamo.config.patch(automatic_dynamic_shapes=False),
        torch._functorch.config.patch(enable_autograd_cache=False, enable_remote_autograd_cache=False),
        inductor_config.patch(uncached),
    ):
        yield


UncapturableError = Unsupported
"""Dynamo cannot capture a function as one graph (2.13, 2.14)."""


def frame_id() -> int | None:
    """Which code object Dynamo is compiling; graph breaks and separate calls get different ones (2.13, 2.14)."""
    compile_id = CompileContext.current_compile_id()
    return None if compile_id is None else compile_id.frame_id


def inductor_cache_dir() -> str:
    """Where Inductor keeps its compiled graphs; created if missing (2.13, 2.14)."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def scatters_in_a_loop(node: fx.Node) -> bool:
    """Whether Inductor makes a loop of an `index_put` or its masked form, and no library call (`index_put_impl_`)."""
    from torch._inductor.utils import needs_fallback_due_to_atomic_add_limitations

    aten = torch.ops.aten
    is_masked = node.target is aten._unsafe_masked_index_put_accumulate.default
    indices: Any = node.args[2 if is_masked else 1]
    types = [index.meta["val"].dtype for index in indices if index is not None]
    adds = is_masked or bool(node.args[3] if len(node.args) > 3 else node.kwargs.get("accumulate"))
    # From 2.14 on a processor has loops for all it adds.
    may_fall_back = node.meta["val"].device.type != "cpu" or TorchVersion(torch.__version__) < "2.14"
    return not (
        torch.are_deterministic_algorithms_enabled()
        or any(of in (torch.bool, torch.uint8) for of in types)
        or (adds and may_fall_back and needs_fallback_due_to_atomic_add_limitations(node.meta["val"].dtype))
    )


def op_flops(node_target: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Floating-point operations of one op by torch's counter, or None if it has no formula (2.13, 2.14)."""
    formula = _flop_formula(node_target)
    return None if formula is None else size_hint(formula(*args, **kwargs, out_val=out))


_COUNTED_LIKE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Ops that torch's counter does not know (2.13, 2.14), and those of the same shapes and FLOPs that it does."""


def _flop_formula(target: Any) -> Callable[..., Any] | None:
    packet = getattr(target, "overloadpacket", target)
    return flop_registry.get(_COUNTED_LIKE.get(packet, packet))


# Measurement.


def profiler_is_running() -> bool:
    """Whether a profiler observes this thread; a second one cannot start (2.13, 2.14)."""
    return _profiler_enabled()


def memory_events(profile: torch.profiler.profile, device: torch.device) -> list[tuple[int, int, int]]:
    """(ns since the profile began, address, bytes; negative for a free) of the device, in time order (2.13, 2.14).

    The public tables of the profiler add the events up per operator, which loses the order a peak depends on.
    """
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    results = profile.profiler.kineto_results
    start_ns = results.trace_start_ns()
    events: list[tuple[int, int, int]] = []
    pending = list(reversed(results.experimental_event_tree()))
    while pending:
        event = pending.pop()
        pending.extend(reversed(event.children))
        fields = event.extra_fields
        if isinstance(fields, _ExtraFields_Allocation) and fields.device == device:
            events.append((event.start_time_ns - start_ns, fields.ptr, fields.alloc_size))
    return sorted(events, key=lambda event: event[0])
