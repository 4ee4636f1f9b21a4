"""How long calls take, summed up."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass
class Stopwatch:
    """Runs during the calls of functions that it times."""

    seconds: float = 0.0

    def timed(self, function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """The function; whether it returns or raises, its time counts."""

        def call(*args: _Arguments.args, **more: _Arguments.kwargs) -> _Result:
            begin = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                self.seconds += time.perf_counter() - begin

        return call
