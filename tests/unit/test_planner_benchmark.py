"""The planner benchmark's tables and goals, from rows written by hand, and its results file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import planner
from benchmarks.contest.goals import Goal
from benchmarks.planning import chains, deep, determinism, draws, gaps, gpu, results, section, sizes
from benchmarks.planning.repeat import Template
from benchmarks.planning.results import Measured
from benchmarks.planning.section import Run, Section, Table
from remat_pass.problem import RematProblem
from remat_pass.solver import frontier
from tests.support.problems import MIB, US, Draft, chain

Row = dict[str, Any]


def verdicts(goals: list[Goal]) -> list[bool | None]:
    return [goal.met for goal in goals]


# Gaps.


def gap_row(budget: int, ours_ns: int | None, optimum_ns: int | None, *, peak_bytes: int = 0, **more: Any) -> Row:
    fields = {"graph": "g", "values": 9, "decisions": 4, "budget": budget, "limit_bytes": 100 + budget}
    fields |= {"least_bytes": 100, "our_least_bytes": 110, "step_ns": 1000, "bound_ns": 0, "peak_bytes": peak_bytes}
    fields |= {"depth_first": False}
    return {**fields, "ours_ns": ours_ns, "optimum_ns": optimum_ns, **more}


def test_a_gap_is_a_share_of_the_best_step() -> None:
    assert gaps.gap(gap_row(0, 120, 100)) == pytest.approx(20 / 1100)
    assert gaps.gap(gap_row(0, 120, None, bound_ns=50)) == pytest.approx(70 / 1050)


def test_gaps_count_where_the_optimum_is_proven() -> None:
    mean, worst, *_ = gaps.goals([gap_row(0, 111, 100), gap_row(1, 100, 100), gap_row(2, 900, None)])
    assert (mean.met, worst.met) == (True, True)
    assert mean.figure == "0.50% over 2 proven points"
    mean, worst, *_ = gaps.goals([gap_row(0, 221, 100), gap_row(1, 100, 100)])
    assert (mean.met, worst.met) == (False, False)


@pytest.mark.parametrize(
    ("rows", "broken"),
    [
        ([gap_row(0, 1, 1), gap_row(1, 1, 1)], []),
        ([gap_row(0, None, None), gap_row(1, 1, 1)], ["a plan wherever one exists"]),
        ([gap_row(0, 1, 1, peak_bytes=101)], ["never over budget"]),
        (
            [gap_row(0, 1, 1, peak_bytes=90), gap_row(1, 1, 1, peak_bytes=80)],
            ["never a larger peak at a smaller budget"],
        ),
        ([gap_row(0, 1, 2)], ["never better than the optimum of the same order"]),
        ([gap_row(0, 1, 2, depth_first=True)], []),
    ],
)
def test_what_must_never_happen_to_a_plan(rows: list[Row], broken: list[str]) -> None:
    assert [goal.goal for goal in gaps.goals(rows)[2:] if goal.met is False] == broken


def test_a_table_of_gaps_shows_brackets_and_budgets_that_no_plan_fits() -> None:
    ((cells,),) = [t.rows for t in gaps.tables([gap_row(0, None, None), gap_row(1, 200, None, bound_ns=100)])]
    assert cells == ("g", "9", "4", "1.100x", "**none fits**, [10.00%, 20.00%]")


def test_random_problems_are_the_same_every_time_and_planned_within_their_budgets(tmp_path: Path) -> None:
    run = Run(trial=True, scratch=tmp_path, doing=lambda _: None)
    rows = draws.measure(run)
    assert rows == draws.measure(run)
    met = {goal.goal: goal.met for goal in draws.goals(rows)}
    assert met["never over budget"] and met["never a larger peak at a smaller budget"]


# Chains.


@pytest.mark.parametrize(("n", "extra", "units"), [(10, 0, 12), (100, 100, 14), (100, 664, 5), (10, 45, 3)])
def test_revolve(n: int, extra: float, units: int) -> None:
    # Without a rerun all layers but the last are kept, beside three units; with all of them, none is.
    assert chains.revolve_units(n, extra) == units


@pytest.mark.parametrize("n", [4, 9, 16])
def test_no_plan_of_ours_is_below_revolve(n: int) -> None:
    for candidate in frontier(chain(n)):
        assert candidate.peak_bytes >= MIB * chains.revolve_units(n, candidate.recompute_ns / US)


def test_goals_of_chains() -> None:
    points = [[101, 0], [18, 100], [12, 600], [5, 700]]
    every, one, several = chains.goals([{"n": 100, "points": points, "seconds": 1.0}])
    assert verdicts([every, one, several]) == [True, True, True]
    assert several.figure == "12.0"  # 700 runs are more than log2(100) forwards
    points = [[101, 0], [19, 100], [18, 600]]
    assert verdicts(chains.goals([{"n": 100, "points": points, "seconds": 1.0}])) == [False, False, False]


# Sizes.


def solved(nodes: int, seconds: float, fuses: bool, process_bytes: int = 2**30) -> Row:
    row = {"kind": "repeated", "wanted": nodes, "nodes": nodes, "layers": 4, "fuses": fuses, "candidates": 9}
    return row | {"solve_seconds": seconds, "solve_wall_seconds": 1, "grown_bytes": 1, "process_bytes": process_bytes}


def traced(analysis: float, torchs: float) -> Row:
    row = {"kind": "traced", "nodes": 1000, "layers": 4, "fuses": True, "trace_seconds": 1, "probing_seconds": 1}
    return row | {"analysis_seconds": analysis, "solve_seconds": 0.5, "torch_seconds": torchs}


def test_goals_of_planning_time_add_analysis_per_node() -> None:
    rows = [solved(7000, 1.0, False), solved(7000, 1.4, True), traced(0.1, 0.5)]
    found = {(goal.goal, goal.where): goal for goal in sizes.goals(rows)}
    assert found["planned within 2 s", "7,000 nodes, eager"].met
    assert found["planned within 2 s", "7,000 nodes, inductor"].figure == "2.10 s = 1.40 solving + 0.70 analysis"
    assert found["planned within 2 s", "7,000 nodes, inductor"].met is False
    assert found["planned within 40 s", "100,000 nodes, eager"].met is None
    assert found["memory < 2 GiB, whole process", "largest graph"].met
    (row,) = sizes.tables(rows)[1].rows
    assert row[4:7] == ("0.60", "0.50", "1.20x")


def test_times_are_not_judged_without_a_time_of_analysis() -> None:
    goals = sizes.goals([solved(7000, 1.0, False, process_bytes=2**31 + 1)])
    assert {goal.met for goal in goals if goal.goal.startswith("planned")} == {None}
    assert next(goal for goal in goals if goal.goal.startswith("memory")).met is False


def layered(layers: int) -> RematProblem:
    """a = f(r, w), o = g(a), r' = r + o; the head and the tail of every part differ."""
    draft = Draft()
    for i in range(layers):
        draft.input(f"w{i}", mib=3, static=True)
    draft.input("x")
    draft.tangent("t")
    draft.op("r", "x", mib=7)
    previous = "r"
    for i in range(layers):
        draft.op(f"a{i}", f"{previous} w{i}", mib=4)
        draft.view(f"o{i}", f"a{i}")
        draft.op(f"r{i}", f"{previous} o{i}", mib=2)
        previous = f"r{i}"
    draft.op("loss", previous, mib=9)
    draft.backward("d", "t loss", mib=5)
    previous = "d"
    for i in reversed(range(layers)):
        below = f"r{i - 1}" if i else "r"
        draft.backward(f"dw{i}", f"{previous} {below}", mib=3)
        draft.backward(f"dr{i}", f"{previous} a{i} w{i}", mib=2)
        previous = f"dr{i}"
    gradients = " ".join(f"dw{i}" for i in range(layers))
    return draft.build(outputs="loss", gradients=gradients)


