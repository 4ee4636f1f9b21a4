"""A captured graph through AOTAutograd, a partitioner and Inductor: the source of its two wrappers.

`compile_fx` does all of it. Its `inner_compile` is called once per graph, after the partitioner, which is where the
names of arguments and results can be read; the generated source is taken where Inductor would load it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering

from remat_pass import _torch_compat
from tests.support.gpu_rig.capture import Capture, precision_context


@dataclass(frozen=True)
class Generated:
    """One generated wrapper; a value has the same name in forward and backward."""

    source: str
    arguments: tuple[tuple[str, Any], ...]
    """Name and fake value of each."""
    results: tuple[str | None, ...]
    """Names; None where no tensor is returned."""


def generate(
    captured: Capture, *, inductor: Mapping[str, Any], functorch: Mapping[str, Any]
) -> tuple[Generated, Generated]:
    """Forward and backward as Inductor generates them; needs `fake_gpu`.

    Args:
        captured: A training graph.
        inductor: Options of Inductor; the partitioner is `custom_partitioner_fn`.
        functorch: Options of AOTAutograd; the knobs of torch's own partitioner.

    Raises:
        ValueError: The graph has no backward.
    """
    generated: list[Generated] = []

    def compile_one(graph: fx.GraphModule, arguments: Any, **context: Any) -> Any:
        names = [(node.name, node.meta["val"]) for node in graph.graph.find_nodes(op="placeholder")]
        results: Any = graph.graph.output_node().args[0]
        with _sources() as sources, _torch_compat.configured_choices():
            compiled = compile_fx_inner(graph, arguments, **context)
        (source,) = sources
        generated.append(Generated(source, tuple(names), tuple(getattr(result, "name", None) for result in results)))
        return compiled

    eager_backward = {"force_non_lazy_backward_lowering": True, "enable_autograd_cache": False}
    with (
        torch._guards.tracing(torch._guards.TracingContext(captured.fake_mode)),
        precision_context(captured.precision),
        functorch_config.patch({**eager_backward, **functorch}),
    ):
        compile_fx(
            captured.fresh_graph(), list(captured.inputs), inner_compile=compile_one, config_patches=dict(inductor)
        )
    if len(generated) != 2:
        raise ValueError(f"Inductor compiled {len(generated)} graphs, not a forward and a backward: nothing to train")
    forward, backward = generated
    return forward, backward


class _Unloaded:
    """Stands for the module that Inductor would have loaded."""

    def call(self, *_: Any) -> None:
        raise RuntimeError("generated for a GPU that is not there")


@contextmanager
def _sources() -> Iterator[list[str]]:
    sources: list[str] = []

    def keep(lowering: Any) -> _Unloaded:
        wrapper, _kernels = lowering.codegen()
        sources.append(wrapper.value)
        return _Unloaded()

    with mock.patch.object(GraphLowering, "compile_to_module", keep):
        yield sources
