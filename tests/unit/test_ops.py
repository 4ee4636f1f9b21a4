"""Which ops may run a second time."""

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from remat_pass.ops import why_not_recompute


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