@pytest.mark.parametrize("layers", [4, 5, 9])
def test_repeated_layers_are_those_of_a_deeper_graph(layers: int) -> None:
    repeated, deep_one = Template(layered(4), 4).repeat(layers), layered(layers)
    assert [replace(v, name="") for v in repeated.values] == [replace(v, name="") for v in deep_one.values]
    assert repeated.forward_outputs == deep_one.forward_outputs
    assert repeated.gradients == deep_one.gradients
    assert len(repeated.index) == len(repeated.values)


def test_a_template_says_how_many_layers_a_size_takes() -> None:
    template = Template(layered(4), 4)
    assert template.values_per_layer == 6
    assert template.layers_for(6 * 20 + 5) == 20
    assert template.layers_for(1) == 4


def test_a_template_refuses_layers_that_differ() -> None:
    problem = layered(5)
    values = list(problem.values)
    at = problem.index["a2"]
    values[at] = replace(values[at], reads=(problem.index["r"], problem.index["w2"]))
    with pytest.raises(ValueError, match="a2 reads other values than in the layer before"):
        Template(replace(problem, values=tuple(values)), 5)
    with pytest.raises(ValueError, match="do not repeat 6 times"):
        Template(problem, 6)
    with pytest.raises(ValueError, match="capture at least 4"):
        Template(layered(3), 3)


# pytorch#197838.


def deep_row(asked: int | None, measured: int, **more: Any) -> Row:
    row = {"asked_bytes": asked, "budget_bytes": asked, "predicted_bytes": measured, "measured_bytes": measured}
    row |= {
        "recompute_ns": 14,
        "step_ns": 100,
        "most_copies": 1,
        "planning_seconds": 1.0,
        "nodes": 9,
        "ratio": 1.0,
        "fastest_ratio": 1.0,
    }
    return row | {"bitwise": True, "eager_peak_bytes": 1, **more}


