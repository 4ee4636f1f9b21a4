"""Planning time and memory by graph size.

*Repeated* problems are those of a captured Llama-style model (width 256, batch 2 x 512) of four layers, repeated to any
depth (`repeat`), for both lowerings; only solving is timed there. *Traced* graphs are of the same model at small width,
decomposed as Inductor has it, for as many layers as are traced within a minute or so: analysis is timed too, and
torch's own partitioner on the same graph. Times are of the processor, the least of three runs in a process per row,
without tracing.
"""

import pickle
from collections.abc import Sequence

from benchmarks.contest.goals import Goal
from benchmarks.planning.joint import llama_joint
from benchmarks.planning.repeat import Template
from benchmarks.planning.section import Row, Run, Section, Table, at_most, mb
from benchmarks.planning.worker import worker
from remat_pass.analysis import analyze

_NODES = (900, 1_750, 3_500, 7_000, 14_000, 28_000, 100_000)
_TRACED_LAYERS = (4, 8, 16, 32)
_TRIAL_NODES, _TRIAL_LAYERS = (900, 1_750), (4,)
_GOALS = {7_000: 2.0, 14_000: 4.0, 100_000: 40.0}
"""Seconds to plan in, by joint nodes."""
_MOST_BYTES = 2 * 2**30
_TEMPLATE_LAYERS, _WIDTH, _HEADS, _CONTEXT = 4, 256, 4, 512
_TIMEOUT_SECONDS = 900.0
_LOWERINGS = {False: "eager", True: "inductor"}


def measure(run: Run) -> list[Row]:
    """A row per size and lowering, then one per traced graph."""
    rows = []
    for fuses, lowering in _LOWERINGS.items():
        run.doing(f"capturing {_TEMPLATE_LAYERS} layers for {lowering}")
        path = run.scratch / f"template_{lowering}.pickle"
        path.write_bytes(pickle.dumps(_template(decomposed=fuses)))
        for nodes in _TRIAL_NODES if run.trial else _NODES:
            run.doing(f"solving {nodes:,} nodes, {lowering}")
            arguments = {"template": str(path), "nodes": nodes}
            rows.append({"kind": "repeated", "wanted": nodes, "fuses": fuses, **_ask(run, "solve", arguments)})
    for layers in _TRIAL_LAYERS if run.trial else _TRACED_LAYERS:
        run.doing(f"tracing {layers} layers")
        rows.append({"kind": "traced", "fuses": True, **_ask(run, "trace", {"layers": layers})})
    return rows


def _template(*, decomposed: bool) -> Template:
    joint, _ = llama_joint(_TEMPLATE_LAYERS, width=_WIDTH, heads=_HEADS, context=_CONTEXT, decomposed=decomposed)
    return Template(analyze(joint, fuses=decomposed, cost_model="roofline")[1], _TEMPLATE_LAYERS)


def _ask(run: Run, name: str, arguments: Row) -> Row:
    with worker(run.scratch, f"sizes_{name}") as process:
        return process.ask({"call": f"benchmarks.planning.sizes_work:{name}", **arguments}, _TIMEOUT_SECONDS)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Repeated problems and traced graphs."""
    headings = ("joint nodes", "layers", "lowering", "candidates", "solving s", "wall s", "memory MB", "of it planning")
    repeated = tuple(
        (
            f"{row['nodes']:,}",
            str(row["layers"]),
            _LOWERINGS[row["fuses"]],
            str(row["candidates"]),
            f"{row['solve_seconds']:.2f}",
            f"{row['solve_wall_seconds']:.2f}",
            mb(row["process_bytes"]),
            mb(row["grown_bytes"]),
        )
        for row in _of_kind(rows, "repeated")
    )
    note = "Least of three processor times; memory is of the whole process, and what it grew by while planning."
    traced_headings = ("joint nodes", "layers", "analysis s", "solving s", "both", "torch's partitioner s", "ratio")
    traced_headings += ("probing kernels, once, s", "tracing s")
    traced = tuple(map(_traced_cells, _of_kind(rows, "traced")))
    return [
        Table("Layers repeated to size", headings, repeated, note),
        Table("Traced graphs, beside torch's partitioner", traced_headings, traced, "Least of three processor times."),
    ]


def _traced_cells(row: Row) -> tuple[str, ...]:
    ours = row["analysis_seconds"] + row["solve_seconds"]
    return (
        f"{row['nodes']:,}",
        str(row["layers"]),
        f"{row['analysis_seconds']:.2f}",
        f"{row['solve_seconds']:.2f}",
        f"{ours:.2f}",
        f"{row['torch_seconds']:.2f}",
        f"{ours / row['torch_seconds']:.2f}x",
        f"{row['probing_seconds']:.2f}",
        f"{row['trace_seconds']:.1f}",
    )


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Times, analysis included at the time per node of the largest traced graph, and memory."""
    per_node = analysis_seconds_per_node(rows)
    found = []
    for nodes, limit in _GOALS.items():
        for fuses, lowering in _LOWERINGS.items():
            row = next((r for r in _of_kind(rows, "repeated") if (r["wanted"], r["fuses"]) == (nodes, fuses)), None)
            found.append(
                _time_goal(f"planned within {limit:g} s", f"{nodes:,} nodes, {lowering}", row, per_node, limit)
            )
    most = max((row["process_bytes"] for row in _of_kind(rows, "repeated")), default=None)
    found.append(at_most("memory < 2 GiB, whole process", "largest graph", most, _MOST_BYTES, "{:,.0f} bytes"))
    return found


def analysis_seconds_per_node(rows: Sequence[Row]) -> float | None:
    """Of the largest traced graph."""
    traced = _of_kind(rows, "traced")
    return traced[-1]["analysis_seconds"] / traced[-1]["nodes"] if traced else None


def _time_goal(goal: str, where: str, row: Row | None, per_node: float | None, limit: float) -> Goal:
    if row is None or per_node is None:
        return Goal(goal, where, "not measured", None)
    analysis = per_node * row["nodes"]
    total = row["solve_seconds"] + analysis
    figure = f"{total:.2f} s = {row['solve_seconds']:.2f} solving + {analysis:.2f} analysis"
    return Goal(goal, where, figure, total <= limit)


def _of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


SECTION = Section("sizes", "Planning time and memory by graph size", measure, tables, goals)
