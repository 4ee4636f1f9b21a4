"""A wrong rewrite is caught, whatever is wrong about it.

A right rewrite of a model with dropout, BatchNorm and recomputation is tampered with in one place at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import remat_pass
from remat_pass import _torch_compat
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.rewrite import Rewritten, rewrite
from remat_pass.schedule import decide, plan_of
from remat_pass.verify import verify
from tests.support.models import floats, seeded
from tests.support.plans import plan_with_copies
from tests.support.training import Stages, forced, train

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        old = self.count.clone()
        self.count += 1
        h = F.dropout(self.first(x).sin() + old, 0.5)
        h = F.dropout(self.norm(self.second(h)).exp(), 0.25)
        return h.cos(), h.sum()


class Drawing(nn.Module):
    """A draw that is one value, not a part of an op."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand_like(x)
        h = self.first(x * mask).sin() * mask
        return self.second(h).exp() * mask


def stages_of(planner: Callable[[RematProblem], RematPlan], model: type[nn.Module] = Net) -> Stages:
    torch._dynamo.reset()
    module = seeded(model)()
    run, stages = forced(module, planner)
    train(module, run, (floats(32, 16),))
    (made,) = stages
    return made


@pytest.fixture(scope="module")
def right() -> Stages:
    """Everything recomputed, dropout included."""
    return stages_of(lambda problem: plan_of(problem, decide(problem, ())))


@pytest.fixture(scope="module")
def saving() -> Stages:
    """Nothing recomputed."""
    return stages_of(lambda problem: plan_of(problem, decide(problem, range(len(problem.values)))))


@pytest.fixture(scope="module")
def copying() -> Stages:
    """Everything recomputed, several times."""
    return stages_of(lambda problem: plan_with_copies(problem, frozenset(), 1))


@pytest.fixture(scope="module")
def repeating() -> Stages:
    """Everything saved, forgotten after its first readers, and run again, the draw included."""

    def planner(problem: RematProblem) -> RematPlan:
        everything = frozenset(range(len(problem.values)))
        plan = plan_of(problem, decide(problem, everything, dict.fromkeys(problem.runs_in_backward, everything)))
        (drawn,) = problem.drawn
        assert drawn in plan.saved(problem) and drawn in plan.recomputed()
        return plan

    return stages_of(planner, Drawing)


@dataclass
class Tampered:
    """A rewrite that may be changed, and the stages it must agree with."""

    stages: Stages
    forward: fx.GraphModule
    backward: fx.GraphModule

    def check(self) -> None:
        rewritten = dataclasses.replace(self.stages.rewritten, forward=self.forward, backward=self.backward)
        verify(self.stages.joint, self.stages.problem, self.stages.plan, rewritten)

    def is_caught(self, match: str | None = None) -> None:
        with pytest.raises(remat_pass.VerificationError, match=match):
            self.check()


def tamper(stages: Stages) -> Tampered:
    copies = (_torch_compat.copy_graph_module(m) for m in (stages.rewritten.forward, stages.rewritten.backward))
    return Tampered(stages, *copies)


def computed(module: fx.GraphModule, target: object = None) -> list[fx.Node]:
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    return nodes if target is None else [n for n in nodes if n.target is target or target in n.args[:2]]


@pytest.mark.parametrize("plan", ["right", "saving", "copying", "repeating"])
def test_a_right_rewrite_passes(plan: str, request: pytest.FixtureRequest) -> None:
    tamper(request.getfixturevalue(plan)).check()


@pytest.mark.parametrize("plan", ["right", "saving", "copying", "repeating"])
def test_every_argument_matters(plan: str, request: pytest.FixtureRequest) -> None:
    """Each node argument of each node in turn, replaced by the nearest earlier node that is another value."""
    stages = request.getfixturevalue(plan)
    for program in ("forward", "backward"):
        original = getattr(tamper(stages), program)
        for position, argument in arguments(original):
            tampered = tamper(stages)
            module = getattr(tampered, program)
            nodes = list(module.graph.nodes)
            node = nodes[position]
            old = node.all_input_nodes[argument]
            for new in reversed(nodes[:position]):
                if new is not old and not same_value(stages, program, old, new):
                    node.replace_input_with(old, new)
                    tampered.is_caught()
                    break


