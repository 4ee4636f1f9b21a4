"""The whole path on one screen: capture, analyze, solve, rewrite, verify, report.

Everything else in the package is one of these steps or something one of them needs. Start reading here.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import fx

from remat_pass import _torch_compat
from remat_pass.analysis import analyze
from remat_pass.breakdown import break_down
from remat_pass.choice import (
    Choice,
    IncumbentPlan,
    Judge,
    Judgement,
    infeasible,
    op_by_op_peak,
    replaceable_above,
    simulated_judge,
)
from remat_pass.errors import OptionError, PlanError, RematWarning
from remat_pass.first_fit import first_believed, first_fit
from remat_pass.incumbent import Incumbent, torch_partition
from remat_pass.inductor_peak import Witness, inductor_judge, judge_graphs
from remat_pass.joint_graph import JointGraph, capture
from remat_pass.kernel_times import rates_of
from remat_pass.ops import is_convolution
from remat_pass.options import Options
from remat_pass.plan_file import dump_plan, load_plan
from remat_pass.problem import Kind, RematPlan, RematProblem
from remat_pass.report import RematReport, explain_decisions
from remat_pass.rewrite import Rewritten, rewrite
from remat_pass.schedule import plan_ns, plan_of
from remat_pass.stopwatch import Stopwatch
from remat_pass.storage import main_device_type
from remat_pass.units import format_bytes
from remat_pass.verify import verify

log = logging.getLogger(__name__)

_REACH = ((16, True), (8, False), (0, False))
"""`RematProblem.calls_apart` and `delays_loops` of the orders that are planned, one after the other, until a plan fits.
The first is about as far as Inductor itself fuses: the fewest launches and loads. The last ones take less memory; which
of them takes the least depends on the graph."""

_SLACK_PERMILLE = 10
"""What is kept free of a budget where simulated peaks are believed: the real one may be so many thousandths above."""

_FAR_BELOW = 0.8
"""For a budget in bytes below this share of the peak that is simulated for torch's own partition, Inductor is not asked
about that, which spares a tenth of the compile time. The judged peak was at least 0.95x of it on seven models (U-Net
with autocast)."""


@dataclass(frozen=True)
class Partitioned:
    """What becomes of one joint graph."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    report: RematReport
    witness: Witness | None
    """Where a simulated peak was believed: what will tell the real one while Inductor compiles."""


def partition(
    module: fx.GraphModule,
    inputs: Any,
    options: Options,
    *,
    forward_count: int,
    static_indices: Sequence[int] | None,
    trusts: bool = False,
    excess_permille: int = 0,
) -> Partitioned:
    """Split a joint graph into a forward and a backward graph that stay within the budget.

    Args:
        module: AOTAutograd's joint graph; left as it was.
        inputs: Its fake inputs.
        options: Resolved options.
        forward_count: How many leading outputs are forward's.
        static_indices: Positions of parameters and buffers among the primals, or None if unknown.
        trusts: Whether a simulated peak may be believed for now, because a witness will see the compilation.
        excess_permille: By how many thousandths such a peak has turned out too low before.

    Raises:
        OptionError: The budget is "auto", which only the backend can work out, from the inputs that Dynamo captured.
        InfeasibleBudgetError: No plan fits, and `on_infeasible` is "raise".
        PlanError: `options.plan` has no usable plan for this graph.
        VerificationError: A bug of this package was caught.
    """
    begin = time.perf_counter()
    if isinstance(options.memory_budget, str):
        raise OptionError(f'memory_budget={options.memory_budget!r} needs torch.compile(backend="remat"); pass bytes')
    fuses = options.lowering == "inductor"
    captured = capture(module, forward_count=forward_count, static_indices=static_indices)
    joint, problem, unprobed = analyze(captured, fuses=fuses, cost_model=options.cost_model)
    rates = rates_of(main_device_type(joint.nodes))
    patches = inductor_patches(options, checkpoints=bool(captured.wishes))
    ordered = orders_of(problem, patches)
    judging = Stopwatch()
    judged_graphs = judging.timed(partial(judge_graphs, joint, problem=problem, rates=rates, config_patches=patches))
    torchs = torch_partition(captured, problem, inputs) if fuses else None
    believable = op_by_op_peak(problem) if trusts and _may_be_trusted(joint, problem, options, patches) else 0
    rival, trusts = _rival(torchs, ordered[0], options.memory_budget, judged_graphs, believable, excess_permille)
    settled = None
    if rival and trusts:
        settled = first_believed(ordered, options.memory_budget, rival, _SLACK_PERMILLE + excess_permille)
    if settled:
        choice, problem = settled
        plan, judge = plan_of(problem, choice.candidate.decisions), simulated_judge(problem)
    else:
        orders = [
            (p, judging.timed(inductor_judge(joint, p, rates, patches)) if fuses else simulated_judge(p))
            for p in ordered
        ]
        choice, problem, judge = _judged(orders, options.memory_budget, torchs, rival, judged_graphs)
        if options.plan:
            plan, problem, judge = _replayed(orders, choice, options)
        else:
            plan = _planned(problem, choice, options)
    if torchs and choice.is_incumbent and options.plan is None:
        graphs, predicted, origin = torchs.graphs, choice.unconstrained, "torch"
    else:
        graphs = rewrite(joint, problem, plan)
        verify(joint, problem, plan, graphs)
        predicted, origin = judge(plan), "plan file" if options.plan else "planner"
    if choice.unconstrained_is_estimated:
        fastest = choice.frontier[0]
        step_ns = predicted.step_ns - plan_ns(problem, plan) + fastest.recompute_ns
        choice = replace(choice, unconstrained=replace(choice.unconstrained, step_ns=step_ns))
    report = _report(joint, problem, plan, choice, graphs, predicted, options, unprobed, origin, begin, judging.seconds)
    witness = None
    if settled:
        # At the fraction 1.0 the peak of torch's own partition is accepted as it is.
        budget_bytes = choice.budget_bytes
        accepted = replaceable_above(believable) if budget_bytes is None else problem.without_margin(budget_bytes)
        limit = max(accepted, predicted.peak_bytes)
        # Inductor works on the graphs that it is given.
        witness = Witness(joint, graphs.copy(), problem, rates, patches, limit, predicted.peak_bytes)
    return Partitioned(graphs.forward, graphs.backward, report, witness)


