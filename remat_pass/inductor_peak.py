"""What Inductor will really allocate: asked of Inductor itself, before any code is generated.

A plan on FX nodes is only a wish to Inductor. It fuses kernels that share an input, wherever they stood, so that
buffers meet that the plan kept apart; it writes an output over an input that dies; it reorders. All of that is settled
when its scheduler is done, in a small part of the compile time, and can be read off there:

    alive(k) = buffers first written at or before kernel k and last read at or after it
    peak     = max over k of  alive(k) + scratch of k

A generated kernel writes an output over an equally large input that only it still reads, and extern kernels take the
scratch that `probe` measures for the layouts that they are given here.

Inductor may lay values out otherwise than they were traced: convolutions on CUDA want channels last. AOTAutograd lowers
backward for the layout in which forward saves its values, so forward is asked first. Taken for the traced layout,
backward would be fused otherwise and seem to need fewer buffers than it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from remat_pass import _torch_compat
from remat_pass._torch_compat import InductorSchedule, ScheduledBuffer
from remat_pass.choice import Judge, Judgement
from remat_pass.costs import DeviceRates, transfer_ns
from remat_pass.garbage import collection_paused
from remat_pass.joint_graph import JointGraph
from remat_pass.probe import Layout, probe
from remat_pass.problem import Kind, RematPlan, RematProblem, Value
from remat_pass.rewrite import Rewritten, rewrite


def inductor_judge(
    joint: JointGraph, problem: RematProblem, rates: DeviceRates, config_patches: dict[str, Any]
) -> Judge:
    """A judge that lowers the graphs of a plan as Inductor will, once per plan.

    Args:
        joint: The captured graph.
        problem: The same, as the planner sees it.
        rates: Of the device it runs on.
        config_patches: Inductor options that the graphs will be compiled with.
    """
    judgements: dict[RematPlan, Judgement] = {}

    def judge(plan: RematPlan) -> Judgement:
        if plan not in judgements:
            judgements[plan] = judge_graphs(joint, rewrite(joint, problem, plan), problem, rates, config_patches)
        return judgements[plan]

    return judge


@collection_paused()
def judge_graphs(
    joint: JointGraph,
    rewritten: Rewritten,
    problem: RematProblem,
    rates: DeviceRates,
    config_patches: dict[str, Any],
) -> Judgement:
    """Peak and estimated time of both graphs under Inductor."""
    forward, backward = _schedules(rewritten, config_patches)
    return Judgement(
        max(
            schedule_peak(forward, _scratch(forward, joint, problem, rewritten.forward_values))
            + problem.resident_forward_bytes,
            schedule_peak(backward, _scratch(backward, joint, problem, rewritten.backward_values))
            + problem.resident_backward_bytes,
        ),
        _step_ns(forward, problem, rewritten.forward_values, rates)
        + _step_ns(backward, problem, rewritten.backward_values, rates),
    )


def _step_ns(schedule: InductorSchedule, problem: RematProblem, values: Mapping[str, int], rates: DeviceRates) -> int:
    """Generated kernels take the time to move their bytes, library calls that of their op, each with its launch."""
    total = 0
    for k, names in enumerate(schedule.kernels):
        if schedule.is_loop[k]:
            total += transfer_ns(schedule.moved_bytes[k], rates) + rates.launch_ns
        elif schedule.is_call[k]:
            calls = [problem.values[values[n]] for n in names if n in values]
            total += max((v.recompute_ns for v in calls if v.kind in (Kind.EXTERN, Kind.RANDOM)), default=0)
    return total


def _schedules(rewritten: Rewritten, config_patches: dict[str, Any]) -> tuple[InductorSchedule, InductorSchedule]:
    """Of both graphs. Forward returns the user's results, then what it saves, by the names backward takes it under."""
    results = _result_names(rewritten.forward)
    taken = {node.name for node in rewritten.backward.graph.find_nodes(op="placeholder")}
    visible = len(results) - len(taken.intersection(results))
    forward = _torch_compat.schedule_with_inductor(
        rewritten.forward,
        is_backward=False,
        visible=visible,
        strides={},
        config_patches=config_patches,
    )
    strides = dict(zip(results, forward.result_strides, strict=False))
    donated = _torch_compat.donated_buffers(rewritten.forward, rewritten.backward, visible)
    backward = _torch_compat.schedule_with_inductor(
        rewritten.backward,
        is_backward=True,
        visible=len(_result_names(rewritten.backward)),
        strides={name: stride for name, stride in strides.items() if name and stride is not None},
        donated=donated,
        owned=_copied_inputs(rewritten.forward, strides),
        config_patches=config_patches,
    )
    return forward, _with_shared_storages(backward, _torch_compat.storages_of_results(rewritten.forward))


