"""What differs on CUDA: draws are never repeated, nothing runs on a GPU that is not there, predictions err more."""

import pytest
import torch
from torch import fx
from torch._inductor import inductor_prims  # noqa: F401  registers the ops
from torch._subclasses.fake_tensor import FakeTensorMode

from remat_pass import _torch_compat
from remat_pass.analysis import analyze
from remat_pass.incumbent import torch_partition
from remat_pass.joint_graph import JointGraph, capture
from remat_pass.kernel_times import time_kernels
from remat_pass.ops import DRAWN_BY_SHAPE
from remat_pass.probe import probe
from remat_pass.problem import RematProblem

aten, prims = torch.ops.aten, torch.ops.prims

_MODE = FakeTensorMode()


def dropout(device: str, draw: str = "inductor_random") -> fx.GraphModule:
    """Joint graph of `sin(x) * mask`, all of it in a checkpointed region."""
    graph = fx.Graph()
    x, tangent = graph.placeholder("primals_1"), graph.placeholder("tangents_1")
    seeds = graph.call_function(prims.inductor_seeds.default, (1, torch.device(device)))
    seed = graph.call_function(prims.inductor_lookup_seed.default, (seeds, 0))
    if draw == "inductor_random":
        drawn = graph.call_function(prims.inductor_random.default, ([8, 8], seed, "rand"))
    else:
        drawn = graph.call_function(prims.inductor_randint.default, (0, 2, [8, 8], seed))
    mask = graph.call_function(aten.gt.Scalar, (drawn, 0.5))
    kept = graph.call_function(aten.mul.Tensor, (graph.call_function(aten.sin.default, (x,)), mask))
    gradient = graph.call_function(aten.mul.Tensor, (tangent, mask))
    gradient = graph.call_function(aten.mul.Tensor, (gradient, graph.call_function(aten.cos.default, (x,))))
    graph.output((kept, gradient))
    for node in (drawn, mask):
        _torch_compat.set_recompute_tag(node, recompute=True)
        node.meta["ac_graph_id"] = 0
    with _MODE:
        for node in graph.nodes:
            dtype = torch.bool if node is mask else torch.float32
            node.meta["val"] = torch.empty(8, 8, dtype=dtype, device=device)
        seeds.meta["val"] = torch.empty(1, dtype=torch.int64, device=device)
        seed.meta["val"] = torch.empty((), dtype=torch.int64, device=device)
    return fx.GraphModule({}, graph)


def analyzed(module: fx.GraphModule, *, fuses: bool = True) -> tuple[JointGraph, RematProblem]:
    joint = capture(module, forward_count=1, static_indices=[])
    return analyze(joint, fuses=fuses, cost_model="roofline")[:2]


def test_a_draw_on_cuda_is_not_repeated_although_it_is_checkpointed() -> None:
    _, problem = analyzed(dropout("cuda"))
    drawn, mask = (problem.values[problem.index[name]] for name in ("inductor_random_default", "gt_scalar"))
    assert drawn.cannot_recompute == DRAWN_BY_SHAPE
    assert mask.cannot_recompute is None
    assert drawn.wish is mask.wish is None  # else the draw would be saved for its mask, at four times the bytes


@pytest.mark.parametrize(
    ("device", "draw", "fuses"),
    [("cpu", "inductor_random", True), ("cuda", "inductor_randint", True), ("cuda", "inductor_random", False)],
)
def test_other_draws_are_repeated(device: str, draw: str, fuses: bool) -> None:
    _, problem = analyzed(dropout(device, draw), fuses=fuses)
    drawn, mask = (problem.values[problem.index[name]] for name in (f"{draw}_default", "gt_scalar"))
    assert drawn.cannot_recompute is None
    assert drawn.wish == mask.wish == "recompute"


@pytest.mark.parametrize(("device", "is_right"), [("cuda", False), ("cpu", True)])
def test_a_partition_of_torchs_that_repeats_a_draw_is_wrong_on_cuda(device: str, is_right: bool) -> None:
    module = dropout(device)
    joint, problem = analyzed(module)
    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    assert torch_partition(joint, problem, inputs).is_wrong != is_right


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_op_of_a_gpu_that_is_not_there_is_not_probed() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    product = graph.call_function(aten.mm.default, (a, a))
    filled = graph.call_function(aten.ones.default, ([8],), {"device": torch.device("cuda")})
    with _MODE:
        a.meta["val"] = product.meta["val"] = torch.empty(8, 8, device="cuda")
        filled.meta["val"] = torch.empty(8, device="cuda")
    assert probe(product) is None
    assert probe(filled) is None
    assert time_kernels([product, filled]) == {}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_stated_error_is_larger_for_convolutions(device: str) -> None:
    graph = fx.Graph()
    x, weight, tangent = (graph.placeholder(name) for name in ("primals_1", "primals_2", "tangents_1"))
    settings = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    product = graph.call_function(aten.convolution.default, (x, weight, None, *settings))
    gradient = graph.call_function(aten.mul.Tensor, (tangent, product))
    graph.output((product, gradient, None))
    with _MODE:
        for node in graph.nodes:
            node.meta["val"] = torch.empty(1, 1, 1, 1, device=device)
    _, problem = analyzed(fx.GraphModule({}, graph))
    assert problem.margin_permille == 20
