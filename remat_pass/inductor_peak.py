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

_CALLS = (Kind.EXTERN, Kind.RANDOM)
"""What a library runs, and not a generated loop."""


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


def judge_graphs(
    joint: JointGraph,
    rewritten: Rewritten,
    problem: RematProblem,
    rates: DeviceRates,
    config_patches: dict[str, Any],
) -> Judgement:
    """Peak and estimated time of both graphs under Inductor."""
    return Witness(joint, rewritten, problem, rates, config_patches).ask()


class PeakExceeded(Exception):
    """Inductor's schedule takes more than the budget allows."""

    def __init__(self, peak_bytes: int, limit_bytes: int, simulated_bytes: int) -> None:
        super().__init__(f"{peak_bytes} bytes, simulated as {simulated_bytes}, are above {limit_bytes}")
        self.excess_permille = -(-peak_bytes * 1000 // simulated_bytes) - 1000
        """By how many thousandths the peak is above the simulated one."""


class Witness:
    """Judges a plan by Inductor's schedules of its two graphs, forward first.

    It can be the observer of the compilation itself, which then is ended where the peak turns out to be too high.
    """

    def __init__(
        self,
        joint: JointGraph,
        rewritten: Rewritten,
        problem: RematProblem,
        rates: DeviceRates,
        config_patches: dict[str, Any],
        limit_bytes: int | None = None,
        simulated_bytes: int = 1,
    ) -> None:
        """Prepare to see both graphs.

        Args:
            joint: As for `inductor_judge`.
            rewritten: The graphs as they are handed to Inductor, which must not get these.
            problem: As for `inductor_judge`.
            rates: As for `inductor_judge`.
            config_patches: As for `inductor_judge`.
            limit_bytes: The largest peak that is accepted; None: any.
            simulated_bytes: The peak that the plan is believed to have, if there is a limit.
        """
        self.joint, self.rewritten, self.problem, self.rates = joint, rewritten, problem, rates
        self.config_patches, self.limit_bytes, self.simulated_bytes = config_patches, limit_bytes, simulated_bytes
        self.strides: dict[str | None, tuple[int, ...] | None] = {}
        """Of what forward returns, by name."""
        self._storages: dict[str, tuple[str, int]] = {}
        """Behind what forward returns, and their bytes, by name."""
        self._forward: Judgement | None = None
        self._backward: Judgement | None = None

    @property
    def judgement(self) -> Judgement | None:
        """Of both graphs; None before both were seen."""
        if self._forward is None or self._backward is None:
            return None
        return Judgement(
            max(self._forward.peak_bytes, self._backward.peak_bytes), self._forward.step_ns + self._backward.step_ns
        )

    @collection_paused()
    def ask(self) -> Judgement:
        """Lower both graphs as Inductor will, without generating code.

        Raises:
            PeakExceeded: The peak is above the limit.
        """
        forward, backward = self.rewritten.forward, self.rewritten.backward
        visible = self.joint.forward_count
        self.see_forward(
            _torch_compat.schedule_with_inductor(
                forward, is_backward=False, visible=visible, strides={}, config_patches=self.config_patches
            )
        )
        self.see_backward(
            _torch_compat.schedule_with_inductor(
                backward,
                is_backward=True,
                visible=len(_result_names(backward)),
                strides={name: stride for name, stride in self.strides.items() if name and stride is not None},
                donated=_torch_compat.donated_buffers(forward, backward, visible),
                owned=self.copied_inputs,
                config_patches=self.config_patches,
            )
        )
        judgement = self.judgement
        assert judgement is not None
        return judgement

    def observe(self, inputs: tuple[str, ...], is_backward: bool, read: _torch_compat.ReadSchedule) -> None:
        """Told of each graph that Inductor compiles; others than the two do not matter.

        Backward cannot be judged where forward was not seen.

        Raises:
            PeakExceeded: The peak is above the limit.
        """
        if is_backward and self._forward is None:
            return
        module = self.rewritten.backward if is_backward else self.rewritten.forward
        if inputs != tuple(node.name for node in module.graph.find_nodes(op="placeholder")):
            return
        if is_backward:
            self.see_backward(read(self.copied_inputs))
        else:
            self.see_forward(read(()))

    def see_forward(self, schedule: InductorSchedule) -> None:
        """The schedule of the forward graph."""
        # Forward returns the user's results, then what it saves, by the names backward takes it under.
        names = _result_names(self.rewritten.forward)
        self.strides = dict(zip(names, schedule.result_strides, strict=False))
        storages = zip(names, schedule.result_storages, strict=False)
        self._storages = {name: storage for name, storage in storages if name and storage}
        self._forward = self._judged(schedule, self.rewritten.computed_in_forward, self.problem.resident_forward_bytes)

    def see_backward(self, schedule: InductorSchedule) -> None:
        """The schedule of the backward graph."""
        inputs = self.rewritten.backward.graph.find_nodes(op="placeholder")
        handed_over = {n.name: self._storages[n.name] for n in inputs if n.name in self._storages}
        schedule = _with_whole_storages(schedule, handed_over)
        computed, resident_bytes = self.rewritten.computed_in_backward, self.problem.resident_backward_bytes
        judged = self._judged(schedule, computed, resident_bytes)
        # Whichever kernels write and read it, the time is counted here.
        held_bytes = sum(size_bytes for _, size_bytes in {*handed_over.values()})
        self._backward = replace(judged, step_ns=judged.step_ns + round(held_bytes * self.rates.held_ns_per_byte))

    @property
    def copied_inputs(self) -> frozenset[str]:
        """Inputs that forward saves in another layout: backward gets a copy of its own."""
        inputs = self.rewritten.forward.graph.find_nodes(op="placeholder")
        return frozenset(
            node.name
            for node in inputs
            if _torch_compat.has_other_strides(node.meta["val"], self.strides.get(node.name))
        )

    def _judged(self, schedule: InductorSchedule, values: Mapping[str, int], resident_bytes: int) -> Judgement:
        scratch = _scratch(schedule, self.joint, self.problem, values)
        peak_bytes = schedule_peak(schedule, scratch) + resident_bytes
        if self.limit_bytes is not None and peak_bytes > self.limit_bytes:
            raise PeakExceeded(peak_bytes, self.limit_bytes, self.simulated_bytes)
        return Judgement(peak_bytes, _step_ns(schedule, self.problem, values, self.rates))


def _step_ns(schedule: InductorSchedule, problem: RematProblem, values: Mapping[str, int], rates: DeviceRates) -> int:
    """Generated kernels take the time to move their bytes and of slow arithmetic, library calls that of their op.

    What is computed in several loops of one generated function counts once. Where Inductor makes one call of a product
    and a sum, that goes by another name.

    Args:
        schedule: Of one graph.
        problem: The joint graph of both.
        values: What the graph computes, by name.
        rates: Of the device.
    """
    named = {name for names in schedule.kernels for name in names}
    renamed = [problem.values[v] for name, v in values.items() if name not in named]
    total = sum(v.recompute_ns for v in renamed if v.kind in _CALLS)
    for k, names in enumerate(schedule.kernels):
        if schedule.is_loop[k]:
            computed = {values[n] for n in names if n in values}
            total += transfer_ns(schedule.moved_bytes[k], rates) + rates.launch_ns
            total += sum(problem.values[v].arithmetic_ns for v in computed)
        elif schedule.is_call[k]:
            calls = [problem.values[values[n]] for n in names if n in values]
            total += max((v.recompute_ns for v in calls if v.kind in _CALLS), default=0)
    return total


def _with_whole_storages(schedule: InductorSchedule, storages: Mapping[str, tuple[str, int]]) -> InductorSchedule:
    """The schedule with what forward hands over as the storages that really stay alive.

    Parts of a split share one. What backward takes and does not read, such as a tensor of which only the shape matters,
    is alive to its end.

    Args:
        schedule: Of backward.
        storages: The storage behind each input that forward hands over, and its bytes, by name.
    """
    buffers = {b.name: b for b in schedule.buffers}
    written_over = {old: new for new, old in schedule.overwritten.items()}
    sharing: dict[tuple[str, int], list[str]] = {}
    for name, storage in storages.items():
        sharing.setdefault(storage, []).append(name)
    for (_, size_bytes), names in sharing.items():
        read = [buffers[name] for name in names if name in buffers]
        if len(names) == len(read) == 1 and read[0].size_bytes == size_bytes:
            continue
        # What is written over a part keeps the whole alive, too.
        last = max((b.last_kernel for b in read), default=0) if len(read) == len(names) else len(schedule.kernels)
        for b in read:
            del buffers[b.name]
            while (new := written_over.pop(b.name, None)) and buffers[new].size_bytes == b.size_bytes:
                b = buffers.pop(new)
                last = max(last, b.last_kernel)
        buffers[names[0]] = ScheduledBuffer(names[0], size_bytes, size_bytes, 0, last, True)
    return replace(
        schedule, buffers=tuple(buffers.values()), overwritten={new: old for old, new in written_over.items()}
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
    buffers = {b.name: b for b in schedule.buffers}
    pairs = ((buffers[new], buffers[old]) for new, old in schedule.overwritten.items())
    over = {old.name for new, old in pairs if new.size_bytes == old.freed_bytes}
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
        is_library_call = schedule.is_call[k] and not schedule.is_template[k]
        called = [values[n] for n in names if n in values] if is_library_call else []
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
