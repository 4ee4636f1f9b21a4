"""Trade-off curves, comparisons and goals on rows small enough to do in the head."""

import dataclasses

import pytest

from benchmarks.contest import curve, goals
from benchmarks.contest.curve import Point
from benchmarks.contest.results import MEASURED, WRONG, Modelled, Row, Timing


def row(contestant: str, point: str, peak_bytes: int, ratio: float, *, family: str | None = None, **more) -> Row:
    timing = Timing(20, ratio, (ratio, ratio), ratio, (ratio, ratio), 0)
    fields = {"model": "llama", "precision": "fp32", "target": "cpu", "through_inductor": True, "state": MEASURED}
    fields |= {"times": {"caching": timing}, "gradient_bytes": 10} | more
    return Row(
        contestant=contestant, family=family or contestant, point=point, options={}, peak_bytes=peak_bytes, **fields
    )


def modelled(contestant: str, point: str, peak_bytes: int, ratio: float, **more) -> Row:
    return row(
        contestant, point, peak_bytes, 1, target="gpu lowering", times={}, modelled=Modelled(ratio, ratio), **more
    )


def points(*pairs: tuple[int, float], noise: float = 0.0) -> list[Point]:
    """Points (bytes, slowdown)."""
    return [Point(row("any", str(i), peak, 1 + slow), peak, slow, noise) for i, (peak, slow) in enumerate(pairs)]


def pairs(found: list[Point]) -> list[tuple[int, float]]:
    return [(p.peak_bytes, p.slowdown) for p in found]


def test_only_measured_rows_are_points() -> None:
    rows = [
        row("a", "1", 100, 1.25),
        row("a", "2", 50, 1.0, state=WRONG),
        dataclasses.replace(row("a", "3", 40, 1.0), times={}),
        modelled("a", "4", 30, 1.5),
    ]
    assert pairs(curve.points(rows, "caching")) == [(100, 0.25), (30, 0.5)]
    assert [p.noise for p in curve.points(rows, "caching")] == [curve.PROCESS_NOISE, curve.MODEL_NOISE]


def test_frontier_drops_points_that_are_beaten() -> None:
    found = points((100, 0.0), (50, 0.25), (60, 0.5), (20, 0.75), (50, 0.5), (120, 0.0))
    assert pairs(curve.frontier(found)) == [(20, 0.75), (50, 0.25), (100, 0.0)]


def test_noise_of_a_timing_shrinks_with_rounds() -> None:
    one = Timing(25, 1.0, (1, 1), 1.0, (0.9, 1.1), 0)
    four = dataclasses.replace(one, rounds=100)
    assert one.noise == pytest.approx(2 * four.noise)
    assert one.noise == pytest.approx(2 * 1.2533 * (0.2 / 1.349) / 5)


def test_comparison_takes_our_fastest_point_that_fits() -> None:
    ours = points((40, 0.5), (80, 0.2), (100, 0.1))
    found = curve.compare(ours, points((90, 0.3))[0])
    assert found.at_or_below and found.ours == ours[1]
    assert found.time_points == pytest.approx(-10)


def test_slower_within_the_noise_is_at_or_below_and_beyond_it_is_not() -> None:
    theirs = points((100, 0.10), noise=0.03)[0]
    assert curve.compare(points((90, 0.14), noise=0.04), theirs).at_or_below
    slower = curve.compare(points((90, 0.16), (110, 0.05), noise=0.04), theirs)
    assert not slower.at_or_below
    assert slower.why == "slower beyond the noise of 5.0%: as fast from +10.0% of their peak on"


def test_a_peak_below_our_least_is_said_to_be() -> None:
    found = curve.compare(points((55, 0.1)), points((50, 0.9))[0])
    assert not found.at_or_below and found.ours is None and found.time_points is None
    assert found.why == "their peak is below our least, which is 10.0% more"


def test_three_numbers() -> None:
    ours = points((50, 0.2), (100, 0.0))
    others = points((60, 0.5), (100, 0.25), (80, 0.75))
    found = curve.numbers(ours, others)
    assert found.time_at_equal_peak == pytest.approx((1.2 / 1.5 + 1 / 1.25) / 2)
    assert found.peak_at_equal_time == pytest.approx((50 / 60 + 50 / 100) / 2)
    assert found.activations_at_equal_time == pytest.approx((40 / 50 + 40 / 90) / 2)
    # From 60 to 100 bytes they are at 0.5 and we are at 0.2.
    assert found.area == pytest.approx(30)


def test_area_is_negative_where_we_are_slower_and_none_where_curves_do_not_meet() -> None:
    assert curve.area_between(points((50, 0.5), (100, 0.5)), points((50, 0.3), (150, 0.0))) == pytest.approx(-20)
    assert curve.area_between(points((50, 0.5)), points((50, 0.3))) is None
    assert curve.area_between([], points((50, 0.3))) is None


def by_goal(rows: list[Row]) -> dict[str, goals.Goal]:
    return {f"{g.goal.split(',')[0]}, {g.where}": g for g in goals.goals(rows, "caching")}


def test_goals_on_measured_rows() -> None:
    rows = [
        row("inductor", "", 200, 1.0),
        row("knob dp", "0.5", 150, 1.02, family="knob"),
        row("knob dp", "0.1", 100, 1.20, family="knob"),
        row("knob dp", "0", 210, 1.50, family="knob"),
        row("remat", "0.5", 100, 1.08),
        row("remat", "least", 55, 1.30),
        # Not through Inductor, so no part of it.
        row("remat eager", "least", 10, 3.0, family="remat", through_inductor=False),
    ]
    found = by_goal(rows)
    least = found["least peak <= 0.6x that of PyTorch's knob, llama, cpu, fp32"]
    assert least.met and least.figure == "0.55x (0.0 of 0.0 MB); of activations 0.50x (0.0 of 0.0 MB)"
    slowdown = found["at the knob's peaks, cpu, fp32"]
    everywhere = "0.28x over 2 points, 0 of them below our least peak"
    assert slowdown.met and slowdown.figure == f"{everywhere}; 0.40x over the 1 that save memory"


def test_a_point_below_our_least_counts_as_infinitely_slow() -> None:
    rows = [row("knob dp", "0.1", 100, 1.2, family="knob"), row("remat", "least", 101, 1.0)]
    slowdown = by_goal(rows)["at the knob's peaks, cpu, fp32"]
    assert slowdown.met is False and slowdown.figure == "infx over 1 points, 1 of them below our least peak"


def test_savings_are_of_activations_and_modelled() -> None:
    rows = [
        modelled("inductor", "", 310, 1.0),
        modelled("remat", "0.4", 110, 1.09),
        modelled("remat", "least", 80, 1.19),
    ]
    found = by_goal(rows)
    three = found[">= 3x less activation peak at <= 10% modelled slowdown, llama, gpu lowering, fp32"]
    five = found[">= 5x less activation peak at <= 20% modelled slowdown, llama, gpu lowering, fp32"]
    assert three.met and three.figure.startswith("3.00x")
    assert not five.met and five.figure.startswith("4.29x")


def test_goals_nothing_was_measured_for_are_undecided() -> None:
    assert {goal.met for goal in goals.goals([row("remat", "least", 55, 1.30)], "caching")} == {None}
