"""Every test starts with nothing compiled, no reports, and no warning given yet."""

from collections.abc import Iterator

import pytest
import torch

import remat_pass
from remat_pass import lower, search

_EFFORT = 100_000
"""Of planning, a seventh of what it is. How good plans are is for the tests of the planner, and for `test_regression`,
whose plans are made before this is set."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(search, "_STEPS_TO_SIMULATE", _EFFORT)
    torch._dynamo.reset()
    remat_pass.clear_reports()
    lower._budgeted_frames.clear()
    yield
    torch._dynamo.reset()
    remat_pass.clear_reports()