def _with_shared_storages(schedule: InductorSchedule, storages: Mapping[str, tuple[object, int]]) -> InductorSchedule:
    """The schedule with one buffer for all inputs that are views of one storage, such as the parts of a split.

    Args:
        schedule: Of backward.
        storages: A storage and its bytes, by the name of what forward hands over.
    """
    sharing: dict[object, list[ScheduledBuffer]] = {}
    for b in schedule.buffers:
        if b.is_input and b.name in storages:
            sharing.setdefault(storages[b.name][0], []).append(b)
    views = {b.name for group in sharing.values() if len(group) > 1 for b in group}
    whole = []
    for group in sharing.values():
        if len(group) > 1:
            size_bytes = storages[group[0].name][1]
            last = max(b.last_kernel for b in group)
            whole.append(replace(group[0], size_bytes=size_bytes, freed_bytes=size_bytes, last_kernel=last))
    return replace(
        schedule,
        buffers=(*(b for b in schedule.buffers if b.name not in views), *whole),
        overwritten={new: old for new, old in schedule.overwritten.items() if old not in views},
    )


def _copied_inputs(module: fx.GraphModule, strides: Mapping[str | None, tuple[int, ...] | None]) -> frozenset[str]:
    """Inputs that forward saves in another layout: backward gets a copy of its own."""
    inputs = module.graph.find_nodes(op="placeholder")
    return frozenset(
        node.name for node in inputs if _torch_compat.has_other_strides(node.meta["val"], strides.get(node.name))
    )


def _result_names(module: fx.GraphModule) -> list[str | None]:
    results: Any = module.graph.output_node().args[0]
    return [result.name if isinstance(result, fx.Node) else None for result in results]


def schedule_peak(schedule: InductorSchedule, scratch: list[int]) -> int:
    """Peak of one schedule; `scratch` has the bytes that each kernel takes beside its buffers."""
    count = len(schedule.kernels)
    change = [0] * (count + 2)
    for buffer, last in _lifetimes(schedule):
        change[buffer.first_kernel] += buffer.size_bytes
        change[last + 1] -= buffer.freed_bytes
    peak = now = 0
    for k in range(count + 1):
        now += change[k]
        peak = max(peak, now + (scratch[k] if k < count else 0))
    return peak


def _lifetimes(schedule: InductorSchedule) -> list[tuple[ScheduledBuffer, int]]:
    """Each buffer with the last kernel that holds its memory as its own: one that is written over gives it up."""
    sizes = {b.name: b.size_bytes for b in schedule.buffers}
    over = {old for new, old in schedule.overwritten.items() if sizes[new] == sizes[old]}
    return [(b, b.last_kernel - 1 if b.name in over else b.last_kernel) for b in schedule.buffers]


def _scratch(
    schedule: InductorSchedule, joint: JointGraph, problem: RematProblem, values: Mapping[str, int]
) -> list[int]:
    """Scratch of library calls: what the op takes on data laid out as here, less the outputs that are buffers here.

    Parts of what a call returned and concatenations of it come from the same op, but take nothing more.
    """
    allocated = [0] * (len(schedule.kernels) + 1)
    for b in schedule.buffers:
        if not b.is_input:
            allocated[b.first_kernel] += b.size_bytes
    scratch = []
    for k, names in enumerate(schedule.kernels):
        called = [values[n] for n in names if n in values] if schedule.is_call[k] else []
        called = [v for v in called if problem.values[v].kind in (Kind.EXTERN, Kind.RANDOM)]
        needs = [_needed_bytes(joint.nodes[v], problem.values[v], schedule.call_layouts[k]) for v in called]
        if schedule.is_update[k]:
            needs = [need - problem.values[v].size.hint for need, v in zip(needs, called, strict=True)]
        scratch.append(max(0, max(needs, default=0) - allocated[k]))
    return scratch


def _needed_bytes(node: fx.Node, value: Value, layouts: Sequence[Layout]) -> int:
    """Of one run, outputs included; of an op that cannot be probed its outputs alone."""
    peak_bytes = probe(node, layouts=layouts)
    return value.workspace_bytes + value.size.hint if peak_bytes is None else peak_bytes
