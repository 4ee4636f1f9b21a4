"""Every exception and warning of this package, so that callers can catch one family.

A message has four parts: what happened, to which node or option, the value that caused it, what to do next.
`torch.compile` wraps what a backend raises in `BackendCompilerFailed`; the message stays readable inside it and the
original is its `inner_exception`.
"""

import functools


class RematError(Exception):
    """Base of every error that this package raises on purpose."""


class OptionError(RematError, ValueError):
    """An option has a bad name or value. Raised when options are set or resolved, before anything is compiled."""


class InfeasibleBudgetError(RematError):
    """No plan fits the memory budget. Raised while planning a graph, unless `on_infeasible="warn"`.

    Attributes:
        budget_bytes: The budget that was asked for.
        least_peak_bytes: The smallest `memory_budget` this graph accepts; passing it back succeeds.
    """

    def __init__(self, message: str, *, budget_bytes: int, least_peak_bytes: int) -> None:
        super().__init__(message)
        self.budget_bytes = budget_bytes
        self.least_peak_bytes = least_peak_bytes

    def __reduce__(self) -> tuple[object, ...]:
        # The inherited one rebuilds from positional arguments only, so that a worker's error could not be unpickled.
        rebuild = functools.partial(type(self), budget_bytes=self.budget_bytes, least_peak_bytes=self.least_peak_bytes)
        return rebuild, self.args, self.__dict__


class PlanError(RematError):
    """A saved plan is missing, malformed or of another graph. Raised when a graph is compiled with `plan=`."""


class VerificationError(RematError):
    """The rewritten graphs do not compute what the joint graph computes.

    Raised after every rewrite that is found wrong, before anything runs. It is a bug of this package, never the
    user's: please report it.
    """


class MeasurementError(RematError):
    """A peak could not be measured. Raised by `measure_peak_bytes`, never while compiling."""


class RematWarning(UserWarning):
    """Something the user should know and may choose to ignore, such as a budget that no plan meets."""
