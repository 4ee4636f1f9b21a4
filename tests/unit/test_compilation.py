"""How often a simulated peak is believed."""

import pytest

from remat_pass.compilation import compile_and_judge
from remat_pass.inductor_peak import PeakExceeded


@pytest.mark.parametrize(("excess_permille", "believed"), [(1, [True, True, False]), (51, [True, False])])
def test_a_simulation_that_was_far_off_is_not_believed_again(excess_permille: int, believed: list[bool]) -> None:
    attempts: list[bool] = []

    def compile_(watcher: object) -> str:
        attempts.append(watcher is not None)
        if watcher is not None:
            raise PeakExceeded(1000 + excess_permille, limit_bytes=1000, simulated_bytes=1000)
        return "compiled"

    assert compile_and_judge(compile_) == ("compiled", [])
    assert attempts == believed
