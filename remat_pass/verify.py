"""Every rewrite is checked: the two graphs compute exactly what the joint graph computes.

The proof is by induction over both graphs. The rewrite claims for each node which value of the joint graph it is.
A placeholder is what its position says it is. A computed node is what it claims if it applies the same op, to nodes
that are what *they* claim to be, with the same other arguments. Then all its values are equal, and so are the outputs.
Claims come from the rewrite, but no claim is believed.

Induction assumes that ops are functions. Where they are not, it is checked that
- a random op runs once, or twice with its generator state carried from forward to backward (`_check_draws`),
- random ops of forward keep their order, so that the same seed draws the same numbers (`_check_draws`),
- an op with effects runs exactly once, in the program it belongs to (`_check_effects`),
- what reads an input before the joint graph overwrites it does so here too (`_check_overwrites`).

Linear in the size of the graphs, and always on: a failure is a bug of this package, never of the user's model.
"""

import operator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import fx

from remat_pass import _torch_compat
from remat_pass.errors import VerificationError
from remat_pass.joint_graph import JointGraph
from remat_pass.plan_file import check_plan
from remat_pass.problem import Kind, RematPlan, RematProblem
from remat_pass.rewrite import Rewritten, name_beside_repetition


@dataclass(frozen=True, slots=True)
class _Is:
    """What a node is proved to be: a value of the joint graph, or what the wrapper of a random op returns for one."""

    value: int
    state: bool = False
    """The generator state that the value was drawn with."""
    pair: bool = False
    """Both, state first."""


@dataclass(frozen=True)
class _Proof:
    """The induction so far, over one graph."""

    joint: JointGraph
    claimed: dict[str, int]
    generators: dict[str, int]
    """Random value by the number of the generator that both graphs draw it from (CUDA)."""
    proved: dict[fx.Node, _Is] = field(default_factory=dict)
    carried: set[int] = field(default_factory=set)
    """Random values whose generator state is handed from forward to backward."""


def verify(joint: JointGraph, problem: RematProblem, plan: RematPlan, rewritten: Rewritten) -> None:
    """Raise unless both graphs compute the joint graph's outputs.

    Raises:
        VerificationError: Names the node, the op and what differs.
    """
    fault = check_plan(problem, plan)
    if fault:
        _fail(f"the plan does not compute the joint graph: {fault}")
    generators: dict[str, int] = {}
    forward = _Proof(joint, rewritten.forward_values, generators)
    for node in rewritten.forward.graph.nodes:
        if node.op == "placeholder":
            _prove_input(node, problem, forward, None)
        elif node.op != "output":
            _prove_computed(node, forward)
    handed_over = _check_forward_outputs(rewritten.forward, problem, forward)
    backward = _Proof(joint, rewritten.backward_values, generators)
    for node in rewritten.backward.graph.nodes:
        if node.op == "placeholder":
            _prove_input(node, problem, backward, handed_over)
        elif node.op != "output":
            _prove_computed(node, backward)
    _check_gradients(rewritten.backward, backward)
    _check_effects(problem, forward, backward)
    _check_overwrites(problem, forward)
    _check_overwrites(problem, backward)
    _check_draws(problem, forward, backward)


def _fail(fault: str) -> NoReturn:
    raise VerificationError(
        f"{fault}. This is a bug of remat_pass, not of your model; no wrong gradient was computed. Please report it."
    )


@dataclass(frozen=True)
class _HandedOver:
    """What forward returns for backward, in order: (name, what it is)."""

    symbols: list[tuple[str, _Is]]
    tensors: list[tuple[str, _Is]]


