"""Training a module once, uncompiled and compiled, and comparing everything a user could observe, bit by bit."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import remat_pass
from remat_pass import _torch_compat
from remat_pass.analysis import analyze
from remat_pass.joint_graph import JointGraph, capture
from remat_pass.problem import RematPlan, RematProblem
from remat_pass.rewrite import Rewritten, rewrite
from remat_pass.verify import verify

Planner = Callable[[RematProblem], RematPlan]


def compiled(module: nn.Module, **options: object) -> nn.Module:
    """The module under our backend, op by op."""
    return torch.compile(module, backend="remat", options={"lowering": "eager", **options})


@dataclass(frozen=True)
class Outcome:
    """All that one training step leaves behind, by name."""

    tensors: dict[str, Tensor | None]

    def differences(self, other: "Outcome") -> list[str]:
        """Names of what is not equal bit by bit."""
        names = dict.fromkeys((*self.tensors, *other.tensors))
        return [n for n in names if not _same(self.tensors.get(n), other.tensors.get(n))]


def train(module: nn.Module, run: Callable[..., Any], inputs: tuple[Any, ...], *, seed: int = 0) -> Outcome:
    """One forward and backward of `run`, which is `module` or a compiled form of it.

    Every differentiable output gets a tangent of its own. Gradients are of parameters and inputs; buffers, inputs
    after the step and the state of the generator are compared too.
    """
    inputs = pytree.tree_map(_fresh, inputs)
    module.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    outputs = run(*inputs)
    loss(outputs).backward()
    return outcome(module, inputs, outputs)


def loss(outputs: Any) -> Tensor:
    """A scalar in which every element of every differentiable output counts differently."""
    total = torch.zeros(())
    for i, output in enumerate(_tensors(outputs)):
        if output.requires_grad:
            weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
            total = total + (output * weights.to(output.dtype)).sum().to(total.dtype)
    return total


def outcome(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Outcome:
    tensors: dict[str, Tensor | None] = {"generator": torch.get_rng_state()}
    for i, output in enumerate(_tensors(outputs)):
        tensors[f"output {i}"] = output.detach()
    for i, value in enumerate(_tensors(inputs)):
        tensors[f"input {i}"] = value.detach()
        tensors[f"gradient of input {i}"] = value.grad if value.is_leaf else None
    for name, parameter in module.named_parameters():
        tensors[f"gradient of {name}"] = parameter.grad
    for name, buffer in module.named_buffers():
        tensors[f"buffer {name}"] = buffer
    return Outcome({name: None if t is None else _dense(t).clone() for name, t in tensors.items()})


def assert_same(expected: Outcome, got: Outcome, what: str, *, exact: bool = True) -> None:
    """Every tensor is equal bit by bit, or up to rounding."""
    if exact:
        differences = expected.differences(got)
        assert not differences, f"{what}: not bitwise those of the uncompiled module: {', '.join(differences)}"
    else:
        torch.testing.assert_close(got.tensors, expected.tensors, msg=lambda text: f"{what}: {text}")


def budgets(report: remat_pass.RematReport, fractions: Iterable[float] = (0.0, 0.5)) -> list[int]:
    """Feasible budgets in bytes between the least and the unconstrained peak, largest first."""
    low, high = report.least_peak_bytes, max(report.least_peak_bytes, report.unconstrained_peak_bytes)
    return sorted({low + int(f * (high - low)) for f in fractions}, reverse=True)


# Forcing a plan: the same path as `remat_pass.partition`, with any planner in place of ours.


@dataclass(frozen=True)
class Stages:
    """What the path made of one joint graph."""

    joint: JointGraph
    problem: RematProblem
    plan: RematPlan
    rewritten: Rewritten


class ForcedPartitioner:
    """Rewrites every joint graph by the plan of `planner`, and keeps all stages."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.stages: list[Stages] = []

    def __call__(
        self,
        module: fx.GraphModule,
        inputs: Any,
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Any = None,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        joint = capture(module, forward_count=num_fwd_outputs, static_indices=static_lifetime_input_indices)
        joint, problem, _unprobed = analyze(joint, fuses=False, cost_model="roofline")
        plan = self.planner(problem)
        rewritten = rewrite(joint, problem, plan)
        verify(joint, problem, plan, rewritten)
        self.stages.append(Stages(joint, problem, plan, rewritten))
        return rewritten.forward, rewritten.backward


def forced(module: nn.Module, planner: Planner) -> tuple[nn.Module, list[Stages]]:
    """The module compiled op by op with plans of `planner`, and the stages of each graph, filled as it compiles."""
    partitioner = ForcedPartitioner(planner)

    def backend(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return _torch_compat.compile_op_by_op(graph, inputs, partitioner)

    return torch.compile(module, backend=backend), partitioner.stages


def random_keep(problem: RematProblem, seed: int, share: float) -> frozenset[int]:
    """Each value with probability `share`."""
    chance = random.Random(seed)
    return frozenset(i for i in range(len(problem.values)) if chance.random() < share)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def _fresh(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) if not a.is_floating_point() else _equal_bits(a, b)


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0)) and torch.equal(a.isnan(), b.isnan())
