"""Running a generated wrapper with kernels of ours.

The source is executed as it is. Then the names that it binds to compiled code of torch, which wants memory on the GPU,
are bound to the same operations on fake tensors, or on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor.async_compile import AsyncCompile


def load(
    source: str, make_kernel: Callable[[str, str], Any], operations: Mapping[str, Any]
) -> Callable[[list[Any]], Sequence[Any]]:
    """The wrapper's function from a list of arguments, which it empties, to results.

    Args:
        source: Of the wrapper.
        make_kernel: From name and source of a Triton kernel to what is launched in its place.
        operations: `ON_FAKE_TENSORS` or `ON_THE_CPU`.
    """
    with (
        mock.patch.object(AsyncCompile, "triton", lambda self, name, text, device_str="cuda": make_kernel(name, text)),
        mock.patch.object(AsyncCompile, "wait", lambda self, scope: None),
    ):
        scope: dict[str, Any] = {"__name__": "generated"}
        exec(compile(source, "<generated wrapper>", "exec"), scope)
    scope.update(operations)
    call: Callable[[list[Any]], Sequence[Any]] = scope["call"]
    return call


@dataclass(frozen=True)
class TritonKernel:
    """Name and source of one Triton kernel."""

    name: str
    source: str


def triton_kernels(source: str) -> list[TritonKernel]:
    """The Triton kernels that a wrapper defines, in order."""
    kernels: list[TritonKernel] = []
    load(source, lambda name, text: kernels.append(TritonKernel(name, text)), {})
    return kernels


def _empty_on(device: str) -> Callable[..., Tensor]:
    return lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device)


def _reinterpret_tensor(tensor: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)


_ANYWHERE: dict[str, Any] = {
    "reinterpret_tensor": _reinterpret_tensor,
    "copy_if_misaligned": lambda tensor: tensor,
    "assert_alignment": lambda *_: None,
}
ON_FAKE_TENSORS: dict[str, Any] = {**_ANYWHERE, "empty_strided_cuda": _empty_on("cuda")}
ON_THE_CPU: dict[str, Any] = {**_ANYWHERE, "empty_strided_cuda": _empty_on("cpu")}
