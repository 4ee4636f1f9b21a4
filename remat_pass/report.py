"""What was decided for one compiled graph, and why: the part of the product a user reads.

A report holds text and numbers only, apart from the two graphs, so that it can be written beside Inductor's cache and
come back in a process whose graphs were never partitioned. Reports are collected in the order the graphs were compiled.
"""

import dataclasses
import json
import threading
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import fx

from remat_pass.auto_budget import AutoBudget
from remat_pass.breakdown import PeakBreakdown
from remat_pass.plan_file import FILE_NAME
from remat_pass.problem import Kind, RematPlan, RematProblem, Value
from remat_pass.step_time import StepTime
from remat_pass.units import format_bytes

_ROWS = 12
_WIDTH = 118
_POINTS = 6
_FROM = "    worked out from  "
_PLANS = "  plans to choose from "


@dataclass(frozen=True, slots=True)
class ValueDecision:
    """What became of one forward value."""

    name: str
    op: str
    action: str
    """"saved", "recomputed" or "dropped" (backward does not need it)."""
    copies: int
    """How often it runs in backward. What is saved runs there too if it is dropped on the way to later readers."""
    size_bytes: int
    """Of the storage it creates; 0 for views."""
    recompute_ns: int
    """Estimated time of one run."""
    reason: str
    source: str | None
    """The user's file:line."""


