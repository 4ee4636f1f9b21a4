"""Torch's own partition is a candidate unless it is wrong."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from remat_pass import _torch_compat, partition, reports
from remat_pass.analysis import analyze
from remat_pass.choice import Judgement
from remat_pass.costs import DeviceRates
from remat_pass.errors import RematWarning
from remat_pass.incumbent import Incumbent, torch_partition
from remat_pass.joint_graph import JointGraph, capture
from remat_pass.lower import RematPartitioner
from remat_pass.options import resolve_options
from remat_pass.problem import RematProblem
from remat_pass.report import RematReport
from remat_pass.rewrite import Rewritten
from tests.support.models import floats


def partitioned(module: nn.Module, x: Tensor) -> tuple[Incumbent | None, RematProblem]:
    """Torch's partition of the joint graph of one step, None if it is wrong, without lowering it, and the problem."""
    found: list[tuple[Incumbent | None, RematProblem]] = []

    def partition(joint_module: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **more: Any) -> Any:
        static = more.get("static_lifetime_input_indices")
        joint = capture(joint_module, forward_count=num_fwd_outputs, static_indices=static)
        joint, problem, _ = analyze(joint, fuses=True, cost_model="roofline")
        incumbent = torch_partition(joint, problem, inputs)
        found.append((None if incumbent.is_wrong else incumbent, problem))
        return _torch_compat.partition_like_torch(
            joint_module, inputs, forward_count=num_fwd_outputs, static_indices=static or []
        )

    def backend(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return _torch_compat.compile_op_by_op(graph, inputs, partition)

    torch.compile(module, backend=backend)(x).sum().backward()
    (only,) = found
    return only


def incumbent_of(module: nn.Module, x: Tensor) -> Incumbent | None:
    """Torch's partition alone."""
    return partitioned(module, x)[0]


class Normalised(nn.Module):
    """BatchNorm overwrites its statistics, but what backward runs again does not read them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.linear(x)))


class Scaled(nn.Module):
    """Torch 2.13 runs the multiplication by the old scale again, after the scale has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("scale", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.linear(x).sin() * self.scale.clone()
        self.scale.mul_(2)
        return scaled.exp()


class Drawn(nn.Module):
    """Torch repeats the draw, with the state that it had, from probabilities that have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("chances", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.some, x, use_reentrant=False)
        self.chances.mul_(2)
        return y.exp()

    def some(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, torch.multinomial(self.chances, 4)].sin()


def test_a_draw_that_is_repeated_from_new_contents_is_wrong() -> None:
    assert incumbent_of(Drawn(), floats(64, 16)) is None


def test_a_right_partition_is_a_candidate() -> None:
    incumbent = incumbent_of(Normalised(), floats(64, 16))
    assert incumbent is not None
    assert incumbent.keep


def test_a_wrong_partition_is_none() -> None:
    assert incumbent_of(Scaled(), floats(64, 16)) is None


class Mlp(nn.Module):
    """Activations of 64 KiB each that dwarf the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sin()
        return x


class Checkpointed(nn.Module):
    """A linear layer and something else in a checkpoint."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.function(self.linear(x)), x, use_reentrant=False).sin()


def attend(x: Tensor) -> Tensor:
    y = x.unflatten(-1, (2, 8)).transpose(0, 1).unsqueeze(0)
    return F.scaled_dot_product_attention(y, y, y)


def draw(x: Tensor) -> Tensor:
    return x[:, torch.multinomial(torch.ones(16), 8)]


@pytest.mark.parametrize(
    ("function", "op", "count"),
    # Torch 2.14 takes what it calls random for impure, and merges no such ops.
    [
        (attend, "flash_attention_for_cpu", 1 if TorchVersion(torch.__version__) < "2.14" else 2),
        (draw, "multinomial", 2),
    ],
)
def test_equal_attention_is_one_value_and_equal_draws_are_two(
    function: Callable[[Tensor], Tensor], op: str, count: int
) -> None:
    incumbent, problem = partitioned(Checkpointed(lambda x: function(x) * function(x)), floats(64, 16))
    assert incumbent is not None
    found = [i for i, v in enumerate(problem.values) if v.op.endswith(f"{op}.default")]
    assert len(found) == count
    runs = [run.value for run in incumbent.plan(problem).forward]
    assert [runs.count(i) for i in found] == [1] * count


@pytest.mark.parametrize(("function", "op"), [(attend, "flash_attention_for_cpu"), (F.dropout, "native_dropout")])
def test_what_torch_wraps_to_carry_a_generator_state_is_known_by_what_it_runs(
    function: Callable[[Tensor], Tensor], op: str
) -> None:
    """Torch 2.13 takes attention for random, too."""
    incumbent, problem = partitioned(Checkpointed(function), floats(64, 16))
    assert incumbent is not None
    (wrapped,) = (i for i, v in enumerate(problem.values) if v.op.endswith(f"{op}.default"))
    graphs = incumbent.graphs
    for graph, values in ((graphs.forward, graphs.forward_values), (graphs.backward, graphs.backward_values)):
        wrappers = [n for n in graph.graph.nodes if n.target in _torch_compat.RNG_WRAPPERS.values()]
        assert wrappers or function is attend
        assert all(values[node.name] == wrapped for node in wrappers)
    plan = incumbent.plan(problem)
    assert [[run.value for run in program].count(wrapped) for program in (plan.forward, plan.backward)] == [1, 1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that Inductor is asked about torch's own partition."""
    calls: list[object] = []
    judge_graphs = partition.judge_graphs

    def counted(*args: Any, **more: Any) -> Judgement:
        calls.append(args)
        return judge_graphs(*args, **more)

    monkeypatch.setattr(partition, "judge_graphs", counted)
    return calls


class Planned(Exception):
    """There is a plan; what Inductor would make of it is not wanted."""


class StoppingPartitioner(RematPartitioner):
    def __call__(self, *args: Any, **more: Any) -> Any:
        super().__call__(*args, **more)
        raise Planned("there is a plan")


class Tied(nn.Module):
    """The gradient of the weight is a sum of two products, the first of them computed long before the second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(floats(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.gelu(torch.sin(x @ self.weight)) @ self.weight)


def test_the_plan_of_the_incumbent_is_what_its_graphs_run_with_a_product_where_it_is_added() -> None:
    incumbent, problem = partitioned(Tied(), floats(32, 16).requires_grad_())
    assert incumbent
    plan = incumbent.plan(problem)
    for runs, graph in ((plan.forward, incumbent.graphs.forward), (plan.backward, incumbent.graphs.backward)):
        computed = [n.name for n in graph.graph.nodes if n.op == "call_function" and n.name in problem.index]
        assert sorted(problem.values[run.value].name for run in runs) == sorted(computed)
    assert [problem.values[v].name for v in plan.recomputed()] == ["sin"]
    assert incumbent.keep == set(plan.saved(problem))
    order = [run.value for run in plan.backward]
    total = problem.index["add"]
    assert order[order.index(total) - 1] in problem.values[total].reads


def planned_for_inductor(module: nn.Module | None = None, x: Tensor | None = None, **options: Any) -> RematReport:
    """The report of one step that is planned for Inductor, before it generates any code; by default of an `Mlp`."""
    resolved = resolve_options(options)
    patches = {
        **partition.inductor_patches(resolved, checkpoints=False),
        "custom_partitioner_fn": StoppingPartitioner(resolved),
    }

    def backend(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return _torch_compat.compile_with_inductor(graph, inputs, patches)

    torch._dynamo.reset()
    with pytest.raises(Exception, match="there is a plan"):
        torch.compile(module or Mlp(), backend=backend)(floats(512, 32) if x is None else x)
    return reports()[-1]


def test_a_draw_of_a_draw_can_be_planned() -> None:
    """What torch wraps reads a part of another wrapper, which has a new name."""
    module = Checkpointed(lambda x: x * torch.poisson(torch.poisson(x.sigmoid())))
    report = planned_for_inductor(module, floats(64, 16))
    drawn = [d for d in report.decisions if d.op == "aten.poisson.default"]
    assert [d.action for d in drawn] == ["recomputed", "recomputed"]


def test_inductor_is_not_asked_about_the_incumbent_for_a_budget_far_below_it(asked: list[object]) -> None:
    free = planned_for_inductor()
    assert (len(asked), free.unconstrained_is_estimated) == (1, False)
    report = planned_for_inductor(memory_budget=free.unconstrained_peak_bytes * 6 // 10)
    assert (len(asked), report.unconstrained_is_estimated) == (1, True)
    assert abs(report.unconstrained_peak_bytes / free.unconstrained_peak_bytes - 1) < 0.01
    assert 0 < report.predicted_slowdown < 1
    assert re.search(r"unconstrained peak .* \(estimated\)", str(report))


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_inductor_is_asked_for_a_share_of_the_incumbents_peak_and_for_bytes_near_it(
    share: float, asked: list[object]
) -> None:
    free = planned_for_inductor()
    budget = share if share < 0.8 else int(share * free.unconstrained_peak_bytes)
    report = planned_for_inductor(memory_budget=budget)
    assert (len(asked), report.unconstrained_is_estimated) == (2, False)
    assert report.unconstrained_peak_bytes == free.unconstrained_peak_bytes
    assert "unconstrained peak" in str(report) and "(estimated)" not in str(report)


def test_a_budget_that_no_plan_fits_is_a_share_of_what_inductor_says(asked: list[object]) -> None:
    free = planned_for_inductor()
    with pytest.warns(RematWarning) as caught:
        report = planned_for_inductor(memory_budget=1, on_infeasible="warn")
    assert (len(asked), report.unconstrained_is_estimated) == (2, False)
    assert report.unconstrained_peak_bytes == free.unconstrained_peak_bytes
    (enough,) = (re.search(r"bytes or (0\.\d+),", str(w.message)) for w in caught if w.category is RematWarning)
    assert enough and int(float(enough[1]) * free.unconstrained_peak_bytes) >= report.least_peak_bytes


class Attention(nn.Module):
    """Torch saves three parts of one product of 3 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 3 * 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part.unflatten(-1, (4, 64)).transpose(1, 2) for part in self.linear(x).split(256, -1))
        return F.scaled_dot_product_attention(*parts).sum()


def test_views_of_one_storage_that_are_saved_are_judged_as_that_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[Rewritten, Judgement]] = []
    judge_graphs = partition.judge_graphs

    def kept(joint: JointGraph, graphs: Rewritten, **more: Any) -> Judgement:
        judged.append((graphs, judge_graphs(joint, graphs, **more)))
        return judged[-1][1]

    monkeypatch.setattr(partition, "judge_graphs", kept)
    planned_for_inductor(Attention(), floats(4, 256, 256))
    ((graphs, judgement),) = judged
    taken = graphs.backward.graph.find_nodes(op="placeholder")
    assert sum(node.meta["val"].shape == (4, 4, 256, 64) for node in taken) == 4
    # Three parts and the result, the gradients of these, and little besides; 15 MiB if each part were the whole.
    assert judgement.peak_bytes < 10 * 2**20


def test_what_forward_leaves_to_backward_takes_time_by_its_storages(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_ns: list[int] = []
    judge_graphs = partition.judge_graphs

    def twice(joint: JointGraph, graphs: Rewritten, *, rates: DeviceRates, **more: Any) -> Judgement:
        for held_ns in (0.0, 1.0):
            judgement = judge_graphs(joint, graphs.copy(), rates=replace(rates, held_ns_per_byte=held_ns), **more)
            steps_ns.append(judgement.step_ns)
        return judgement

    monkeypatch.setattr(partition, "judge_graphs", twice)
    planned_for_inductor(Attention(), floats(4, 256, 256))
    without, held = steps_ns
    product, result, log_sums = 3 * 2**20, 2**20, 4 * 4 * 256 * 4
    assert held - without == product + result + log_sums