def _may_be_trusted(joint: JointGraph, problem: RematProblem, options: Options, patches: dict[str, Any]) -> bool:
    """Whether simulated peaks are near those that Inductor will show, and it will show them.

    Dynamic shapes have no sizes to go by. Convolutions are laid out otherwise, which matters to a budget: without one
    torch's own partition stays, and need only be seen not to take too much.
    """
    is_observed = isinstance(patches.get("_post_fusion_custom_pass"), _torch_compat.KernelsInOrder)
    convolves = options.memory_budget is not None and any(is_convolution(node) for node in joint.nodes)
    return problem.fuses and is_observed and not (options.plan or problem.symbolic or convolves)


def _rival(
    torchs: Incumbent | None,
    problem: RematProblem,
    memory_budget: float | int | None,
    judged_graphs: Callable[[Rewritten], Judgement],
    believable_bytes: int,
    excess_permille: int,
) -> tuple[IncumbentPlan | None, bool]:
    """What torch's own partition is like, and whether simulated peaks may be believed beside it.

    It is simulated where that is believed, or a budget in bytes is far below its peak. A fraction is one of the judged
    peak.

    Args:
        torchs: Torch's own partition.
        problem: In the first order.
        memory_budget: Fraction, bytes or None.
        judged_graphs: Says what graphs are really like.
        believable_bytes: The largest peak of torch's partition beside which simulated ones are believed, if any.
        excess_permille: By how many thousandths they have turned out too low before.
    """
    if torchs is None:
        return None, False
    if torchs.is_wrong:
        # It tells what a plan may take that replaces it, and what a fraction is of.
        is_needed = not isinstance(memory_budget, int)
        return IncumbentPlan(torchs.keep, judged_graphs(torchs.graphs), is_wrong=True) if is_needed else None, False
    estimate = simulated_judge(problem)(torchs.plan(problem))
    trusts = 0 < estimate.peak_bytes * (1000 + excess_permille) <= believable_bytes * 1000
    is_far_below = isinstance(memory_budget, int) and memory_budget < _FAR_BELOW * estimate.peak_bytes
    if is_far_below or (trusts and not isinstance(memory_budget, float)):
        rival = IncumbentPlan(torchs.keep, estimate, is_estimated=True)
    else:
        rival = IncumbentPlan(torchs.keep, judged_graphs(torchs.graphs))
    # Above that a plan of ours may replace it, and which is better is not believed.
    return rival, trusts and rival.judgement.peak_bytes <= believable_bytes


def _judged(
    orders: Sequence[tuple[RematProblem, Judge]],
    memory_budget: float | int | None,
    torchs: Incumbent | None,
    rival: IncumbentPlan | None,
    judged_graphs: Callable[[Rewritten], Judgement],
) -> tuple[Choice, RematProblem, Judge]:
    """The choice by judgement, and its order."""
    found = first_fit(orders, memory_budget, rival)
    choice, _, _ = found
    if torchs and choice.unconstrained_is_estimated and (choice.is_incumbent or not choice.fits):
        # Whether it fits is not for an estimate to say, nor what share of its peak is enough.
        return first_fit(orders, memory_budget, IncumbentPlan(torchs.keep, judged_graphs(torchs.graphs)))
    return found


def orders_of(problem: RematProblem, patches: dict[str, Any]) -> list[RematProblem]:
    """The problem in the orders that Inductor can be kept to: fewer and fewer library calls between fused loops."""
    keeps_order = patches.get("inductor_choices_class") is _torch_compat.order_keeping_choices
    reach = _REACH if keeps_order and problem.fuses else _REACH[:1]
    return [replace(problem, calls_apart=calls, delays_loops=delays) for calls, delays in reach]


