"""What a generated wrapper holds and does while it runs on fake tensors.

Memory: every storage on the GPU that an op returns is counted, once, from then until the last tensor on it dies. What
was there before is given to `ignore`. That is the contract of the budget; scratch of library kernels is unknown and 0.

Work: a launch is a Triton kernel or an op that neither takes a view nor merely allocates.

    bytes of a launch  = buffers read + buffers written, each buffer once, a buffer that is updated twice
    FLOPs of a launch  = torch's formula for matmul, convolution and attention; 0 for Triton kernels
    ns of a launch     = max(FLOPs / FLOPs per s, bytes / bandwidth) + launch

A kernel is charged every buffer it is handed in whole, though it may read a part: the table of an embedding, or one
third of a joint query-key-value product.
"""

import re
import weakref
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from remat_pass import _torch_compat
from remat_pass.costs import DeviceRates, products_per_s

_RNG_WRAPPER = _torch_compat.RNG_WRAPPERS["graphsafe"]


@dataclass(frozen=True)
class Work:
    """Of one launch, or of many added up. Times in nanoseconds."""

    triton_kernels: int = 0
    extern_kernels: int = 0
    flops: int = 0
    moved_bytes: int = 0
    modelled_ns: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Meter(TorchDispatchMode):
    """Counts while it is active; launches of Triton kernels are handed to it by `kernel`."""

    supports_higher_order_operators = True

    def __init__(self, rates: DeviceRates) -> None:
        super().__init__()
        self.rates = rates
        self.live_bytes = 0
        self.peak_bytes = 0
        self.work = Work()
        self._known: set[int] = set()

    def ignore(self, tensors: Any) -> None:
        """Never count the storages of tensors that were there before; the caller keeps them alive."""
        self._known.update(_storage(t)._cdata for t in pytree.tree_leaves(tensors) if isinstance(t, Tensor))

    def begin_phase(self) -> None:
        """Start a new peak from what is alive now, and new work."""
        self.peak_bytes = self.live_bytes
        self.work = Work()

    def kernel(self, name: str, source: str) -> "_TritonStub":
        """What is launched in place of a Triton kernel."""
        return _TritonStub(self, name, source)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(result):
            self._count(tensor)
        op, operands = (args[0], args[1:]) if func is _RNG_WRAPPER else (func, args)
        if _is_launched(op):
            kwargs = {name: value for name, value in kwargs.items() if name != "rng_state"}
            self.work += self._extern_work(op, operands, kwargs, result)
        return result

    def _count(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.device.type != "cuda":
            return
        storage = _storage(value)
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size_bytes

    def _extern_work(self, op: Any, args: Any, kwargs: Any, result: Any) -> Work:
        written = _written_arguments(op, args, kwargs)
        read = [t for t in pytree.tree_leaves((args, kwargs)) if not any(t is w for w in written)]
        moved_bytes = _distinct_bytes(read) + _distinct_bytes([result, written])
        # A product into a buffer does not read it, an update in place does.
        moved_bytes += 0 if "out" in kwargs else _distinct_bytes(written)
        flops = _torch_compat.op_flops(op, args, kwargs, result) or 0
        return Work(0, 1, flops, moved_bytes, self._duration(flops, moved_bytes, result))

    def _duration(self, flops: int, moved_bytes: int, result: Any) -> int:
        dtypes = [t.dtype for t in pytree.tree_leaves(result) if isinstance(t, Tensor)] or [torch.float32]
        peak_flops = products_per_s(self.rates, dtypes[0], convolves=False)
        seconds = max(flops / peak_flops, moved_bytes / self.rates.bandwidth_bytes_per_s)
        return round(seconds * 1e9) + self.rates.launch_ns

    def triton_work(self, read: list[Tensor], written: list[Tensor]) -> Work:
        """Of one launch of a Triton kernel."""
        moved_bytes = _distinct_bytes(read) + _distinct_bytes(written)
        return Work(1, 0, 0, moved_bytes, self._duration(0, moved_bytes, written))


class _TritonStub:
    """Launches nothing; Inductor names a kernel's parameters `in_ptr`, `out_ptr` and `in_out_ptr`."""

    def __init__(self, meter: Meter, name: str, source: str) -> None:
        signature = re.search(rf"^def {re.escape(name)}\(([^)]*)\)|^def triton_\w*\(([^)]*)\)", source, re.MULTILINE)
        if signature is None:
            raise ValueError(f"Triton kernel {name} has no function of its name")
        self._parameters = [p.split(":")[0].strip() for p in (signature[1] or signature[2]).split(",")]
        self._meter = meter

    def run(self, *arguments: Any, stream: int) -> None:
        tensors = [(p, a) for p, a in zip(self._parameters, arguments, strict=False) if isinstance(a, Tensor)]
        read = [tensor for name, tensor in tensors if not name.startswith("out_ptr")]
        written = [tensor for name, tensor in tensors if not name.startswith("in_ptr")]
        self._meter.work += self._meter.triton_work(read, written)


def _is_launched(op: Any) -> bool:
    if not isinstance(op, torch._ops.OpOverload):
        return True
    if op.namespace == "prim":  # questions about a fake tensor, such as its device
        return False
    return not op.is_view and not op.overloadpacket.__name__.startswith(("empty", "new_empty"))


def _written_arguments(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if not isinstance(op, torch._ops.OpOverload):
        return []
    schema = op._schema.arguments
    given = [*zip(args, schema, strict=False), *((kwargs[a.name], a) for a in schema if a.name in kwargs)]
    return [v for v, a in given if isinstance(v, Tensor) and a.alias_info is not None and a.alias_info.is_write]


def _distinct_bytes(tensors: Any) -> int:
    """Bytes of the elements, one tensor per storage: the largest."""
    largest: dict[int, int] = {}
    for tensor in pytree.tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            storage = _storage(tensor)
            size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
            largest[storage._cdata] = max(size, largest.get(storage._cdata, 0))
    return sum(largest.values())


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
