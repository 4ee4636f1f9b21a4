"""Running single ops on dummy data: the scratch memory of kernels.

Kernels allocate memory that no value of a graph shows: a convolution repacks its operands, attention keeps a block per
thread, a product of two dtypes converts one of them. The peak contains it, so it is measured: once per op, shapes,
strides, dtypes and thread count, outside fake mode, on data of the right form. Nothing of the process changes: the
generator state is put back and no gradient is recorded.

Not run: what may have effects or hidden state (custom, collective and higher-order ops), and what trusts a buffer
that another kernel filled in a form of its own, which dummy data would crash (backward of an LSTM). Their scratch is
taken to be 0, as is that of an op that refuses dummy data (a Cholesky factor of a constant matrix) or belongs to a GPU
that is not there (a graph may be lowered for another machine), and the caller is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from remat_pass import _torch_compat

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides, in elements."""

_FILL = 0.5
"""Every floating-point element: a probability, an argument of log and sqrt, no denormal."""

_T = TypeVar("_T")

_TRUSTED_ARGUMENTS = frozenset(
    ["workspace", "reserve", "reserveSpace", "reservedSpace", "dropout_state", "weight_buf", "LU_pivots", "pivots"]
)
"""Arguments that kernels of torch 2.13 and 2.14 follow without a check: handles, addresses, row numbers from 1."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A strided tensor without its data."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class DummyRun:
    """An op, and what its dummy data is made of."""

    op: Any
    forms: tuple[Any, ...]
    """Of all arguments, flattened: a `_Form` for every tensor, other arguments as they are."""
    spec: Any

    @property
    def key(self) -> str:
        """The same for runs that take the same memory and time on one machine."""
        return f"{self.op} {self.spec} {' '.join(map(str, self.forms))}, {_torch_compat.speed_settings()}"

    def measure(self, instrument: Callable[[Callable[[], object]], _T]) -> _T | None:
        """What the instrument says of the run, which it may repeat; None if the op refuses dummy data."""
        devices = sorted({f.device.index or 0 for f in self.forms if isinstance(f, _Form) and f.device.type == "cuda"})
        with _torch_compat.no_fake_tensors(), torch.no_grad(), torch.random.fork_rng(devices=devices):
            try:
                args, kwargs = pytree.tree_unflatten(map(_dummy, self.forms), self.spec)
                return instrument(lambda: self.op(*args, **kwargs))
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                return None


_peaks: dict[str, int | None] = {}


def probe(node: fx.Node, *, layouts: Sequence[Layout] = ()) -> int | None:
    """Most bytes alive while the op of a `call_function` node runs, outputs included; None if it cannot be run.

    Args:
        node: A node whose arguments carry fake values.
        layouts: What its leading tensors really look like, where a lowering lays them out otherwise than they were
            traced; one of another shape is passed over.
    """
    run = dummy_run(node, layouts)
    if run is None or _torch_compat.profiler_is_running():
        return None
    key = run.key
    if key not in _peaks:
        _peaks[key] = run.measure(_torch_compat.allocation_peak)
    return _peaks[key]


def dummy_run(node: fx.Node, layouts: Sequence[Layout] = ()) -> DummyRun | None:
    """How to run the op of a `call_function` node on dummy data; None if it may not be run so."""
    if not _can_run(node):
        return None
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    return DummyRun(node.target, tuple(_forms(leaves, layouts)), spec)


def _can_run(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or target._schema.is_mutable:
        return False
    values = [n.meta.get("val") for n in node.all_input_nodes]
    if _on_cuda([*values, node.meta.get("val")]) and not torch.cuda.is_available():
        return False
    dense = all(v.layout == torch.strided for v in values if isinstance(v, torch.Tensor))
    return dense and not any(argument.name in _TRUSTED_ARGUMENTS for argument in target._schema.arguments)


def _on_cuda(values: object) -> bool:
    return any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in pytree.tree_leaves(values))


def _forms(leaves: Sequence[Any], layouts: Sequence[Layout]) -> list[Any]:
    """What dummy data is made of: a `_Form` for every tensor, other arguments as they are."""
    known = iter(layouts)
    forms: list[Any] = []
    for leaf in leaves:
        value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf
        if isinstance(value, torch.Tensor):
            shape, strides = _layout(value)
            real = next(known, None)
            forms.append(_Form(shape, real[1] if real and real[0] == shape else strides, value.dtype, value.device))
        else:
            forms.append(_plain(value))
    return forms


def _layout(tensor: torch.Tensor) -> Layout:
    hint = _torch_compat.size_hint
    return tuple(hint(s) for s in tensor.shape), tuple(hint(s) for s in tensor.stride())


def _plain(value: Any) -> Any:
    return _torch_compat.size_hint(value) if isinstance(value, torch.SymInt) else value


def _dummy(form: Any) -> Any:
    """A real tensor for a `_Form`; other arguments as they are."""
    if not isinstance(form, _Form):
        return form
    extent = 1 + sum((s - 1) * d for s, d in zip(form.shape, form.strides, strict=True)) if all(form.shape) else 0
    fill = _FILL if form.dtype.is_floating_point or form.dtype.is_complex else 0
    return torch.full((extent,), fill, dtype=form.dtype, device=form.device).as_strided(form.shape, form.strides)