def arguments(module: fx.GraphModule) -> Iterator[tuple[int, int]]:
    for position, node in enumerate(module.graph.nodes):
        for argument in range(len(node.all_input_nodes)):
            yield position, argument


def same_value(stages: Stages, program: str, a: fx.Node, b: fx.Node) -> bool:
    """Two copies of one value may stand for each other; so may the states that only wrap it."""
    claims = getattr(stages.rewritten, f"{program}_values")
    if a.name not in claims or b.name not in claims:
        return False
    return claims[a.name] == claims[b.name]


@pytest.mark.parametrize("plan", ["right", "saving", "copying", "repeating"])
def test_every_literal_matters(plan: str, request: pytest.FixtureRequest) -> None:
    stages = request.getfixturevalue(plan)
    for program in ("forward", "backward"):
        for position, node in enumerate(getattr(tamper(stages), program).graph.nodes):
            for k, literal in enumerate(node.args if node.op == "call_function" else ()):
                if isinstance(literal, (bool, int, float)):
                    tampered = tamper(stages)
                    changed = list(getattr(tampered, program).graph.nodes)[position]
                    changed.update_arg(k, not literal if isinstance(literal, bool) else literal + 1)
                    tampered.is_caught()


@pytest.mark.parametrize("plan", ["right", "saving", "copying", "repeating"])
def test_every_op_matters(plan: str, request: pytest.FixtureRequest) -> None:
    stages = request.getfixturevalue(plan)
    for program in ("forward", "backward"):
        for position, node in enumerate(getattr(tamper(stages), program).graph.nodes):
            if node.op == "call_function":
                tampered = tamper(stages)
                list(getattr(tampered, program).graph.nodes)[position].target = aten.atan2.default
                tampered.is_caught()


@pytest.mark.parametrize("plan", ["right", "saving", "copying", "repeating"])
def test_every_output_matters(plan: str, request: pytest.FixtureRequest) -> None:
    """Any two outputs exchanged, and any one left out."""
    stages = request.getfixturevalue(plan)
    for program in ("forward", "backward"):
        count = len(getattr(tamper(stages), program).graph.output_node().args[0])
        for i in range(count):
            for j in range(i):
                tampered = tamper(stages)
                output = getattr(tampered, program).graph.output_node()
                outputs = list(output.args[0])
                if outputs[i] is not outputs[j]:
                    outputs[i], outputs[j] = outputs[j], outputs[i]
                    output.args = (tuple(outputs),)
                    tampered.is_caught()
        for i in range(count):
            tampered = tamper(stages)
            output = getattr(tampered, program).graph.output_node()
            if output.args[0][i] is not None:
                output.args = ((*output.args[0][:i], None, *output.args[0][i + 1 :]),)
                tampered.is_caught()


def test_gradients_are_not_summed_into_a_missing_one(right: Stages) -> None:
    tampered = tamper(right)
    output = tampered.backward.graph.output_node()
    some = next(o for o in output.args[0] if o is not None)
    output.args = (tuple(some if o is None else o for o in output.args[0]),)
    tampered.is_caught()


