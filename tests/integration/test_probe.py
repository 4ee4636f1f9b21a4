"""Scratch of kernels, in the layout that they are really given."""

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from remat_pass import measure_peak_bytes
from remat_pass.probe import probe

SHAPE, WEIGHT = (4, 16, 32, 32), (16, 16, 3, 3)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.aten.convolution.default(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def convolution() -> fx.Node:
    module = make_fx(convolve, tracing_mode="fake")(torch.empty(SHAPE), torch.empty(WEIGHT))
    return module.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)[0]


def peak(x: Tensor, weight: Tensor) -> int:
    return measure_peak_bytes(lambda: convolve(x, weight))


def test_an_op_is_run_on_data_laid_out_as_the_lowering_has_it() -> None:
    x, weight = torch.ones(SHAPE), torch.ones(WEIGHT)
    last = x.contiguous(memory_format=torch.channels_last)
    node, strides = convolution(), tuple(last.stride())
    traced, real = probe(node), probe(node, layouts=[(SHAPE, strides)])
    assert traced is not None and real is not None
    assert (traced, real) == (peak(x, weight), peak(last, weight))
    assert real < traced  # nothing of it has to be packed


def test_a_layout_of_another_shape_is_passed_over() -> None:
    node = convolution()
    assert probe(node, layouts=[((4, 16, 1024), (1, 1, 1))]) == probe(node)