def inductor_patches(options: Options, *, checkpoints: bool) -> dict[str, Any]:
    """The Inductor options that a graph is compiled with; `checkpoints` tells whether the model has some inside.

    A pass shows us the schedules. Under a budget, or where the model asks for less memory itself, it also keeps them in
    order; loops and products stay near the place where the plan has them; and a dead buffer is freed rather than kept
    for the next one of its size, which Inductor allows itself up to its own estimate of the peak. A caching allocator
    makes that free. The user's own settings go first.
    """
    ours: dict[str, Any] = {"_post_fusion_custom_pass": _torch_compat.KernelsInOrder()}
    frugal: dict[str, Any] = {}
    if checkpoints or options.memory_budget is not None:
        frugal["allow_buffer_reuse"] = False
        ours["inductor_choices_class"] = _torch_compat.order_keeping_choices
        ours["post_grad_custom_pre_pass"] = _torch_compat.far_sums_apart()
    frugal |= {option: value for option, value in ours.items() if not _torch_compat.user_has_set(option, value)}
    return {**frugal, **dict(options.inductor)}


def _planned(problem: RematProblem, choice: Choice, options: Options) -> RematPlan:
    if not choice.fits:
        error = infeasible(problem, choice)
        if options.on_infeasible == "raise":
            raise error
        warnings.warn(f"{error} Going on with the least-peak plan.", RematWarning, stacklevel=2)
    elif choice.overruled:
        names = ", ".join(problem.values[i].name for i in choice.overruled)
        warnings.warn(
            f"memory_budget={choice.budget_bytes} bytes cannot be met with the checkpointing tags of the model; "
            f"{len(choice.overruled)} values are not treated as tagged: {names}.",
            RematWarning,
            stacklevel=2,
        )
    return plan_of(problem, choice.candidate.decisions)


def _replayed(
    orders: Sequence[tuple[RematProblem, Judge]], choice: Choice, options: Options
) -> tuple[RematPlan, RematProblem, Judge]:
    """The plan of the file, in the first order in which it fits the budget."""
    assert options.plan is not None
    plan = load_plan(options.plan, orders[0][0])
    peaks: list[int] = []
    for problem, judge in orders:
        if choice.budget_bytes is None:
            return plan, problem, judge
        peaks.append(problem.with_margin(judge(plan).peak_bytes))
        if peaks[-1] <= choice.budget_bytes:
            return plan, problem, judge
    raise PlanError(
        f"plan={options.plan!r} peaks at {format_bytes(min(peaks))}, prediction error included, above "
        f"memory_budget={format_bytes(choice.budget_bytes or 0)}. Raise the budget or drop one of the two options."
    )


def _report(
    joint: JointGraph,
    problem: RematProblem,
    plan: RematPlan,
    choice: Choice,
    graphs: Rewritten,
    predicted: Judgement,
    options: Options,
    unprobed: tuple[str, ...],
    origin: str,
    begin: float,
    judging_seconds: float,
) -> RematReport:
    peak = break_down(problem, plan)
    saved = [problem.values[i] for i in plan.saved(problem)]
    return RematReport(
        graph_id=problem.fingerprint,
        lowering=options.lowering,
        origin=origin,
        budget_bytes=choice.budget_bytes,
        predicted_peak_bytes=predicted.peak_bytes,
        predicted_step_ns=predicted.step_ns,
        unconstrained_peak_bytes=choice.unconstrained.peak_bytes,
        unconstrained_step_ns=choice.unconstrained.step_ns,
        unconstrained_is_estimated=choice.unconstrained_is_estimated,
        least_peak_bytes=choice.least_peak_bytes,
        margin_permille=problem.margin_permille,
        saved_bytes=sum(v.size.hint for v in saved if not v.is_input),
        saved_input_bytes=sum(v.size.hint for v in saved if v.kind is Kind.ACTIVATION_INPUT),
        recompute_ns=plan_ns(problem, plan),
        planning_seconds=time.perf_counter() - begin,
        judging_seconds=judging_seconds,
        sizes_are_hints=problem.symbolic,
        unprobed_ops=unprobed,
        overruled=tuple(problem.values[i].name for i in choice.overruled),
        peak=peak,
        decisions=explain_decisions(problem, plan),
        joint_code=_code(joint.module),
        forward_code=_code(graphs.forward),
        backward_code=_code(graphs.backward),
        plan_json=dump_plan(problem, plan),
        frontier=tuple((c.peak_bytes, c.recompute_ns) for c in choice.frontier),
        forward_graph=graphs.forward,
        backward_graph=graphs.backward,
        problem=problem,
    )


def _code(module: fx.GraphModule) -> str:
    return module.print_readable(print_output=False)