def test_two_independent_draws_exchanged() -> None:
    """Here nothing but the generator orders the two draws."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x * self.weight, 0.5).sin() * F.dropout(x + self.weight, 0.5).exp()

    module = seeded(Two)()
    run, made = forced(module, lambda problem: plan_of(problem, decide(problem, range(len(problem.values)))))
    train(module, run, (floats(32, 16),))
    tampered = tamper(made[0])
    tampered.check()
    first, second = computed(tampered.forward, aten.native_dropout.default)
    first.prepend(second.args[0])
    first.prepend(second)
    tampered.forward.graph.lint()
    tampered.is_caught("draws random numbers in another order")


def test_an_effect_is_not_dropped(right: Stages) -> None:
    tampered = tamper(right)
    writes = computed(tampered.forward, aten.copy_.default)
    assert len(writes) == 4  # two statistics, two counters
    tampered.forward.graph.erase_node(writes[0])
    tampered.is_caught("has an effect and runs 0 times")


def test_an_effect_is_not_repeated(right: Stages) -> None:
    tampered = tamper(right)
    write = computed(tampered.forward, aten.copy_.default)[0]
    with tampered.forward.graph.inserting_after(write):
        again = tampered.forward.graph.node_copy(write)
    again.name = write.name + "_again"
    tampered.is_caught()


def test_an_input_is_not_overwritten_before_it_is_read(right: Stages) -> None:
    tampered = tamper(right)
    graph = tampered.forward.graph
    clone = computed(tampered.forward, aten.clone.default)[0]
    write = next(w for w in computed(tampered.forward, aten.copy_.default) if w.args[0] is clone.args[0])
    new_contents = write.args[1]
    clone.prepend(new_contents)
    clone.prepend(write)
    graph.lint()
    tampered.is_caught("overwritten")


def test_draws_are_replayed_with_their_own_states(right: Stages) -> None:
    tampered = tamper(right)
    first, second = computed(tampered.backward, _torch_compat.RNG_WRAPPERS["replay"])
    first.args, second.args = (second.args[0], *first.args[1:]), (first.args[0], *second.args[1:])
    tampered.is_caught()


def test_draws_are_not_made_anew(right: Stages) -> None:
    tampered = tamper(right)
    for replay in computed(tampered.backward, _torch_compat.RNG_WRAPPERS["replay"]):
        replay.target, replay.args = replay.args[1], tuple(replay.args[2:])
    tampered.is_caught()


def test_every_claim_is_checked(right: Stages) -> None:
    """The rewrite says which value each node is; a false claim is no way out."""
    for program in ("forward_values", "backward_values"):
        claims = getattr(right.rewritten, program)
        for name in claims:
            for other in {claims[name] - 1, claims[name] + 1} & set(range(len(right.problem.values))):
                lying = dataclasses.replace(right.rewritten, **{program: {**claims, name: other}})
                node = next(n for n in getattr(right.rewritten, program[:-7]).graph.nodes if n.name == name)
                if node.op == "call_function":
                    with pytest.raises(remat_pass.VerificationError):
                        verify(right.joint, right.problem, right.plan, lying)


def test_a_draw_that_is_repeated_is_claimed_in_both_graphs(right: Stages) -> None:
    """Each draw is wrapped, under a new name; Inductor's schedules are read by the names."""
    graphs, values = right.rewritten, right.problem.values
    draws = [value.name for value in values if value.op == "aten.native_dropout.default"]
    for module, computed_values in (
        (graphs.forward, graphs.computed_in_forward),
        (graphs.backward, graphs.computed_in_backward),
    ):
        wrappers = [n.name for n in module.graph.nodes if n.target in _torch_compat.RNG_WRAPPERS.values()]
        assert sorted(values[computed_values[name]].name for name in wrappers) == draws != []


def test_the_message_says_whose_bug_it_is(right: Stages) -> None:
    tampered = tamper(right)
    computed(tampered.backward, aten.cos.default)[0].target = aten.sin.default
    tampered.is_caught(r"cos.*This is a bug of remat_pass, not of your model")


def test_plans_are_checked_too(right: Stages) -> None:
    plan = dataclasses.replace(right.plan, backward=right.plan.backward[:-1])
    with pytest.raises(remat_pass.VerificationError, match="the plan does not compute the joint graph"):
        verify(right.joint, right.problem, plan, right.rewritten)


def test_rewriting_leaves_the_joint_graph_alone(saving: Stages) -> None:
    before = saving.joint.module.code
    first, second = (rewrite(saving.joint, saving.problem, saving.plan) for _ in range(2))
    assert saving.joint.module.code == before
    assert isinstance(first, Rewritten)
    assert first.backward.code == second.backward.code
