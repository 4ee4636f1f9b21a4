"""What budgets a model could be given, and what each would cost, before anything is trained.

    print(remat_pass.frontier(model, batch))

The model is compiled as `backend="remat"` would compile it, with everything that is set around the call (autocast,
default options), but only as far as its joint graph; then the compilation is ended by an exception:

    Dynamo ──► AOTAutograd, Inductor's passes ──► joint graph ──► the planner's frontier     no code, no step

So the model is traced on fake tensors and never run: parameters, buffers, gradients and generators stay as they are.

Peaks under eager lowering are those of the very programs that would run. Under Inductor a simulated peak is not good
enough to name a budget by: a budget must be accepted by Inductor's own schedule. There the points are thinned out, and
each of the rest is judged as `backend="remat"` judges it, at about half the time of a compilation each.
"""

import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from rich.table import Table
from torch import fx

from remat_pass import _torch_compat
from remat_pass.analysis import analyze
from remat_pass.choice import Judge
from remat_pass.errors import RematError
from remat_pass.incumbent import torch_partition
from remat_pass.inductor_peak import inductor_judge
from remat_pass.joint_graph import capture
from remat_pass.kernel_times import rates_of
from remat_pass.options import Options, resolve_options
from remat_pass.partition import inductor_patches, orders_of
from remat_pass.problem import RematProblem
from remat_pass.report import print_plainly
from remat_pass.schedule import plan_of
from remat_pass.search import Candidate
from remat_pass.solver import frontier as plan_frontier
from remat_pass.storage import main_device_type
from remat_pass.units import format_bytes

_JUDGED = 8
"""Points that are put before Inductor's scheduler."""
_JUDGED_BELOW = 3
"""The same, of each way to plan for less than those have: without the user's tags, or in a stricter order."""

_ROWS = 24


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One budget worth choosing, and what it costs."""

    peak_bytes: int
    """Smallest `memory_budget` that buys this plan: its predicted peak and the stated prediction error of the lowering.
    Passed back it is accepted, and gives a plan whose peak is at most this."""
    recompute_ns: int
    """Estimated time that recomputing adds to a step."""
    saved_bytes: int
    """Passed from forward to backward, inputs of the graph not counted."""
    recomputed: int
    """How many values backward computes again; views do not count."""
    honours_tags: bool = True
    """Whether the tags of the model's own checkpointing are followed. Only a budget that cannot be met with them
    overrules them."""


@dataclass(frozen=True)
class Frontier(Sequence[FrontierPoint]):
    """The planner's trade-offs for one model, by falling peak; the first is the fastest, the last the least peak.

    Time rises from point to point, apart from the step to points that overrule the model's checkpointing tags.
    """

    points: tuple[FrontierPoint, ...]
    graph_id: str
    """Fingerprint of the graph, as in `RematReport.graph_id`."""
    lowering: str
    margin_permille: int
    """Stated prediction error in thousandths, which every `peak_bytes` contains."""
    sizes_are_hints: bool
    """Whether shapes are dynamic, so that every figure holds at the sizes of the call."""

    @overload
    def __getitem__(self, index: int) -> FrontierPoint: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[FrontierPoint, ...]: ...

    def __getitem__(self, index: int | slice) -> FrontierPoint | tuple[FrontierPoint, ...]:
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[FrontierPoint]:
        return iter(self.points)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A table for people: at most 24 points, evenly spaced, the first and the last among them."""
        lines = [
            f"remat_pass: {len(self.points)} budgets of graph {self.graph_id[:12]}, lowering {self.lowering}; "
            f"prediction error of {self.margin_permille / 10:g}% included"
        ]
        if self.sizes_are_hints:
            lines.append("  shapes are dynamic: all figures hold at the sizes of this call")
        if not all(point.honours_tags for point in self.points):
            lines.append("  *: overrules checkpointing tags of the model")
        return print_plainly("\n".join(lines), _table(self.points))


