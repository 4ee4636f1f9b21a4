"""Compiling every generated Triton kernel for a card, with Triton's own compiler and the ptxas it brings."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime.hints import DeviceProperties

from tests.support.gpu_rig.fake_gpu import fake_gpu
from tests.support.gpu_rig.wrapper import TritonKernel, triton_kernels


@dataclass(frozen=True)
class CompiledKernel:
    """One Triton kernel for one card, in the first of its launch configurations."""

    name: str
    ptx: str
    cubin_bytes: int
    shared_bytes: int
    """Shared memory of one block."""


def compile_kernels(sources: Iterable[str], sm: int) -> list[CompiledKernel]:
    """Compile the kernels of generated wrappers; not within `fake_gpu`.

    Args:
        sources: Of the wrappers, generated for any card.
        sm: Compute capability to compile for.
    """
    with fake_gpu(sm):
        return [_compile(kernel) for source in sources for kernel in triton_kernels(source)]


def _compile(kernel: TritonKernel) -> CompiledKernel:
    launcher = getattr(PyCodeCache.load(kernel.source), kernel.name)
    launcher.device_props = DeviceProperties.create(torch.device("cuda", 0))
    binary = launcher._precompile_config(launcher.configs[0]).kernel
    return CompiledKernel(kernel.name, binary.asm["ptx"], len(binary.asm["cubin"]), binary.metadata.shared)
