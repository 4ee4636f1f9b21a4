"""Python's cyclic garbage collector, paused while we plan.

Analysis and planning make many small objects and no cycles. The collector would walk them, and from time to time all
that torch has loaded (0.4 s), to find nothing: a third of the planning time. Inductor's scheduler leaves cycles behind,
which are collected after it has been asked; while it works the collector takes a quarter of its time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No collection of cycles inside, whatever happens there; also a decorator."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
