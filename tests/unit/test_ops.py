"""Which ops may run a second time, and how reductions run."""

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from remat_pass.ops import reduces_rows, why_not_recompute


def attention_with(change: Callable[..., torch.Tensor]) -> fx.Node:
    """A call of attention with a function in it, as in a joint graph."""
    graph = fx.Graph()
    query = graph.placeholder("query")
    places = [torch.zeros((), dtype=torch.int64) for _ in range(4)]
    root = torch.nn.Module()
    root.add_module("change", make_fx(change)(torch.ones(()), *places))
    body = graph.get_attr("change")
    call = graph.call_function(torch.ops.higher_order.flex_attention, (query, query, query, body, (), 1.0, {}))
    graph.output(call)
    fx.GraphModule(root, graph)
    return call


@pytest.mark.parametrize(
    ("change", "repeats"),
    [
        (lambda score, b, h, i, j: score - (i - j).abs(), True),
        (lambda score, b, h, i, j: score + torch.rand_like(score), False),
    ],
)
def test_attention_runs_again_if_all_ops_of_its_functions_may(
    change: Callable[..., torch.Tensor], repeats: bool
) -> None:
    reason = why_not_recompute(attention_with(change), is_checkpointed=False)
    assert (reason is None) == repeats


def test_reductions_that_leave_the_last_dimension_are_those_of_rows() -> None:
    def run(x: torch.Tensor) -> list[torch.Tensor]:
        total = x.sum()
        pooled = torch.ops.aten.avg_pool2d.default(x, [2, 2])
        return [x.sum([0, 1]), x.mean(-1), x.amax([0, -1]), x.sum([]), total.sum(0), pooled]

    module = make_fx(run)(torch.ones(2, 4, 4))
    assert [node.name for node in module.graph.nodes if reduces_rows(node)] == ["sum_2"]
