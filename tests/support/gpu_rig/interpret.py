"""Gradients from the generated CUDA code, computed on the CPU by Triton's interpreter.

Kernels run element by element in numpy, so models must be tiny. Attention is generated as plain products, since no
attention kernel of CUDA runs on the CPU. What kernels add atomically, the gradients of embeddings, stays zero. The
environment variable TRITON_INTERPRET=1 must be set before this process imports Triton, and such a process can compile
no kernel.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch._inductor.codecache import PyCodeCache

from tests.support.gpu_rig import wrapper
from tests.support.gpu_rig.capture import capture
from tests.support.gpu_rig.fake_gpu import fake_gpu
from tests.support.gpu_rig.generate import generate
from tests.support.gpu_rig.lowering import RigConfig

_LIBDEVICE = "from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math"
_INTERPRETABLE = f"""from torch._inductor.runtime.triton_helpers import math as tl_math
from {__name__} import LIBRARY as libdevice"""


class _Library:
    """The interpreter calls no CUDA libraries; Triton's own functions of the same names it does."""

    def __getattr__(self, name: str) -> Any:
        return getattr(triton.language.math, name)

    def tanh(self, x: Any) -> Any:
        """Triton has none."""
        return 1 - 2 / (triton.language.math.exp(2 * x) + 1)


LIBRARY = _Library()


def gradients(
    module: nn.Module, batch: Sequence[Any], partitioner: Any = None, *, config: RigConfig | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Of the loss that `module(*batch)` returns, by parameter name, with the generator seeded.

    Args:
        module: On the CPU.
        batch: Its arguments.
        partitioner: For Inductor's `custom_partitioner_fn`; None for torch's own.
        config: Precision, card and options.
        seed: Of the generator that dropout draws its seeds from.

    Raises:
        RuntimeError: The interpreter is not on.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    config = config or RigConfig()
    chosen = {} if partitioner is None else {"custom_partitioner_fn": partitioner}
    with fake_gpu(config.sm, attention_kernels=False):
        captured = capture(module, batch, config.precision)
        generated = generate(captured, inductor={**config.inductor, **chosen}, functorch=config.functorch)
        torch.manual_seed(seed)
        values = _run(generated, [_detached(value) for value in captured.originals])
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = zip(captured.originals, values, strict=True)
    return {names[id(original)]: gradient for original, gradient in found if id(original) in names}


def _run(generated: Any, inputs: list[Any]) -> Sequence[Any]:
    forward, backward = generated
    run_forward, run_backward = (_load(g.source) for g in generated)
    known = dict(zip((name for name, _ in forward.arguments), inputs, strict=True))
    known.update(zip(forward.results, run_forward(inputs), strict=True))
    # What forward does not hand over is the gradient of the loss.
    return run_backward([known.get(name, torch.ones(())) for name, _ in backward.arguments])


def _load(source: str) -> Callable[[list[Any]], Sequence[Any]]:
    return wrapper.load(source, _interpreted, wrapper.ON_THE_CPU)


def _interpreted(name: str, source: str) -> Any:
    return getattr(PyCodeCache.load(source.replace(_LIBDEVICE, _INTERPRETABLE)), name)


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