def _prove_input(node: fx.Node, problem: RematProblem, proof: _Proof, handed_over: _HandedOver | None) -> None:
    """An argument of forward is one of the joint graph; one of backward is a tangent or is handed over, in order."""
    if node.name.startswith(("fwd_rng_state", "bwd_rng_state")):
        return
    value = problem.index.get(node.name)
    if value is not None and problem.values[value].op == "placeholder":
        of_backward = problem.values[value].needs_tangent
        if of_backward == (handed_over is not None):
            proof.proved[node] = _Is(value)
            return
    if handed_over is None:
        _fail(f"forward takes an argument {node.name} that the joint graph does not have")
    queue = handed_over.symbols if _torch_compat.is_symbol(node) else handed_over.tensors
    if not queue:
        _fail(f"backward takes {node.name}, which forward does not hand over")
    name, identity = queue.pop(0)
    expected = (name, name_beside_repetition(problem.values[identity.value].name))
    if node.name not in expected and not identity.state:
        _fail(f"backward takes {node.name} where forward hands over {name}")
    proof.proved[node] = identity


def _prove_computed(node: fx.Node, proof: _Proof) -> None:
    wrappers = _torch_compat.RNG_WRAPPERS
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and proof.proved[source].pair:
        if node.target is not operator.getitem or node.args[1] not in (0, 1):
            _fail(f"node {node.format_node()} is neither the state nor the value of a random op")
        proof.proved[node] = _Is(proof.proved[source].value, state=bool(node.args[1] == 0))
        return
    target, args, kwargs, drawn_from = _torch_compat.wrapped_op(node)
    generators = [a for a in args if isinstance(a, fx.Node) and a.op == "placeholder" and a not in proof.proved]
    args = [a for a in args if a not in generators]
    value = _find(node, target, args, kwargs, drawn_from, proof)
    if node.target in wrappers.values():
        proof.carried.add(value)
    if isinstance(drawn_from, fx.Node) and drawn_from not in proof.proved:
        number = drawn_from.name.rpartition("_")[2]
        if proof.generators.setdefault(number, value) != value:
            _fail(f"node {node.name} draws from the generator of another value")
    proof.proved[node] = _Is(value, pair=node.target is wrappers["save"])


def _find(node: fx.Node, target: Any, args: list[Any], kwargs: dict[str, Any], drawn_from: Any, proof: _Proof) -> int:
    """The value that the node is, by its claim, or, renamed by torch, by what it computes."""
    if node.name in proof.claimed:
        claims = [proof.claimed[node.name]]
    else:
        taken = {identity.value for identity in proof.proved.values()}
        claims = [i for i, n in enumerate(proof.joint.nodes) if n.target == target and i not in taken]
    mine = _resolve((args, kwargs), lambda n: _as_argument(n, proof))
    for claim in claims:
        original = proof.joint.nodes[claim]
        theirs = _resolve((list(original.args), dict(original.kwargs)), proof.joint.position.__getitem__)
        if original.target == target and mine == theirs:
            if isinstance(drawn_from, fx.Node) and proof.proved.get(drawn_from, _Is(claim)).value != claim:
                _fail(f"node {node.name} draws with the state of another value")
            return claim
    wanted = proof.joint.nodes[claims[0]] if claims else "no value of the joint graph"
    _fail(f"node {node.format_node()} does not compute {wanted if isinstance(wanted, str) else wanted.format_node()}")


def _as_argument(node: fx.Node, proof: _Proof) -> object:
    """The value that a node stands for; a state stands for no value of the joint graph."""
    identity = proof.proved.get(node)
    return node.name if identity is None or identity.state or identity.pair else identity.value


def _resolve(arguments: Any, identify: Any) -> Any:
    """Arguments with every node replaced by what it is, marked so that it equals no literal."""
    return fx.node.map_aggregate(arguments, lambda a: ("node", identify(a)) if isinstance(a, fx.Node) else a)


def _outputs(module: fx.GraphModule) -> list[Any]:
    returned: Any = module.graph.output_node().args[0]
    return list(returned)


def _check_forward_outputs(module: fx.GraphModule, problem: RematProblem, proof: _Proof) -> _HandedOver:
    joint = proof.joint
    outputs = _outputs(module)
    for position, wanted in enumerate(joint.forward_outputs):
        # What a mutation in backward writes is returned by forward as the input that will be mutated.
        if isinstance(wanted, fx.Node) and not problem.values[joint.position[wanted]].needs_tangent:
            _check_output("forward", position, outputs[position], wanted, proof)
    saved = [n for n in outputs[joint.forward_count :] if isinstance(n, fx.Node)]
    pairs = [(n.name, proof.proved[n]) for n in saved]
    symbols = [p for p, n in zip(pairs, saved, strict=True) if _torch_compat.is_symbol(n)]
    return _HandedOver(symbols, [p for p, n in zip(pairs, saved, strict=True) if not _torch_compat.is_symbol(n)])