def frontier(
    model: Callable[..., Any],
    *args: Any,
    lowering: str | None = None,
    loss: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> Frontier:
    """List the memory budgets worth choosing for a model, and what each costs, without running it.

    Options other than `lowering` are the defaults (`set_default_options`); `memory_budget` is of no matter.

    Args:
        model: A module or function; one that `torch.compile` returned is planned anew.
        *args: Its arguments, as in training: shapes, dtypes, devices and `requires_grad` count, contents do not.
        lowering: "inductor" or "eager": that of the `torch.compile` call the budget is for. None: the default.
        loss: Turns what the model returns into the loss, so that both are one graph. None: the model is planned as it
            is; what computes the loss from its outputs is then no part of the peak, as in `torch.compile(model)`.
        **kwargs: Its keyword arguments.

    Returns:
        The trade-offs by falling peak. Under "eager" all that the planner found, with exact peaks; under "inductor"
        about a dozen, with peaks by Inductor's own schedules. There the backend, which searches for itself, may find a
        faster plan for the same budget, or a slower one, than the point says.

    Raises:
        RematError: The model does not become one graph with a backward pass; says why.
        OptionError: A bad `lowering`, or bad defaults.
    """
    options = replace(
        resolve_options({"plan": None} if lowering is None else {"lowering": lowering, "plan": None}),
        memory_budget=1.0,
        reserve=None,
    )
    found: list[Frontier] = []
    token = _found.set(found)
    try:
        with _torch_compat.compile_without_traces():
            torch.compile(_step(model, loss), backend=_planning_backend(options), fullgraph=True)(args, kwargs)
    except Exception as error:
        if found and _torch_compat.find_cause(error, _FrontierIsKnown):
            return found[0]
        if (known := _torch_compat.find_cause(error, RematError)) is not None:
            raise known from None
        if isinstance(error, _torch_compat.UncapturableError):
            raise RematError(_SEVERAL_GRAPHS.format(reason=error)) from error
        raise
    finally:
        _found.reset(token)
    raise RematError("the model computes nothing with tensors, so there is nothing to plan")


_found: contextvars.ContextVar[list[Frontier] | None] = contextvars.ContextVar("remat_frontier", default=None)

_SEVERAL_GRAPHS = (
    "the model is not captured as one graph, and a budget bounds each graph by itself. Remove the graph break that "
    "torch names below, or call frontier() for the parts of the model that lie between the breaks.\n{reason}"
)

_NO_BACKWARD = "the model has no backward pass to plan"


class _FrontierIsKnown(Exception):
    """Ends a compilation: the frontier is all that is wanted."""


class _FrontierPartitioner(_torch_compat.RematPartitionerBase):
    """Plans the joint graph and stops. Inductor copies it, so what it finds travels in a context variable."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __call__(  # type: ignore[override]  # torch passes these two by name
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        found = _found.get()
        assert found is not None
        found.append(_plan(gm, joint_inputs, self.options, num_fwd_outputs, static_lifetime_input_indices))
        raise _FrontierIsKnown

    def uuid(self) -> None:
        """Never cache what is not finished."""


def _step(model: Callable[..., Any], loss: Callable[[Any], Any] | None) -> Callable[..., Any]:
    """The model and its loss as one function, which is never run but by the compiler."""

    def step(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            raise RematError("compilation is switched off (TORCHDYNAMO_DISABLE, torch.compiler.set_stance); allow it")
        outputs = model(*args, **kwargs)
        return outputs if loss is None else loss(outputs)

    return step


def _planning_backend(options: Options) -> Callable[..., Any]:
    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        partitioner = _FrontierPartitioner(options)
        if options.lowering == "eager":
            _torch_compat.compile_op_by_op(module, inputs, partitioner)
        else:
            patches = inductor_patches(options, checkpoints=_torch_compat.has_checkpoints(module))
            patches["custom_partitioner_fn"] = partitioner
            _torch_compat.compile_with_inductor(module, inputs, patches)
        if not torch.is_grad_enabled():
            raise RematError(f"{_NO_BACKWARD}: gradients are switched off around the call; leave torch.no_grad")
        raise RematError(f"{_NO_BACKWARD}: no output depends on a parameter or input with requires_grad=True; set it")

    return backend


def _plan(
    module: fx.GraphModule,
    inputs: Any,
    options: Options,
    forward_count: int,
    static_indices: Sequence[int] | None,
) -> Frontier:
    """The candidates that the backend has for the same graph."""
    fuses = options.lowering == "inductor"
    captured = capture(module, forward_count=forward_count, static_indices=static_indices)
    joint, problem, _ = analyze(captured, fuses=fuses, cost_model=options.cost_model)
    incumbent = torch_partition(captured, problem, inputs) if fuses else None
    extra = () if incumbent is None or incumbent.is_wrong else (incumbent.keep,)
    rates = rates_of(main_device_type(joint.nodes))
    patches = inductor_patches(options, checkpoints=bool(captured.wishes))
    orders = orders_of(problem, patches)
    ways = [(ordered, True) for ordered in orders]
    ways += [(orders[-1], False)] if any(value.wish for value in problem.values) else []
    points: list[FrontierPoint] = []
    for ordered, honours_tags in ways:
        judge = inductor_judge(joint, ordered, rates, patches) if fuses else None
        candidates = plan_frontier(ordered, extra=extra, honour_wishes=honours_tags)
        below = points[-1].peak_bytes if points else math.inf
        candidates = tuple(c for c in candidates if problem.with_margin(c.peak_bytes) < below) or candidates[-1:]
        if judge is not None:
            candidates = _spread(candidates, _JUDGED_BELOW if points else _JUDGED)
        found = _points(ordered, candidates, judge, honours_tags=honours_tags)
        points += [point for point in found if not points or point.peak_bytes < points[-1].peak_bytes]
    return Frontier(_rising(points), problem.fingerprint, options.lowering, problem.margin_permille, problem.symbolic)


def _points(
    problem: RematProblem, candidates: tuple[Candidate, ...], judge: Judge | None, *, honours_tags: bool
) -> list[FrontierPoint]:
    """Candidates by falling peak as points by falling judged peak; without a judge the simulated peak is right.

    The candidate of least simulated peak is what the backend falls back to. Nothing below its judged peak is a point,
    because the backend, which tries only a few candidates, might miss it.
    """
    plans = [plan_of(problem, c.decisions) for c in candidates]
    peaks = [c.peak_bytes for c in candidates] if judge is None else [judge(plan).peak_bytes for plan in plans]
    points: list[FrontierPoint] = []
    best_bytes: int | None = None
    for candidate, plan, peak_bytes in zip(candidates, plans, peaks, strict=True):
        if peak_bytes < peaks[-1] or (best_bytes is not None and peak_bytes >= best_bytes):
            continue
        best_bytes = peak_bytes
        saved = (problem.values[i] for i in plan.saved(problem))
        points.append(
            FrontierPoint(
                peak_bytes=problem.with_margin(peak_bytes),
                recompute_ns=candidate.recompute_ns,
                saved_bytes=sum(v.size.hint for v in saved if not v.is_input),
                recomputed=sum(not problem.values[i].is_free for i in plan.recomputed()),
                honours_tags=honours_tags,
            )
        )
    return points


def _rising(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """Points by falling peak without those that take no less time than one behind them that honours tags as well."""
    kept: list[FrontierPoint] = []
    for point in reversed(points):
        alike = [p for p in kept if p.honours_tags == point.honours_tags]
        if not alike or point.recompute_ns < alike[-1].recompute_ns:
            kept.append(point)
    return tuple(reversed(kept))


def _spread(candidates: tuple[Candidate, ...], count: int) -> tuple[Candidate, ...]:
    """At most so many candidates whose peaks are evenly spaced, the first and the last among them."""
    first, last = candidates[0].peak_bytes, candidates[-1].peak_bytes
    aims = [first - (first - last) * i // (count - 1) for i in range(count)]
    nearest = (min(candidates, key=lambda c: abs(c.peak_bytes - aim)) for aim in aims)
    return tuple({id(c): c for c in nearest}.values())


def _table(points: Sequence[FrontierPoint]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("memory_budget", "", "of the first", "recompute", "saved", "values recomputed"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = sorted({round(i * (len(points) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    for point in (points[i] for i in rows):
        table.add_row(
            f"{point.peak_bytes}" + ("" if point.honours_tags else " *"),
            format_bytes(point.peak_bytes),
            f"{point.peak_bytes / points[0].peak_bytes:.1%}",
            f"{point.recompute_ns / 1e6:.3f} ms",
            format_bytes(point.saved_bytes),
            f"{point.recomputed}",
        )
    return table
