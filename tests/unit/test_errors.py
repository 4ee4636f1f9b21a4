"""Errors keep what they carry, and can be caught as one family."""

import copy
import pickle

import pytest

from remat_pass.errors import (
    InfeasibleBudgetError,
    MeasurementError,
    OptionError,
    PlanError,
    RematError,
    RematWarning,
    VerificationError,
)

CLONES = [pytest.param(copy.copy, id="copy"), pytest.param(copy.deepcopy, id="deepcopy")]
CLONES += [
    pytest.param(lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)), id=f"pickle{protocol}")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]


@pytest.mark.parametrize("kind", [OptionError, InfeasibleBudgetError, PlanError, VerificationError, MeasurementError])
def test_one_base_catches_all(kind: type[Exception]) -> None:
    assert issubclass(kind, RematError)


def test_option_errors_are_value_errors() -> None:
    assert issubclass(OptionError, ValueError)


def test_the_warning_is_a_user_warning_and_no_error() -> None:
    assert issubclass(RematWarning, UserWarning)
    assert not issubclass(RematWarning, RematError)


@pytest.mark.parametrize("clone", CLONES)
def test_infeasible_budget_error_survives(clone) -> None:
    error = InfeasibleBudgetError("no plan fits 900 B", budget_bytes=900, least_peak_bytes=1210)
    error.note = "worker 3"

    cloned = clone(error)

    assert type(cloned) is InfeasibleBudgetError
    assert (str(cloned), cloned.args) == ("no plan fits 900 B", ("no plan fits 900 B",))
    assert (cloned.budget_bytes, cloned.least_peak_bytes, cloned.note) == (900, 1210, "worker 3")


def test_infeasible_budget_error_is_built_from_names_only() -> None:
    with pytest.raises(TypeError):
        InfeasibleBudgetError("no plan fits", 900, 1210)