def test_goals_of_the_deep_model() -> None:
    rows = [deep_row(None, 10**9, recompute_ns=0), deep_row(275 * 10**6, 274 * 10**6), deep_row(1, 144 * 10**6)]
    assert verdicts(deep.goals(rows)) == [True] * 5
    assert deep.goals(rows)[1].figure == "14.0% at 274.0 MB"
    rows[1] |= {"measured_bytes": 276 * 10**6, "bitwise": False}
    rows[2] |= {"measured_bytes": 146 * 10**6, "recompute_ns": 16}
    assert verdicts(deep.goals(rows)) == [False, False, False, False, True]
    assert verdicts(deep.goals(rows[::-1]))[4] is False


def test_step_times_are_compared_round_by_round() -> None:
    # A round that was disturbed as a whole does not count.
    found = deep.ratios([1.1, 11.0, 1.3], [1.0, 10.0, 1.0])
    assert found == {"ratio": pytest.approx(1.1), "fastest_ratio": pytest.approx(1.1)}


def test_budgets_of_the_deep_model_have_names() -> None:
    (table,) = deep.tables([deep_row(None, 1), deep_row(5 * 10**6, 1), deep_row(1, 1)])
    assert [row[0] for row in table.rows] == ["none", "5.0", "least"]


# GPU.


def gpu_row(family: str, budget: float | None, peak: int, flops: int, asked: int | None = None) -> Row:
    row = {"precision": "bf16", "name": f"{family} {budget}", "family": family, "budget": budget, "asked_bytes": asked}
    return row | {"peak_bytes": peak, "backward_flops": flops, "returned_gradient_bytes": 1, "planning_seconds": None}


def test_goals_beside_the_knob() -> None:
    knob = [gpu_row("knob", 1.0, 1000, 60), gpu_row("knob", 0.1, 600, 80), gpu_row("knob", 0.0, 1000, 90)]
    ours = [gpu_row("ours", 1.0, 990, 60, 1000), gpu_row("ours", 0.1, 590, 81, 600)]
    least = gpu_row("ours", None, 390, 99, 1)
    flops, lowest = gpu.goals([*knob, *ours, least])
    assert (flops.met, flops.figure) == (False, "1 of 3: knob 0.1")
    assert lowest.met
    ours[1]["backward_flops"], least["peak_bytes"] = 80, 391
    assert verdicts(gpu.goals([*knob, *ours, least])) == [True, False]
    failed = {"precision": "bf16", "name": "ours, least", "family": "ours", "asked_bytes": 1, "failed": "no"}
    assert verdicts(gpu.goals([*knob, failed])) == [False, None]


# Determinism.


def test_different_digests_are_shown() -> None:
    rows = [{"seed": 0, "digests": {"a": "1", "b": "2"}}, {"seed": 1, "digests": {"a": "1", "b": "3"}}]
    (goal,) = determinism.goals(rows)
    assert (goal.met, goal.figure) == (False, "1 of 2: b")
    assert determinism.goals([rows[0], rows[0]])[0].met
    assert determinism.goals([rows[0], {"seed": 1, "digests": {"a": "1"}}])[0].met is False


# What sections share, and the results file.


def test_shared_goals() -> None:
    assert section.at_most("g", "w", 2.0, 2.0).met
    assert section.at_most("g", "w", 2.1, 2.0).met is False
    assert section.at_most("g", "w", None, 2.0).met is None
    assert section.none_of("g", "w", [], 0).met is None


META = {
    "command": "python -m benchmarks.planner",
    "date": "2026-01-01",
    "machine": {
        "processor": "P",
        "cores": 2,
        "accelerator": None,
        "torch": "2.13",
        "remat_pass": "0.1",
        "python": "3.11",
        "commit": "abc",
    },
}
TOY = Section(
    "toy",
    "A toy",
    lambda run: [{"x": 1}],
    lambda rows: [Table("Rows", ("x",), tuple((str(row["x"]),) for row in rows), "A note.")],
    lambda rows: [Goal("x <= 1", "toy", str(rows[0]["x"]), rows[0]["x"] <= 1)],
)


def test_results_come_back_and_say_what_they_hold_for(tmp_path: Path) -> None:
    measured = {"toy": Measured(META, {"commit": "old"}, 2.0, [{"x": 2}])}
    results.write(tmp_path, META, measured, [TOY])
    assert results.read(tmp_path / "planner.json") == measured
    page = (tmp_path / "planner.md").read_text()
    assert "0 goals met, 1 not met, 0 not measured." in page
    assert "| x <= 1 | toy | 2 | **not met** |" in page
    assert "Measured before:" in page
    assert results.read(tmp_path / "nothing.json") == {}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="no results file"):
        results.read(tmp_path / "other.json")


def test_a_section_is_measured_anew_unless_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def measure(run: section.Run) -> list[Row]:
        runs.append(len(runs))
        return [{"x": len(runs)}]

    monkeypatch.setattr(planner, "SECTIONS", {"toy": replace(TOY, measure=measure)})
    monkeypatch.setattr(planner.machine, "describe", lambda device: META["machine"])
    command = ["planner", "--output", str(tmp_path)]
    for arguments, count in (([], 1), (["--keep"], 1), ([], 2), (["--keep", "--trial"], 3)):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        assert planner.main() == 0
        assert len(runs) == count
    assert results.read(tmp_path / "planner.json")["toy"].rows == [{"x": 3}]
