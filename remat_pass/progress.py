"""A progress bar for what turns out to take long; nothing is shown of what does not."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

_T = TypeVar("_T")

_PATIENCE_SECONDS = 1.0


def shown_if_slow(items: Sequence[_T], title: str) -> Iterator[_T]:
    """The items; once they have taken a second, a bar on the terminal, on standard error, until the last is done."""
    begin = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False, disable=True) as bar:
        task = bar.add_task(title, total=len(items))
        for done, item in enumerate(items):
            if bar.disable and bar.console.is_terminal and time.monotonic() - begin > _PATIENCE_SECONDS:
                bar.disable = False
                bar.start()
            bar.update(task, completed=done, refresh=True)
            yield item
