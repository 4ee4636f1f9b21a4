"""What the rig for GPU code builds in its own process: a model of the contest, edited as a contestant would."""

from importlib import import_module

from torch import Tensor, nn

from benchmarks.contest.models import MODELS


def build(model: str, edit: str | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model and its batch; `edit` is "package.module:function" and gets the model's name and the module."""
    module, batch = MODELS[model].build()
    if edit is not None:
        package, _, function = edit.partition(":")
        module = getattr(import_module(package), function)(model, module)
    return module, batch
