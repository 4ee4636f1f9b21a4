"""What Inductor and Triton ask about the GPU, answered by a data sheet.

`torch.cuda.is_available()` stays False: with it torch would go on to talk to the driver.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._inductor import codecache, config, utils
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch.cuda.amp import common as amp
from torch.utils import _triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import ty_to_cpp
from triton.runtime import driver

from tests.support.gpu_rig import attention, hooks

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Card:
    """The fields of `torch.cuda.get_device_properties` that are read; sizes in bytes."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    warp_size: int = 32
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    shared_memory_per_block: int = 48 * _KIB


# NVIDIA H100 and A100 architecture white papers; CUDA C++ programming guide, "Compute capabilities".
CARDS = {
    90: Card("NVIDIA H100 80GB HBM3", 9, 0, 80 * _GIB, 132, 227 * _KIB, 228 * _KIB, 50 * _MIB),
    80: Card("NVIDIA A100-SXM4-80GB", 8, 0, 80 * _GIB, 108, 163 * _KIB, 164 * _KIB, 40 * _MIB),
}
"""By compute capability."""

_INDUCTOR = {
    "compile_threads": 1,  # worker processes know nothing of the fake device
    "fx_graph_cache": False,
    "fx_graph_remote_cache": False,
    "use_static_cuda_launcher": False,
    "shape_padding": False,  # times products on the device
    "joint_graph_constant_folding": False,  # makes constants on the device
}


@contextmanager
def fake_gpu(sm: int = 90, *, attention_kernels: bool = True) -> Iterator[None]:
    """Lower for a GPU.

    Args:
        sm: Its compute capability, a key of `CARDS`.
        attention_kernels: Whether it has kernels for attention; plain products otherwise.

    Raises:
        RuntimeError: torch was imported before this package.
    """
    hooks.require()
    device_interface.get_registered_device_interfaces()  # torch's own first
    with ExitStack() as stack:
        for patch in (*_patches_of_torch(CARDS[sm]), *_patches_of_compilers(CARDS[sm], sm), _tensor_float_32()):
            stack.enter_context(patch)
        if attention_kernels:
            stack.enter_context(attention.registered())
        _forget_device()
        try:
            yield
        finally:
            _forget_device()


@contextmanager
def _tensor_float_32() -> Iterator[None]:
    """Float32 products as most train with them; without tensor cores they would take seven times as long."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _patches_of_torch(card: Card) -> list[AbstractContextManager[Any]]:
    answers: dict[str, Any] = {
        "get_device_properties": lambda device=None: card,
        "get_device_capability": lambda device=None: (card.major, card.minor),
        "get_device_name": lambda device=None: card.name,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "_DeviceGuard": lambda index: nullcontext(),
        "default_generators": (_Generator(),),
    }
    return [
        *(mock.patch.object(torch.cuda, name, answer) for name, answer in answers.items()),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True),
        mock.patch.object(torch.version, "cuda", torch.version.cuda or "13.0"),
        mock.patch.object(amp, "amp_definitely_not_available", lambda: False),  # or autocast switches itself off
    ]


def _patches_of_compilers(card: Card, sm: int) -> list[AbstractContextManager[Any]]:
    interface = _interface(card)
    return [
        mock.patch.dict(device_interface.device_interfaces, {"cuda": interface, "cuda:0": interface}),
        mock.patch.object(driver, "_active", _TritonDriver(sm)),
        mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        config.patch(_INDUCTOR),
    ]


def _interface(card: Card) -> type[device_interface.CudaInterface]:
    class Interface(device_interface.CudaInterface):
        class Worker:
            set_device = staticmethod(lambda device: None)
            current_device = staticmethod(lambda: 0)
            get_device_properties = staticmethod(lambda device=None: card)

        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 1)
        current_device = staticmethod(lambda: 0)
        set_device = staticmethod(lambda device: None)
        synchronize = staticmethod(lambda device=None: None)
        get_raw_stream = staticmethod(lambda index: 0)
        get_device_properties = staticmethod(lambda device=None: card)
        get_compute_capability = staticmethod(lambda device=None: 10 * card.major + card.minor)
        is_bf16_supported = staticmethod(lambda including_emulation=False: True)
        is_triton_capable = staticmethod(lambda device=None: True)
        raise_if_triton_unavailable = staticmethod(lambda device=None: None)

    return Interface


class _Generator(torch.Generator):
    """A CUDA generator, as far as tracing and running code without kernels need one."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def clone_state(self) -> "_Generator":
        return _Generator()

    graphsafe_get_state = clone_state


class _TritonDriver:
    """The part of a Triton driver that compiling needs, not launching."""

    def __init__(self, sm: int) -> None:
        self._target = GPUTarget("cuda", sm, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> ModuleType:
        return torch.cuda

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    map_python_to_cpp_type: Callable[[str], str] = staticmethod(ty_to_cpp)


def _forget_device() -> None:
    """Clear the caches of everything that once asked about the device."""
    names = [name for module in (_triton, utils, codecache) for name in vars(module).values()]
    cached = [name for name in names if isinstance(name, functools._lru_cache_wrapper)]
    for function in (*cached, DeviceProperties.create, codecache.CacheBase.get_system):
        function.cache_clear()
