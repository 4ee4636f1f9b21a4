"""Predictions beside measurements, from rows made by hand."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.contest import accuracy
from benchmarks.contest.results import Row, Timing

ROW = Row("tiny", "fp32", "cpu", "remat", "remat", True, "none", {}, "measured")


def ours(point: str, *, predicted: int, measured: int, step: float, budget: int | None = None, **plan: Any) -> Row:
    """A point of our backend; steps are multiples of the anchor's and of what is predicted without a budget."""
    known = {
        "budget_bytes": budget,
        "predicted_peak_bytes": predicted,
        "predicted_step_ns": 100,
        "unconstrained_step_ns": 100,
        "planning_seconds": 6.0,
        "judging_seconds": 2.0,
    }
    return replace(
        ROW, point=point, peak_bytes=measured, compile_seconds=30.0, plan={**known, **plan}, times=timed(step)
    )


def timed(ratio: float) -> dict[str, Timing]:
    return {"caching": Timing(8, ratio, (ratio, ratio), ratio, (ratio, ratio), 0.0)}


def theirs(contestant: str, family: str, peak: int, seconds: float) -> Row:
    return replace(
        ROW, contestant=contestant, family=family, point="", peak_bytes=peak, compile_seconds=seconds, times=timed(1.0)
    )


ROWS = [
    theirs("inductor", "inductor", 1000, 25.0),
    theirs("knob dp", "knob", 620, 20.0),
    ours("none", predicted=1000, measured=1000, step=1.0),
    ours("0.6", predicted=590, measured=600, step=1.1, budget=600, predicted_step_ns=110),
    ours("0.4", predicted=390, measured=410, step=1.25, budget=400, predicted_step_ns=130),
    ours("least", predicted=300, measured=310, step=1.3, budget=1, predicted_step_ns=140),
]


def test_a_peak_above_its_budget_is_one_that_was_promised() -> None:
    errors = accuracy.peak_errors(ROWS)
    assert [e.exceeds_budget for e in errors] == [False, False, True, False]
    assert [e.is_refused for e in errors] == [False, False, False, True]
    assert errors[2].error == pytest.approx(-20 / 410)


def test_slowdowns_are_against_the_plan_without_a_budget() -> None:
    found = accuracy.slowdown_errors(ROWS, "caching")
    assert [(e.row.point, pytest.approx(e.measured)) for e in found] == [("0.6", 0.1), ("0.4", 0.25), ("least", 0.3)]
    assert [pytest.approx(e.predicted) for e in found] == [0.1, 0.3, 0.4]
    assert accuracy.rank_correlation(found) == pytest.approx(1.0)
    assert accuracy.rank_correlation(found[:2]) is None


def test_a_plan_that_several_budgets_lead_to_counts_once() -> None:
    again = [
        ours(point, predicted=300, measured=310, step=step, budget=2, predicted_step_ns=140)
        for point, step in (("0.2", 1.21), ("0.1", 1.32))
    ]
    found = accuracy.slowdown_errors([*ROWS, *again], "caching")
    assert accuracy.rank_correlation(found) < 0.9
    plans = accuracy.of_plans(found)
    assert [(e.row.point, pytest.approx(e.measured)) for e in plans] == [("0.6", 0.1), ("0.4", 0.25), ("least", 0.3)]
    assert accuracy.rank_correlation(plans) == pytest.approx(1.0)


def test_compile_times_are_compared_at_the_nearest_peak() -> None:
    free, budgeted = accuracy.compile_times(ROWS)
    assert (free.row.point, free.theirs.contestant, free.ratio) == ("none", "inductor", 1.2)
    assert (budgeted.row.point, budgeted.theirs.contestant, budgeted.ratio) == ("0.6", "knob dp", 1.5)
    assert budgeted.share("judging_seconds") == pytest.approx(2 / 30)


def test_goals_say_what_is_met() -> None:
    met = {goal.goal: goal.met for goal in accuracy.goals(ROWS, "caching")}
    assert met == {
        "median error of the peak <= 1%": False,
        "worst error of the peak <= 3%": False,
        "never measured above budget": False,
        "no budget: peak <= 1.00x inductor's": True,
        "no budget: step <= 1.02x inductor's (median)": True,
        "rank correlation of slowdowns >= 0.9": True,
        "mean error of slowdowns <= 5 points": True,
        "no budget: compile time <= 1.10x inductor's (median)": False,
        "compile time <= 1.15x the knob's (median)": False,
        "asking Inductor about plans <= 10% of compile time (median)": True,
    }


def test_rows_without_predictions_are_refused() -> None:
    (old,) = (replace(row, plan={"predicted_peak_bytes": 1}) for row in ROWS if row.point == "none")
    with pytest.raises(ValueError, match=r"remat none of tiny, fp32, cpu was measured before .*; measure it anew"):
        accuracy.peak_errors([old])
