"""Who decides what is saved: torch, torch with its knob, this package, or the author of the model.

{"kind": "default"}
{"kind": "knob", "budget": 0.5, "solver": "dp"}              torch's own partitioner; solver may be left out
{"kind": "remat", "memory_budget": 0.5, "on_infeasible": "warn"}     every other key is an option of the backend
{"kind": "wrap", "function": "package.module:function"}      called with the module before it is traced; its result
                                                             is traced, or the module itself where it returns None
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from remat_pass.lower import RematPartitioner
from remat_pass.options import resolve_options
from remat_pass.partition import inductor_patches
from tests.support.gpu_rig.lowering import RigConfig


@dataclass(frozen=True)
class Contestant:
    """One way to compile a module."""

    partitioner: RematPartitioner | None = None
    functorch: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[nn.Module], nn.Module | None] | None = None

    def configure(self, config: RigConfig, *, checkpoints: bool = False) -> RigConfig:
        """The configuration with the options of this contestant, for a model with or without checkpoints inside."""
        ours = inductor_patches(self.partitioner.options, checkpoints=checkpoints) if self.partitioner else {}
        return replace(config, inductor={**config.inductor, **ours}, functorch=self.functorch)


def read_contestant(specification: Mapping[str, Any]) -> Contestant:
    """The contestant that a JSON object describes.

    Raises:
        ValueError: The kind is not known.
    """
    options = dict(specification)
    kind = options.pop("kind", "default")
    if kind == "default":
        return Contestant()
    if kind == "knob":
        knobs = {"activation_memory_budget": options["budget"]}
        if "solver" in options:
            knobs["activation_memory_budget_solver"] = options["solver"]
        return Contestant(functorch=knobs)
    if kind == "remat":
        return Contestant(RematPartitioner(resolve_options(options)))
    if kind == "wrap":
        return Contestant(wrap=find_function(options["function"]))
    raise ValueError(f"kind={kind!r} is not known; take one of default, knob, remat, wrap")


def find_function(path: str) -> Callable[..., Any]:
    """The function of "package.module:function"."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
