"""A worker process and the questions it answers: one JSON object per line on its input, one per line on its output.

The worker runs somebody else's compiler, so everything may go wrong in it. Whatever does becomes a `WorkerFailed` with
one line that says why: an error it reports, a signal that ended it, or no answer in time. What it says on its error
output, prints included, goes to a log file.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LINE_LIMIT = 400


class WorkerFailed(Exception):
    """A worker could not do what it was asked; `unavailable` says that the contestant does not apply."""

    def __init__(self, why: str, *, unavailable: bool = False) -> None:
        super().__init__(why)
        self.unavailable = unavailable


class Worker:
    """A child process that answers; a context manager that ends it and everything it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start `command` with `environment` added to this process's own; its error output goes to `log`."""
        self._unread = b""
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                start_new_session=True,
            )

    def ask(self, question: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """The answer to one question.

        Raises:
            WorkerFailed: It reports an error, is dead, or does not answer in time (it is then ended).
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            answer = json.loads(self._line(timeout_seconds))
        except (EOFError, BrokenPipeError):
            raise WorkerFailed(self._how_it_died()) from None
        if "failed" in answer:
            raise WorkerFailed(answer["failed"], unavailable=answer.get("unavailable", False))
        return answer

    def _line(self, timeout_seconds: float) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.end()
                raise WorkerFailed(f"no answer within {timeout_seconds:.0f} s; ended")
            received = os.read(self._process.stdout.fileno(), 2**16)
            if not received:
                raise EOFError
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _how_it_died(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"the process ended with status {code}"
        name = signal.Signals(-code).name
        return f"the process was ended by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"

    def end(self) -> None:
        """Kill the process and its children, if any are left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: answer until the input ends. What others print goes to the error output."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


def without_paths(text: str) -> str:
    """A message that says the same on every machine: paths as seen from where packages, or we, are."""
    return re.sub(r"/[^\s():]*/site-packages/", "", text).replace(f"{Path.cwd()}/", "")


def one_line(error: BaseException) -> str:
    """The kind and the first telling line of an error, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch.compile wraps the error of a backend: "backend='remat' raised:", and below it the error itself.
    if len(lines) > 1 and lines[0].endswith("raised:"):
        return lines[1][:_LINE_LIMIT]
    return without_paths(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")[:_LINE_LIMIT]
