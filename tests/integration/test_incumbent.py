"""Torch's own partition is a candidate unless it is wrong."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from remat_pass import _torch_compat
from remat_pass.analysis import analyze
from remat_pass.incumbent import Incumbent, torch_partition
from remat_pass.joint_graph import capture
from tests.support.models import floats


def incumbent_of(module: nn.Module, x: Tensor) -> Incumbent | None:
    """Torch's partition of the joint graph of one step, without lowering it."""
    found: list[Incumbent | None] = []

    def partition(joint_module: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **more: Any) -> Any:
        static = more.get("static_lifetime_input_indices")
        joint = capture(joint_module, forward_count=num_fwd_outputs, static_indices=static)
        joint, problem, _ = analyze(joint, fuses=True, cost_model="roofline")
        found.append(torch_partition(joint, problem, inputs))
        return _torch_compat.partition_like_torch(
            joint_module, inputs, forward_count=num_fwd_outputs, static_indices=static or []
        )

    def backend(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return _torch_compat.compile_op_by_op(graph, inputs, partition)

    torch.compile(module, backend=backend)(x).sum().backward()
    (incumbent,) = found
    return incumbent


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


def test_a_right_partition_is_a_candidate() -> None:
    incumbent = incumbent_of(Normalised(), floats(64, 16))
    assert incumbent is not None
    assert incumbent.keep


def test_a_wrong_partition_is_none() -> None:
    assert incumbent_of(Scaled(), floats(64, 16)) is None
