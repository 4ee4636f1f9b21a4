"""How the run goes, on the terminal: what happens now, every finished row, and the time that is left."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.contest.results import FAILED, MEASURED, WRONG, Row

_COLORS = {MEASURED: "green", WRONG: "bold red", FAILED: "yellow"}


class Display:
    """Watches a driver; a context manager that shows a bar on a terminal, and lines everywhere."""

    def __init__(self, total: int) -> None:
        """`total` is how many rows are expected; those found in the journal are not among them."""
        self._total, self._done, self._begin = total, 0, time.monotonic()
        self.console = Console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=total, left="")

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=escape(what))

    def done(self, row: Row) -> None:
        self._done += 1
        self._total = max(self._total, self._done)
        left = self._left()
        self._progress.update(self._task, completed=self._done, total=self._total, left=left)
        color = _COLORS.get(row.state, "dim")
        figures = f"{row.peak_bytes / 1e6:,.1f} MB" if row.peak_bytes else ""
        for name, timing in row.times.items():
            ratio = "" if timing.ratio is None else f" ({timing.ratio - 1:+.1%})"
            figures += f"  {name} {timing.median_seconds * 1000:,.1f} ms{ratio}"
        if row.modelled is not None and row.modelled.ratio is not None:
            figures += f"  modelled {row.modelled.seconds * 1000:.3f} ms ({row.modelled.ratio - 1:+.1%})"
        text = f"{row.setting}: {row.title}: [{color}]{row.state}[/]  {figures}  {escape(row.why or '')}"
        self.console.print(f"{text} [dim]{self._done}/{self._total}, {left}[/]", highlight=False, soft_wrap=True)

    def expect(self, more: int) -> None:
        """More rows are to come than was known."""
        self._total += more
        self._progress.update(self._task, total=self._total)

    def _left(self) -> str:
        """Rows come in groups, so the mean over all of them is the steadiest estimate."""
        seconds = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
