"""Every way a PyTorch user can save activation memory, as a contestant: settings to try, and how to get a step ready.

    contestant.points("quick")                   ─► the settings, each a `Point`
    contestant.prepare(model, module, options)   ─► step; `step(*batch).backward()` is one training step

`module` is the contestant's own to edit: its blocks may be wrapped, its config changed. Nothing runs in `prepare`; the
first step compiles. The module may come from `with_autocast`. Dynamo would give a second contestant on the same model
the code of the first, so each takes a process of its own, or `torch._dynamo.reset()` before it.

To add a contestant, add a `Contestant` to `_ALL`. One that edits the module and leaves the rest to Inductor is an edit
and a line, `_under_inductor("my way", "my family", my_edit)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from benchmarks.contest import sac
from benchmarks.contest.models import MODELS, Model, without_autocast

Options = dict[str, Any]
Step = Callable[..., Tensor]
Edit = Callable[[str, nn.Module], nn.Module]

BUDGETS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.0)
"""Of PyTorch's knob: shares of the saved bytes. 0.15 is where pytorch#197838 found its lowest peak."""

QUICK_BUDGETS = (0.5, 0.2, 0.1, 0.05)
"""The knob's lowest peak on the Llama-style model is at 0.1; below, it rises."""

FRACTIONS = (None, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of "remat": shares of the unconstrained peak; None is no budget."""

QUICK_FRACTIONS = (None, 0.45, 0.35)

LEAST_BYTES = 1
"""A budget that no graph fits, so that `on_infeasible="warn"` takes the least-peak plan."""


class Unavailable(Exception):
    """The contestant has no meaning on this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a contestant.

    Attributes:
        label: In tables and figures; unique within the contestant.
        options: What `prepare` and `gpu` take; survives JSON.
    """

    label: str
    options: Options


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to save memory.

    Attributes:
        name: Unique.
        family: What belongs together in a figure: "eager", "inductor", "knob", "checkpoint", "sac", "remat", "hf".
        points: The settings of the "quick" or the "full" benchmark; empty where it takes no part.
        prepare: (model of `MODELS`, its module, options of a point) to the step. Raises `Unavailable`.
        gpu: Options of a point to what the rig for GPU code without a GPU compiles; None where nothing goes through
            Inductor.
    """

    name: str
    family: str
    points: Callable[[str], tuple[Point, ...]]
    prepare: Callable[[Model, nn.Module, Options], Step]
    gpu: Callable[[Options], Options] | None = None


# Settings.


def _one_point(label: str = "") -> Callable[[str], tuple[Point, ...]]:
    """The same single setting in both sizes."""
    return lambda size: (Point(label, {}),)


def _knob_points(solver: str) -> Callable[[str], tuple[Point, ...]]:
    """The full size tries every solver, the quick one only PyTorch's default."""

    def points(size: str) -> tuple[Point, ...]:
        budgets = BUDGETS if size == "full" else QUICK_BUDGETS if solver == "dp" else ()
        return tuple(Point(f"{budget:g}", {"budget": budget, "solver": solver}) for budget in budgets)

    return points


def _remat_points(lowering: str) -> Callable[[str], tuple[Point, ...]]:
    def points(size: str) -> tuple[Point, ...]:
        fractions = FRACTIONS if size == "full" else QUICK_FRACTIONS
        common = {"lowering": lowering}
        budgeted = (Point(f"{f:g}" if f else "none", {"memory_budget": f, **common}) for f in fractions)
        return *budgeted, Point("least", {"memory_budget": LEAST_BYTES, "on_infeasible": "warn", **common})

    return points


# How to get a step ready.


def _eager(model: Model, module: nn.Module, options: Options) -> Step:
    return module


def _inductor(model: Model, module: nn.Module, options: Options) -> Step:
    return torch.compile(module, backend="inductor")


def _knob(model: Model, module: nn.Module, options: Options) -> Step:
    """The config counts when a graph is compiled, so it is in force during each call and at no other time."""
    compiled = torch.compile(module, backend="inductor")
    settings = {
        "activation_memory_budget": options["budget"],
        "activation_memory_budget_solver": options["solver"],
    }

    def step(*batch: Tensor) -> Tensor:
        with torch._functorch.config.patch(settings):
            return compiled(*batch)

    return step


def _remat(model: Model, module: nn.Module, options: Options) -> Step:
    return torch.compile(module, backend="remat", options=options)


def _edited(edit: Edit, *, compiled: bool) -> Callable[[Model, nn.Module, Options], Step]:
    """The module after an edit, as it is or under Inductor."""

    def prepare(model: Model, module: nn.Module, options: Options) -> Step:
        module = edit(model.name, module)
        return torch.compile(module, backend="inductor") if compiled else module

    return prepare


# Edits of a module before it is traced, by the name of its model. The rig for GPU code imports them by name.


def checkpoint_blocks(model_name: str, module: nn.Module) -> nn.Module:
    """`checkpoint()` around each block."""
    sac.checkpoint_all(_blocks(model_name, module))
    return module


def save_matmuls(model_name: str, module: nn.Module) -> nn.Module:
    """SAC around each block that keeps matmul-like outputs."""
    sac.save_matmuls(_blocks(model_name, module))
    return module


def save_every_second_matmul(model_name: str, module: nn.Module) -> nn.Module:
    """SAC around each block that keeps every second matmul-like output."""
    sac.save_every_second_matmul(_blocks(model_name, module))
    return module


def enable_gradient_checkpointing(model_name: str, module: nn.Module) -> nn.Module:
    """Hugging Face's own switch. Raises `Unavailable` where the model has none."""
    model = MODELS[model_name]
    if model.hugging_face is None:
        raise Unavailable(f"{model_name} is not a Hugging Face model")
    inside = model.hugging_face(without_autocast(module))
    if not inside.supports_gradient_checkpointing:
        raise Unavailable(f"{type(inside).__name__} does not support gradient_checkpointing_enable()")
    # Transformers 5 renamed it, and warns of the older name.
    enable = getattr(inside, "activation_checkpointing_enable", None) or inside.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return module


def _blocks(model_name: str, module: nn.Module) -> list[nn.Module]:
    """Raises `Unavailable` where the model wraps its blocks itself."""
    blocks = MODELS[model_name].blocks(without_autocast(module))
    if not blocks:
        raise Unavailable(f"{model_name} has checkpoints of its own")
    return blocks


# The table.


def _remat_gpu(options: Options) -> Options:
    infeasible = options.get("on_infeasible", "raise")
    return {"kind": "remat", "memory_budget": options["memory_budget"], "on_infeasible": infeasible}


def _under_inductor(name: str, family: str, edit: Edit) -> Contestant:
    """A contestant that edits the module and leaves the rest to Inductor."""
    function = f"{edit.__module__}:{edit.__name__}"
    prepare = _edited(edit, compiled=True)
    return Contestant(name, family, _one_point(), prepare, lambda options: {"kind": "wrap", "function": function})


_ALL = (
    Contestant("eager", "eager", _one_point(), _eager),
    Contestant("inductor", "inductor", _one_point(), _inductor, lambda options: {"kind": "default"}),
    *(
        Contestant(f"knob {solver}", "knob", _knob_points(solver), _knob, lambda options: {"kind": "knob", **options})
        for solver in ("dp", "ilp", "greedy")
    ),
    Contestant("checkpoint eager", "checkpoint", _one_point(), _edited(checkpoint_blocks, compiled=False)),
    _under_inductor("checkpoint inductor", "checkpoint", checkpoint_blocks),
    _under_inductor("sac matmuls", "sac", save_matmuls),
    _under_inductor("sac every second matmul", "sac", save_every_second_matmul),
    Contestant("remat", "remat", _remat_points("inductor"), _remat, _remat_gpu),
    Contestant("remat eager", "remat", _remat_points("eager"), _remat),
    Contestant("hf checkpoint", "hf", _one_point(), _edited(enable_gradient_checkpointing, compiled=False)),
    _under_inductor("hf checkpoint inductor", "hf", enable_gradient_checkpointing),
)

CONTESTANTS: dict[str, Contestant] = {contestant.name: contestant for contestant in _ALL}
"""By name, in the order of the tables."""
