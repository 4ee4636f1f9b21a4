"""From a plan to a forward and a backward graph.

The joint graph is written out once more as the plan's straight line: the forward steps, then the backward steps, each
recomputed value as a node of its own that reads the copies the plan names.

    joint                      expanded                                  cut at saved = {a}
    a = f(x)                   a = f(x)                                  forward:  a = f(x); b = g(a); return b, a
    b = g(a)                   b = g(a)
    db = h(tangent, b)         b_recompute = g(a)                        backward: b_recompute = g(a)
                               db = h(tangent, b_recompute)                        db = h(tangent, b_recompute)

Torch's own extraction then cuts it at the saved values: it knows how symbols, hooks, opaque objects and output
descriptors travel. It keeps the order it is given, and may keep nodes that the plan does not run in a graph (impure
ones that could run there too); those are dropped. Random ops that run in both graphs get the same generator state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from remat_pass import _torch_compat
from remat_pass.joint_graph import JointGraph
from remat_pass.problem import CopyId, Kind, RematPlan, RematProblem, Run


@dataclass(frozen=True)
class Rewritten:
    """The two graphs, and which value each of their nodes claims to be (checked by `verify`)."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    forward_values: dict[str, int]
    backward_values: dict[str, int]

    @property
    def computed_in_forward(self) -> dict[str, int]:
        """Those of `forward_values` that are no inputs."""
        return _computed(self.forward, self.forward_values)

    @property
    def computed_in_backward(self) -> dict[str, int]:
        """Those of `backward_values` that are no inputs."""
        return _computed(self.backward, self.backward_values)

    def copy(self) -> "Rewritten":
        """With graphs of its own."""
        forward, backward = map(_torch_compat.copy_graph_module, (self.forward, self.backward))
        return replace(self, forward=forward, backward=backward)


def rewrite(joint: JointGraph, problem: RematProblem, plan: RematPlan) -> Rewritten:
    """Build both graphs. Their nodes stand in the order of the plan's steps; the joint graph is left as it was."""
    expanded, nodes = _expand(joint, problem, plan)
    saved = [nodes[v, 0] for v in plan.saved(problem) if problem.values[v].kind is not Kind.CONSTANT]
    forward, backward, symbol_count = _torch_compat.extract_forward_and_backward(
        expanded,
        saved,
        forward_count=joint.forward_count,
        static_inputs=[nodes[problem.index[n.name], 0] for n in joint.static_inputs],
    )
    names = {node.name: value for (value, _), node in nodes.items()}
    _drop_unplanned(forward, {nodes[s.value, s.copy].name for s in plan.forward})
    _drop_unplanned(backward, {nodes[s.value, s.copy].name for s in plan.backward})
    redrawn = _redrawn(problem, plan)
    drawn: tuple[list[int], list[int]] = ([], [])
    if redrawn:
        drawn = _draws(forward, names, redrawn), _draws(backward, names, redrawn)
        _take_forward_names(backward, {nodes[v, 1].name: nodes[v, 0].name for v in redrawn})
        forward, backward = _torch_compat.carry_rng_states(expanded, forward, backward, symbol_count)
    forward, backward = _torch_compat.thread_rng_from_higher_order_ops(
        _torch_compat.raise_parts(forward), _torch_compat.raise_parts(backward)
    )
    for module in (forward, backward):
        _torch_compat.set_calls_apart(module, problem.calls_apart, delays_loops=problem.delays_loops)
    claims = (_claims(m, names, d, joint) for m, d in ((forward, drawn[0]), (backward, drawn[1])))
    return Rewritten(forward, backward, *claims)


