"""A module and its batch as Dynamo sees them on a GPU.

The tensors of the module are exchanged for fake CUDA ones while Dynamo traces, and put back: a copy of the module would
not do, since a wrapped `forward` may close over the original.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from remat_pass import _torch_compat

PRECISIONS = ("fp32", "bf16")
"""As the module is, or the same under bfloat16 autocast."""


@dataclass(frozen=True)
class Capture:
    """One training graph; compiling takes `fresh_graph`, so that it can be compiled many times."""

    graph: fx.GraphModule
    inputs: tuple[Any, ...]
    originals: tuple[Any, ...]
    """What was given to `capture` for each input: a tensor of the module, of the batch, or a number."""
    fake_mode: FakeTensorMode
    precision: str

    def fresh_graph(self) -> fx.GraphModule:
        """A copy, since Inductor changes what it is given."""
        return _torch_compat.copy_captured(self.graph)


def precision_context(precision: str) -> Any:
    """The autocast mode of one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not known; take one of {', '.join(PRECISIONS)}")
    return torch.autocast("cuda", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def capture(module: nn.Module, batch: Sequence[Any], precision: str) -> Capture:
    """Trace `module(*batch)`, which returns the loss, as one graph on fake CUDA tensors; needs `fake_gpu`.

    Args:
        module: On the meta device or the CPU; left as it was.
        batch: Its arguments; tensors may be on the meta device.
        precision: One of `PRECISIONS`.

    Raises:
        torch._dynamo.exc.Unsupported: The module does not trace as one graph.
    """
    fakes = _Fakes()
    graphs: list[tuple[fx.GraphModule, list[Any]]] = []
    given: list[Any] = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., NoReturn]:
        graphs.append((graph, inputs))
        return stop

    def stop(*values: Any) -> NoReturn:
        given.extend(values)
        raise _TracedError

    torch._dynamo.reset()
    step = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)
    arguments = pytree.tree_map_only(Tensor, fakes.of, tuple(batch))
    with _exchanged(module, fakes), fakes.mode, precision_context(precision), suppress(_TracedError):
        step(*arguments)
    ((graph, inputs),) = graphs
    return Capture(graph, tuple(inputs), tuple(map(fakes.original, given)), fakes.mode, precision)


class _TracedError(Exception):
    """Ends the first call once the graph is known."""


class _Fakes:
    """Fake CUDA tensors by the tensors that they stand for, and back; a tied weight stays one tensor."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv())
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, original: Tensor) -> Tensor:
        """The fake tensor for `original`; not below a mode."""
        if id(original) not in self._pairs:
            self._pairs[id(original)] = (original, self._make(original))
        return self._pairs[id(original)][1]

    def original(self, value: Any) -> Any:
        """What a fake tensor stands for; anything else is returned."""
        return next((original for original, fake in self._pairs.values() if fake is value), value)

    def _make(self, original: Tensor) -> Tensor:
        with self.mode:
            fake = torch.empty_strided(original.shape, original.stride(), dtype=original.dtype, device="cuda")
            if isinstance(original, nn.Parameter):
                return nn.Parameter(fake, requires_grad=original.requires_grad)
            return fake.requires_grad_(original.requires_grad)


@contextmanager
def _exchanged(module: nn.Module, fakes: _Fakes) -> Iterator[None]:
    homes: list[Any] = [home for part in module.modules() for home in (part._parameters, part._buffers)]
    originals = [dict(home) for home in homes]
    for home in homes:
        home.update({name: fakes.of(tensor) for name, tensor in home.items() if tensor is not None})
    try:
        yield
    finally:
        for home, original in zip(homes, originals, strict=True):
            home.update(original)