def _check_gradients(module: fx.GraphModule, proof: _Proof) -> None:
    outputs = _outputs(module)
    if len(outputs) != len(proof.joint.gradients):
        _fail(f"backward returns {len(outputs)} values, the joint graph {len(proof.joint.gradients)} gradients")
    for position, wanted in enumerate(proof.joint.gradients):
        if isinstance(wanted, fx.Node):
            _check_output("backward", position, outputs[position], wanted, proof)
        elif outputs[position] is not wanted:
            _fail(f"gradient {position} of backward is {outputs[position]}, not {wanted}")


def _check_output(program: str, position: int, got: Any, wanted: fx.Node, proof: _Proof) -> None:
    if not isinstance(got, fx.Node) or proof.proved[got] != _Is(proof.joint.position[wanted]):
        _fail(f"output {position} of {program} is {got}, not {wanted}")


def _computed(proof: _Proof) -> list[int]:
    """Values the graph runs, in order."""
    return [i.value for n, i in proof.proved.items() if n.op == "call_function" and not i.state and not _is_part(n)]


def _is_part(node: fx.Node) -> bool:
    """The part of a wrapper that stands for the random op itself is counted at the wrapper."""
    source = node.args[0] if node.args else None
    return isinstance(source, fx.Node) and source.target is _torch_compat.RNG_WRAPPERS["save"]


def _check_effects(problem: RematProblem, forward: _Proof, backward: _Proof) -> None:
    counts = {True: _count(_computed(backward)), False: _count(_computed(forward))}
    for i, value in enumerate(problem.values):
        if value.has_effect:
            here, there = counts[value.needs_tangent].get(i, 0), counts[not value.needs_tangent].get(i, 0)
            if (here, there) != (1, 0):
                _fail(f"{value.name} ({value.op}) has an effect and runs {here + there} times")


def _check_overwrites(problem: RematProblem, proof: _Proof) -> None:
    """Readers that come before a write in the joint graph come before it here."""
    bases = _overwritten_bases(problem, proof.joint)
    written_by: dict[int, int] = {}
    for i in _computed(proof):
        late = [b for read in problem.values[i].reads for b in bases[read] if i < written_by.get(b, -1)]
        if late:
            _fail(f"{problem.values[i].name} reads {problem.values[late[0]].name} after it has been overwritten")
        for argument in _torch_compat.written_arguments(proof.joint.nodes[i]):
            written_by.update(dict.fromkeys(bases[proof.joint.position[argument]], i))


def _overwritten_bases(problem: RematProblem, joint: JointGraph) -> list[tuple[int, ...]]:
    """For every value the overwritten inputs whose memory it shares."""
    bases: list[tuple[int, ...]] = []
    for i, value in enumerate(problem.values):
        own = (i,) if value.name in joint.overwritten else ()
        bases.append(own + tuple(b for held in value.holds for b in bases[held]))
    return bases


def _check_draws(problem: RematProblem, forward: _Proof, backward: _Proof) -> None:
    draws = [i for i in _computed(forward) if problem.values[i].kind is Kind.RANDOM]
    if draws != sorted(draws):
        _fail("forward draws random numbers in another order than the joint graph")
    again = [i for i in _computed(backward) if problem.values[i].kind is Kind.RANDOM]
    first = [i for i in again if problem.values[i].needs_tangent]
    if first != sorted(first):
        _fail("backward draws random numbers in another order than the joint graph")
    for i in again:
        twice = i in draws
        if again.count(i) > 1 or (twice and not (i in forward.carried and i in backward.carried)):
            _fail(f"{problem.values[i].name} ({problem.values[i].op}) is drawn again without its generator state")


def _count(values: list[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