def _expand(joint: JointGraph, problem: RematProblem, plan: RematPlan) -> tuple[fx.GraphModule, dict[CopyId, fx.Node]]:
    """The joint graph as one straight line of the plan's steps, and the node of every copy in it."""
    graph = fx.Graph()
    nodes: dict[CopyId, fx.Node] = {}
    redrawn = set(_redrawn(problem, plan))
    for v, node in enumerate(joint.nodes):
        if node.op == "placeholder":
            nodes[v, 0] = graph.node_copy(node)
    for step in (*plan.forward, *plan.backward):
        node = joint.nodes[step.value]
        nodes[step.value, step.copy] = copy = graph.node_copy(node, _reader(joint, problem, step, nodes))
        _torch_compat.set_recompute_tag(copy, recompute=step.value in redrawn and step.copy == 0)
        if step.copy:
            _torch_compat.rename(copy, f"{node.name}_recompute" + (f"_{step.copy}" if step.copy > 1 else ""))
    _write_output(joint, problem, plan, graph, nodes)
    return _torch_compat.make_graph_module(joint.module, graph), nodes


def _reader(
    joint: JointGraph, problem: RematProblem, step: Run, nodes: dict[CopyId, fx.Node]
) -> Callable[[fx.Node], fx.Node]:
    """What stands for each node that the step reads."""
    reads = problem.values[step.value].reads
    by_node = {joint.nodes[v]: nodes[copy] for v, copy in zip(reads, step.reads, strict=True)}
    return by_node.__getitem__


def _write_output(
    joint: JointGraph, problem: RematProblem, plan: RematPlan, graph: fx.Graph, nodes: dict[CopyId, fx.Node]
) -> None:
    old = joint.module.graph.output_node()
    index = problem.index
    last_copy = {step.value: step.copy for step in plan.backward}

    def forward_output(entry: Any) -> Any:
        return nodes.get((index[entry.name], 0)) if isinstance(entry, fx.Node) else entry

    def gradient(entry: Any) -> Any:
        if not isinstance(entry, fx.Node):
            return entry
        return nodes[index[entry.name], last_copy.get(index[entry.name], 0)]

    outputs = [forward_output(e) for e in joint.forward_outputs] + [gradient(e) for e in joint.gradients]
    new = graph.output(tuple(outputs))
    new.meta = dict(old.meta)


def _redrawn(problem: RematProblem, plan: RematPlan) -> list[int]:
    """Random values that both programs run, in joint-graph order."""
    return [v for v in sorted(plan.recomputed()) if problem.values[v].kind is Kind.RANDOM]


def _take_forward_names(backward: fx.GraphModule, names: dict[str, str]) -> None:
    """`carry_rng_states` pairs ops by name; where one is saved, too, its placeholder makes way."""
    for node in backward.graph.nodes:
        if node.op == "placeholder" and node.name in names.values():
            _torch_compat.rename(node, name_beside_repetition(node.name))
        elif node.name in names:
            _torch_compat.rename(node, names[node.name])


def name_beside_repetition(name: str) -> str:
    """What backward takes a saved draw under that it also draws again."""
    return f"{name}_saved"


def _drop_unplanned(module: fx.GraphModule, planned: set[str]) -> None:
    for node in reversed(module.graph.nodes):
        if node.op in ("call_function", "get_attr") and node.name not in planned and not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _computed(module: fx.GraphModule, values: dict[str, int]) -> dict[str, int]:
    return {n.name: values[n.name] for n in module.graph.nodes if n.op == "call_function" and n.name in values}


def _draws(module: fx.GraphModule, names: dict[str, int], redrawn: list[int]) -> list[int]:
    """The random values that a graph computes and the other one, too, in its order."""
    nodes = (node for node in module.graph.nodes if node.op == "call_function")
    return [names[node.name] for node in nodes if names.get(node.name) in redrawn]


def _claims(module: fx.GraphModule, names: dict[str, int], drawn: list[int], joint: JointGraph) -> dict[str, int]:
    """Nodes keep their names, but for draws with a carried state: those are wrapped where they stood."""
    claims = {node.name: names[node.name] for node in module.graph.nodes if node.name in names}
    left = list(drawn)
    for node in module.graph.nodes:
        if node.target in _torch_compat.RNG_WRAPPERS.values():
            target = _torch_compat.wrapped_op(node)[0]
            value = next((v for v in left if joint.nodes[v].target == target), None)
            if value is not None:
                left.remove(value)
                claims[node.name] = value
    return claims
