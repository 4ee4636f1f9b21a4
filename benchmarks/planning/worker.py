"""A process that calls functions by name: `python -m benchmarks.planning.worker`.

    {"call": "benchmarks.planning.sizes_work:solve", "layers": 4}      ─►   what the function returns, as JSON

Figures that depend on what a process did before, such as its memory, are taken in one of their own. Only the standard
library is imported here: what the process holds is the business of the function.
"""

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contest.channel import Worker, one_line, serve

_COMMAND = (sys.executable, "-W", "ignore", "-m", "benchmarks.planning.worker")


@contextmanager
def worker(scratch: Path, name: str, environment: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """A fresh process; what it prints goes to `name`.log in the scratch folder."""
    with Worker(_COMMAND, {"KINETO_LOG_LEVEL": "6", **(environment or {})}, scratch / f"{name}.log") as process:
        yield process


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The result of the function; what goes wrong is an answer too."""
    module, _, name = question.pop("call").partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**question)
    except Exception as error:  # a planner under test may fail in any way; why is what the section reports
        traceback.print_exc()
        return {"failed": one_line(error)}


if __name__ == "__main__":
    serve(answer)
