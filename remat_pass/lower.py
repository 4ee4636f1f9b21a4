"""From a captured graph to callables: Inductor, or AOTAutograd's graphs run op by op.

The one bend in the path is here. Both compilers take control and call a partitioner back in the middle of their work;
`RematPartitioner` is that partitioner, and it calls `partition`, which runs the straight path. Inductor deep-copies
and pickles it into its cache keys, so it holds the options and nothing else; what it finds out it tells the
`compilation`.

A budget of "auto" is worked out first, so that the partitioner, and with it every cache, knows it as bytes.

With a warm cache Inductor never calls it. The report of the first compile is therefore written beside the cache, under
a hash of everything that determines the result: the captured graph, its inputs, and `uuid()`.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import fx

from remat_pass import _torch_compat
from remat_pass.auto_budget import AutoBudget, work_out_budget
from remat_pass.compilation import begin_compilation, compile_and_judge, current_compilation
from remat_pass.errors import InfeasibleBudgetError, RematWarning
from remat_pass.options import AUTO, Options, resolve_options
from remat_pass.partition import inductor_patches, partition
from remat_pass.report import RematReport, publish
from remat_pass.step_time import time_first_steps

log = logging.getLogger(__name__)

_FORMAT = 27
"""Of what is cached: plans and reports of another one are not used."""

_budgeted_frames: set[int] = set()


class RematPartitioner(_torch_compat.RematPartitionerBase):
    """Stateless: the resolved options are all it knows."""

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
        """The interface of torch's partitioners."""
        compilation = current_compilation()
        partitioned = partition(
            gm,
            joint_inputs,
            self.options,
            forward_count=num_fwd_outputs,
            static_indices=static_lifetime_input_indices,
            trusts=compilation is not None and compilation.trusts,
            excess_permille=compilation.excess_permille if compilation else 0,
        )
        if compilation is None:
            _publish(partitioned.report, self.options)
        else:
            compilation.planned.append(partitioned)
        return partitioned.forward, partitioned.backward

    def uuid(self) -> str:
        """Everything beside the graph that determines the result: versions, settings, the plan that is replayed."""
        plans = []
        if self.options.plan is not None:
            path = Path(self.options.plan)
            files = sorted(path.rglob("plan.json")) if path.is_dir() else [path]
            plans = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        options = replace(self.options, debug_dir=None)
        versions = version("remat-pass"), _FORMAT, torch.__version__
        return repr((versions, _torch_compat.speed_settings(), options, plans))


def lower(module: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile a captured graph; training graphs are planned and their reports published."""
    auto: AutoBudget | None = None
    trains = _trains(module, inputs)
    if not trains:  # there is nothing to plan, and Inductor's options stay as they are
        options = replace(options, memory_budget=None)
    if options.memory_budget == AUTO:
        auto = work_out_budget(inputs, options.reserve)
        options = replace(options, memory_budget=auto.budget_bytes if auto else None, reserve=None)
    partitioner = RematPartitioner(options)
    try:
        if options.lowering == "eager":
            with begin_compilation() as compilation:
                compiled = _torch_compat.compile_op_by_op(module, inputs, partitioner)
            reports = compilation.take_reports()
        else:
            compiled, reports = _lower_with_inductor(module, inputs, options, partitioner, trains=trains)
    except InfeasibleBudgetError as error:
        raise (auto.explain(error) if auto else error) from None
    for report in reports:
        _publish(replace(report, auto_budget=auto), options)
        _warn_of_several_graphs(report)
    return time_first_steps(compiled, reports[0].step_time) if len(reports) == 1 else compiled


def _trains(module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether the graph may have gradients, be they switched on around it or inside."""
    tensors = [*module.parameters(), *(x for x in inputs if isinstance(x, torch.Tensor))]
    enabled = torch.is_grad_enabled() or any(_torch_compat.enables_gradients(node) for node in module.graph.nodes)
    return enabled and any(t.requires_grad for t in tensors)


def partitioner(**options: Any) -> RematPartitioner:
    """The partition function alone, for `functorch.compile.aot_function(..., partition_fn=...)`.

    Args:
        **options: As for the backend. `lowering` defaults to "eager" here: the two graphs run as they are given to
            your compilers, and nothing fuses.
    """
    return RematPartitioner(resolve_options({"lowering": "eager", **options}))


def _lower_with_inductor(
    module: fx.GraphModule, inputs: Sequence[Any], options: Options, partitioner: RematPartitioner, *, trains: bool
) -> tuple[Callable[..., Any], list[RematReport]]:
    stored = _stored_reports(module, inputs, partitioner)
    # Where Dynamo's graph has checkpoints, the joint graph has tags, by which the partitioner tells.
    checkpoints = trains and _torch_compat.has_checkpoints(module)
    patches = inductor_patches(options, checkpoints=checkpoints)
    patches["custom_partitioner_fn"] = partitioner

    def compile_copy(watcher: _torch_compat.CompilationWatcher | None) -> Callable[..., Any]:
        return _torch_compat.compile_with_inductor(_torch_compat.copy_captured(module), inputs, patches, watcher)

    compiled, reports = compile_and_judge(compile_copy)
    if reports:
        _store(reports, stored)
        return compiled, reports
    return compiled, _restore(stored)


def _stored_reports(module: fx.GraphModule, inputs: Sequence[Any], partitioner: RematPartitioner) -> Path:
    """Where the reports of this compilation lie, or will lie, beside Inductor's cache."""
    forms = [
        (tuple(map(str, x.shape)), tuple(map(str, x.stride())), str(x.dtype), str(x.device), x.requires_grad)
        if isinstance(x, torch.Tensor)
        else str(x)
        for x in inputs
    ]
    code = [m.code for m in module.modules() if isinstance(m, fx.GraphModule)]
    text = repr((code, forms, torch.is_grad_enabled(), partitioner.uuid()))
    name = hashlib.sha256(text.encode()).hexdigest()
    return Path(_torch_compat.inductor_cache_dir()) / "remat_pass" / name


def _store(reports: list[RematReport], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, report in enumerate(reports):
        (folder / f"{i}.json").write_text(report.to_json())


def _restore(folder: Path) -> list[RematReport]:
    return [RematReport.from_json(file.read_text()) for file in sorted(folder.glob("*.json"))]


def _publish(report: RematReport, options: Options) -> None:
    publish(report)
    log.info("%s", report.headline)
    if options.debug_dir is not None:
        log.info("wrote %s", report.write(options.debug_dir))


def _warn_of_several_graphs(report: RematReport) -> None:
    """Say once that a budget holds for each graph by itself."""
    frame = _torch_compat.frame_id()
    if report.budget_bytes is None or frame is None:
        return
    known = len(_budgeted_frames)
    _budgeted_frames.add(frame)
    if known == 1 and len(_budgeted_frames) == 2:
        warnings.warn(
            "more than one training graph was compiled with a memory_budget: it bounds each graph by itself, not their "
            "sum. Graph breaks (see TORCH_LOGS=graph_breaks) and modules compiled one by one cause this.",
            RematWarning,
            stacklevel=2,
        )