@dataclass(frozen=True)
class RematReport:
    """Everything decided about one training graph. Sizes in bytes, times in nanoseconds unless named otherwise."""

    graph_id: str
    """Fingerprint of the graph: the key of its plan in a plan file."""
    lowering: str
    origin: str
    """Who made the plan: "planner", "torch" (its own partition, kept unchanged) or "plan file"."""
    budget_bytes: int | None
    predicted_peak_bytes: int
    predicted_step_ns: int
    """Estimated time of forward and backward under this plan; good for comparing plans of one graph."""
    unconstrained_peak_bytes: int
    unconstrained_step_ns: int
    """The same without a budget."""
    unconstrained_is_estimated: bool
    """Whether these two are those of our fastest plan, by simulation: for a budget in bytes Inductor need not be asked
    about torch's own partition, unless it is chosen."""
    least_peak_bytes: int
    """Smallest budget that is accepted; see `least_is_estimated`."""
    margin_permille: int
    """Stated prediction error in thousandths: the measured peak may exceed the prediction by this much."""
    saved_bytes: int
    saved_input_bytes: int
    recompute_ns: int
    planning_seconds: float
    """From the joint graph to the two graphs; after a plan was refused while it compiled, that attempt included."""
    judging_seconds: float
    """Of that, how long Inductor was asked about plans, or compiled one that was refused."""
    sizes_are_hints: bool
    """Whether shapes are dynamic, so that every figure holds at the hinted sizes."""
    unprobed_ops: tuple[str, ...]
    """Ops whose scratch memory is not in the prediction because it could not be measured."""
    overruled: tuple[str, ...]
    """Values whose checkpointing tag the budget could not be met with."""
    peak: PeakBreakdown
    decisions: tuple[ValueDecision, ...]
    joint_code: str
    forward_code: str
    backward_code: str
    plan_json: str
    frontier: tuple[tuple[int, int], ...]
    """(simulated peak in bytes, recompute in ns) of the plans there were to choose from, by falling peak."""
    auto_budget: AutoBudget | None = None
    """What `memory_budget="auto"` was worked out from; None for any other budget."""
    forward_graph: fx.GraphModule | None = field(default=None, compare=False, repr=False)
    """The graph handed to the lowering; None if the report came back from a warm cache."""
    backward_graph: fx.GraphModule | None = field(default=None, compare=False, repr=False)
    problem: RematProblem | None = field(default=None, compare=False, repr=False)
    """What the planner knew about the graph, for `optimality_gap`; None if the report came back from a warm cache."""
    step_time: StepTime = field(default_factory=StepTime, compare=False, repr=False)
    """Filled in while the first steps run."""

    @property
    def measured_step_ns(self) -> int | None:
        """Forward and backward of the fastest of the first steps; None until one has run that compiles nothing."""
        return self.step_time.fastest_ns

    @property
    def least_is_estimated(self) -> bool:
        """Whether `least_peak_bytes` is of a plan that Inductor has not been asked about."""
        return self.lowering == "inductor" and self.least_peak_bytes < self.predicted_peak_bytes

    @property
    def predicted_slowdown(self) -> float:
        """Share by which the step is estimated to take longer than without a budget; 0.1 is 10%."""
        return self.predicted_step_ns / self.unconstrained_step_ns - 1 if self.unconstrained_step_ns else 0.0

    @property
    def headline(self) -> str:
        """One line: the graph, its budget and its peaks."""
        budget = "no budget" if self.budget_bytes is None else f"budget {format_bytes(self.budget_bytes)}"
        return (
            f"graph {self.graph_id[:12]}, lowering {self.lowering}, {budget}: predicted peak "
            f"{format_bytes(self.predicted_peak_bytes)} of {format_bytes(self.unconstrained_peak_bytes)}, "
            f"plan by {self.origin}"
        )

    def __str__(self) -> str:
        """A table for people, without colours."""
        return print_plainly(_summary(self), _decision_table(self))

    def to_json(self) -> str:
        """All but the graphs."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_IN_JSON}
        fields["peak"] = dataclasses.asdict(self.peak)
        fields["decisions"] = [dataclasses.asdict(d) for d in self.decisions]
        fields["auto_budget"] = self.auto_budget and dataclasses.asdict(self.auto_budget)
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RematReport":
        """The report that `to_json` wrote, without the graphs."""
        fields: dict[str, Any] = json.loads(text)
        peak = fields["peak"]
        peak["bytes_by_role"] = tuple((role, count) for role, count in peak["bytes_by_role"])
        peak["largest"] = tuple((name, role, count) for name, role, count in peak["largest"])
        fields["peak"] = PeakBreakdown(**peak)
        fields["decisions"] = tuple(ValueDecision(**d) for d in fields["decisions"])
        fields["frontier"] = tuple((peak_bytes, recompute_ns) for peak_bytes, recompute_ns in fields["frontier"])
        fields["unprobed_ops"], fields["overruled"] = tuple(fields["unprobed_ops"]), tuple(fields["overruled"])
        fields["auto_budget"] = fields["auto_budget"] and AutoBudget(**fields["auto_budget"])
        return cls(**fields)

    def write(self, debug_dir: str) -> Path:
        """Write the graphs as text, the plan and the report into a folder of its own; returns the folder."""
        folder = Path(debug_dir) / f"graph_{self.graph_id[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("joint.py", self.joint_code),
            ("forward.py", self.forward_code),
            ("backward.py", self.backward_code),
            (FILE_NAME, self.plan_json),
            ("report.json", self.to_json()),
            ("report.txt", f"{self}\n"),
        ):
            (folder / name).write_text(text)
        return folder


def print_plainly(*parts: str | Table) -> str:
    """What rich prints of texts and tables, without colours."""
    buffer = StringIO()
    Console(file=buffer, width=_WIDTH, no_color=True).print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


_NOT_IN_JSON = frozenset({"forward_graph", "backward_graph", "problem", "step_time"})

_reports: list[RematReport] = []
_lock = threading.Lock()


def publish(report: RematReport) -> None:
    """Add a report to `reports()`."""
    with _lock:
        _reports.append(report)


def reports() -> tuple[RematReport, ...]:
    """One report per compiled training graph of this process, oldest first."""
    with _lock:
        return tuple(_reports)


def clear_reports() -> None:
    """Forget all reports."""
    with _lock:
        _reports.clear()


def explain_decisions(problem: RematProblem, plan: RematPlan) -> tuple[ValueDecision, ...]:
    """One row per forward value that takes memory or time, or is saved, in joint-graph order."""
    saved, runs = set(plan.saved(problem)), plan.recomputed()
    in_backward = {s.value for s in plan.backward}
    rows = []
    for i, value in enumerate(problem.values):
        if value.needs_tangent or (value.is_free and not value.size.hint) or (value.is_input and i not in saved):
            continue
        action = "saved" if i in saved else "recomputed" if i in in_backward else "dropped"
        moved = action == "recomputed" and i not in runs
        # To have a part again its whole op has to run.
        run_ns = problem.values[value.reads[0]].recompute_ns if value.kind is Kind.PART else value.recompute_ns
        copies = 1 if moved else runs.get(i, 0)
        reason = _reason(value, action, run_ns, moved=moved)
        if action == "saved" and copies:
            reason = f"for its first readers: {reason}"
        rows.append(ValueDecision(value.name, value.op, action, copies, value.size.hint, run_ns, reason, value.source))
    return tuple(rows)


def _reason(value: Value, action: str, run_ns: int, *, moved: bool) -> str:
    if action == "dropped":
        return "backward does not need it"
    if value.kind is Kind.STATIC_INPUT:
        return "a parameter or buffer: there already"
    if value.is_input:
        return "an input of the graph: free to keep"
    if value.wish == {"saved": "save", "recomputed": "recompute"}[action]:
        return "tagged by checkpointing"
    if action == "saved":
        return value.cannot_recompute or f"{_microseconds(run_ns)} to run again"
    if moved:
        return "only backward needs it"
    return value.cannot_save or f"{_microseconds(run_ns)} instead of {format_bytes(value.size.hint)}"


def _microseconds(ns: int) -> str:
    return f"{ns / 1000:.1f} us"


def _summary(report: RematReport) -> str:
    budget = "no budget" if report.budget_bytes is None else format_bytes(report.budget_bytes)
    about = ", estimated" if report.least_is_estimated else ""
    unasked = "  (estimated)" if report.unconstrained_is_estimated else ""
    step = f"of {report.unconstrained_step_ns / 1e6:.3f} ms, estimated"
    lines = [
        f"remat_pass: graph {report.graph_id[:12]}, lowering {report.lowering}, plan by {report.origin}",
        f"  budget             {budget:>12}{'  (auto)' if report.auto_budget else ''}",
        f"  predicted peak     {format_bytes(report.predicted_peak_bytes):>12}  (error within "
        f"{report.margin_permille / 10:g}%), in {report.peak.program} at {report.peak.value}",
        f"    of which         {report.peak.describe()}",
        f"  unconstrained peak {format_bytes(report.unconstrained_peak_bytes):>12}{unasked}",
        f"  least peak         {format_bytes(report.least_peak_bytes):>12}  (smallest budget that is accepted{about})",
        f"  saved              {format_bytes(report.saved_bytes):>12}  and {format_bytes(report.saved_input_bytes)} "
        "of inputs",
        f"  recompute          {report.recompute_ns / 1e6:>9.3f} ms  estimated per step",
        f"  slowdown           {report.predicted_slowdown:>+12.1%}  {step}",
        f"  planning           {report.planning_seconds:>9.2f} s",
    ]
    if report.measured_step_ns is not None:
        lines.insert(-1, f"  measured step      {report.measured_step_ns / 1e6:>9.3f} ms  fastest of the first")
    if len(report.frontier) > 1:
        shown = report.frontier[:: -(-len(report.frontier) // _POINTS)]
        points = (f"{format_bytes(peak)} for {ns / 1e6:.3f} ms" for peak, ns in (*shown, report.frontier[-1]))
        listed = f"{len(report.frontier)}, simulated: {', '.join(dict.fromkeys(points))}"
        lines += wrap(listed, _WIDTH, initial_indent=_PLANS, subsequent_indent=" " * len(_PLANS))
    if report.auto_budget:
        lines[2:2] = wrap(
            report.auto_budget.describe(), _WIDTH, initial_indent=_FROM, subsequent_indent=" " * len(_FROM)
        )
    if report.sizes_are_hints:
        lines.append("  shapes are dynamic: all figures hold at the sizes seen while compiling")
    if report.unprobed_ops:
        lines.append(f"  scratch memory unknown, not in the prediction: {', '.join(report.unprobed_ops)}")
    if report.overruled:
        lines.append(f"  checkpointing tags overruled by the budget: {len(report.overruled)} values")
    return "\n".join(lines)


def _decision_table(report: RematReport) -> Table:
    """The largest values, grouped by what became of them."""
    table = Table(box=None, pad_edge=False)
    # Where the table is too wide, the others are wrapped and these stay whole.
    table.add_column("action", no_wrap=True)
    table.add_column("value")
    table.add_column("op")
    table.add_column("bytes", no_wrap=True, justify="right")
    table.add_column("reason")
    table.add_column("source", no_wrap=True, justify="right")
    for action in ("saved", "recomputed"):
        rows = [d for d in report.decisions if d.action == action and d.op != "placeholder"]
        rows.sort(key=lambda d: -d.size_bytes)
        for d in rows[:_ROWS]:
            times = f"{action} x{d.copies}" if d.copies > 1 else action
            source = "" if d.source is None else "/".join(d.source.split("/")[-1:])
            table.add_row(times, d.name, d.op, format_bytes(d.size_bytes), d.reason, source)
        if len(rows) > _ROWS:
            rest = sum(d.size_bytes for d in rows[_ROWS:])
            table.add_row(action, f"and {len(rows) - _ROWS} more", "", format_bytes(rest), "", "")
    return table
