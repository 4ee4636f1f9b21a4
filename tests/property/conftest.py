"""Every test starts with nothing compiled, no reports, and no warning given yet."""

from collections.abc import Iterator

import pytest
import torch

import remat_pass
from remat_pass import lower


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    remat_pass.clear_reports()
    lower._budgeted_frames.clear()
    yield
    torch._dynamo.reset()
    remat_pass.clear_reports()
