"""A processor whose rates are not measured."""

from contextlib import AbstractContextManager
from unittest import mock

from remat_pass import kernel_times
from remat_pass.costs import TYPICAL_CPU


def typical_processor() -> AbstractContextManager[object]:
    """While it is entered, what a processor can do is that of a typical one."""
    return mock.patch.object(kernel_times, "processor_rates", lambda: TYPICAL_CPU)
