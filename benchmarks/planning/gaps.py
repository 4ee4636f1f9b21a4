"""Small real joint graphs: ours against the exact optimum, five budgets each.

The graphs are those of `tests.support.small_graphs`, op by op. Budgets are spaced evenly from the least peak that any
plan reaches (found by brute force where there are few values, else the least of ours) to the peak of saving everything.
The optimum is that of `remat_pass.gap`: brute force or a mixed-integer program, several copies included, with forward
in the order of the graph; where it is not proven in time there is a bracket between a lower bound and ours.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from benchmarks.contest.goals import Goal
from benchmarks.planning.section import Row, Run, Section, Table, none_of, share
from remat_pass.exact import least_peak_bytes
from remat_pass.gap import gap_to_optimum
from remat_pass.liveness import simulate
from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_ns, plan_of, program_of
from remat_pass.search import Candidate
from remat_pass.solver import fastest_within, frontier
from remat_pass.stages import game_of
from tests.support.small_graphs import MODELS, capture_problem

_BUDGETS = 5
_MOST_ITEMS = 16
"""Values up to which the least peak is found by bisection over brute force: some seconds."""
_TIME_LIMIT_S = 10.0
"""For the optimum of one point."""
_GAP_GOALS = {"mean": 0.02, "worst": 0.1}
_TRIAL_GRAPHS = ("mlp, 4", "u-net, 1", "residual mlp, 2")


def measure(run: Run) -> list[Row]:
    """One row per graph and budget."""
    rows: list[Row] = []
    names = _TRIAL_GRAPHS if run.trial else tuple(MODELS)
    for number, name in enumerate(names, 1):
        run.doing(f"{name} ({number} of {len(names)})")
        build, inputs = MODELS[name]
        rows += points(name, capture_problem(build(), inputs()))
    return rows


def points(name: str, problem: RematProblem) -> Iterator[Row]:
    """One row per budget."""
    game = game_of(problem)
    items = len(game.items) + sum(item.rng_bytes > 0 for item in game.items)
    candidates = frontier(problem, honour_wishes=False)
    least = least_peak_bytes(problem) if items <= _MOST_ITEMS else None
    low, high = candidates[-1].peak_bytes if least is None else least, candidates[0].peak_bytes
    for k in range(_BUDGETS):
        limit = low + (high - low) * k // (_BUDGETS - 1)
        begin = time.perf_counter()
        yield {
            "graph": name,
            "values": len(problem.values),
            "decisions": items,
            "budget": k,
            "limit_bytes": limit,
            "least_bytes": least,
            "our_least_bytes": candidates[-1].peak_bytes,
            **_figures(problem, fastest_within(candidates, limit), limit),
            "seconds": time.perf_counter() - begin,
        }


def _figures(problem: RematProblem, candidate: Candidate | None, limit: int) -> Row:
    """Ours and the best; a limit that none of ours fits is one that the best does, being no less than the least."""
    if candidate is None:
        return dict.fromkeys(("ours_ns", "peak_bytes", "depth_first", "bound_ns", "optimum_ns", "step_ns"))
    plan = plan_of(problem, candidate.decisions)
    gap = gap_to_optimum(problem, plan_ns(problem, plan), limit, time_limit_s=_TIME_LIMIT_S)
    return {
        "ours_ns": gap.recompute_ns,
        "peak_bytes": simulate(problem, program_of(problem, plan)).peak_bytes,
        "depth_first": candidate.proposal.depth_first,
        "bound_ns": gap.lower_bound_ns,
        "optimum_ns": gap.optimum_ns,
        "step_ns": gap.step_ns,
    }


def gap(row: Row) -> float:
    """By what share our step is slower than the best one (or than the bound, where that is not proven)."""
    best = row["bound_ns"] if row["optimum_ns"] is None else row["optimum_ns"]
    return max(0, row["ours_ns"] - best) / max(1, row["step_ns"] + best)


def tables(rows: Sequence[Row]) -> list[Table]:
    """A summary, then a row per graph."""
    note = (
        "A gap is how much slower our step is than the best; brackets [lower bound, ours] are of recompute as a share "
        "of the step, where the optimum was not proven in time. Least: ours over the true one."
    )
    headings = ("graph", "values", "decisions", "least", "gaps at five budgets, the smallest first")
    graphs = tuple(_graph_cells(_of_graph(rows, name)) for name in _graphs(rows))
    return [Table("Gap to the optimum", headings, graphs, note)]


def _graph_cells(rows: Sequence[Row]) -> tuple[str, ...]:
    first = rows[0]
    least = None if first["least_bytes"] is None else first["our_least_bytes"] / first["least_bytes"]
    cells = ", ".join(map(_gap_cell, rows))
    return first["graph"], str(first["values"]), str(first["decisions"]), f"{least:.3f}x" if least else "–", cells


def _gap_cell(row: Row) -> str:
    if row["ours_ns"] is None:
        return "**none fits**"
    if row["optimum_ns"] is not None:
        return share(gap(row))
    step = row["step_ns"]
    return f"[{share(row['bound_ns'] / step)}, {share(row['ours_ns'] / step)}]"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Gaps are goals where they are proven; what must never happen is one over all points."""
    planned = [row for row in rows if row["ours_ns"] is not None]
    proven = [row for row in planned if row["optimum_ns"] is not None]
    known = [row for row in rows if row["least_bytes"] is not None]
    where = f"{len(_graphs(rows))} graphs, {len(rows)} points"
    missing = [_point(row) for row in rows if row["ours_ns"] is None]
    over = [_point(row) for row in planned if row["peak_bytes"] > row["limit_bytes"]]
    same_order = [row for row in proven if not row["depth_first"]]
    impossible = [_point(row) for row in same_order if row["ours_ns"] < row["optimum_ns"]]
    larger = [
        _point(small)
        for name in _graphs(rows)
        for small, large in pairwise(_of_graph(planned, name))
        if small["peak_bytes"] > large["peak_bytes"]
    ]
    least = f"{len(_graphs(known))} graphs whose least peak is known"
    return [
        *_gap_goals(where, proven),
        none_of("a plan wherever one exists", least, missing, len(known)),
        none_of("never over budget", where, over, len(planned)),
        none_of("never a larger peak at a smaller budget", where, larger, len(planned)),
        none_of("never better than the optimum of the same order", where, impossible, len(same_order)),
    ]


def _gap_goals(where: str, proven: Sequence[Row]) -> list[Goal]:
    mean_goal, worst_goal = (f"{name} gap to the optimum <= {limit:.0%}" for name, limit in _GAP_GOALS.items())
    if not proven:
        return [Goal(goal, where, "not measured", None) for goal in (mean_goal, worst_goal)]
    mean, worst = statistics.fmean(map(gap, proven)), max(proven, key=gap)
    return [
        Goal(mean_goal, where, f"{share(mean)} over {len(proven)} proven points", mean <= _GAP_GOALS["mean"]),
        Goal(worst_goal, where, f"{share(gap(worst))} ({_point(worst)})", gap(worst) <= _GAP_GOALS["worst"]),
    ]


def _point(row: Row) -> str:
    return f"{row['graph']}, budget {row['budget']}"


def _graphs(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["graph"] for row in rows))


def _of_graph(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["graph"] == name]


SECTION = Section("gaps", "Small real graphs against the exact optimum", measure, tables, goals)
