"""Plans do not get worse: peaks, recompute and effort of planning against figures on file, none of them a clock's.

Mutants these tests kill: a stage of the planner is left out; recomputed values run early; effort without a bound.
"""

import pytest

from tests.support.regression import FRACTIONS, MODELS, Figures, measure, recorded

_PEAK_SLACK_BYTES = 64 * 1024
"""What autograd and kernels allocate around the graphs differs between versions of torch."""
_SLACK = 1.01


@pytest.fixture(scope="module")
def figures() -> dict[str, Figures]:
    return measure()


@pytest.mark.parametrize("name", recorded())
def test_no_figure_is_worse_than_the_one_on_file(name: str, figures: dict[str, Figures]) -> None:
    now, before = figures[name], recorded()[name]
    slack_bytes = {"measured_peak_bytes": _PEAK_SLACK_BYTES}
    worse = {f: (n, before[f]) for f, n in now.items() if n > before[f] * _SLACK + slack_bytes.get(f, 0)}
    assert not worse, "now and before"


def test_what_is_measured_is_what_is_on_file(figures: dict[str, Figures]) -> None:
    assert figures.keys() == recorded().keys()


@pytest.mark.parametrize("name", MODELS)
def test_no_budget_gives_less_than_the_least(name: str, figures: dict[str, Figures]) -> None:
    """In GPU code, too, where plans are made for several orders."""
    for peak, where in (("predicted_peak_bytes", ""), ("peak_bytes", " in GPU code")):
        peaks = [figures[f"{name} {fraction}{where}"][peak] for fraction in FRACTIONS]
        assert peaks == sorted(peaks, reverse=True)
