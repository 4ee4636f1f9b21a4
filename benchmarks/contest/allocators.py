"""Two ways to hand out memory on the CPU, chosen when a process starts.

glibc gives large blocks back to the system as soon as they are freed and takes them anew, one page fault per 4 KiB, in
the next step. A step that takes less memory then has fewer faults, which hides what its recomputation costs. A caching
allocator, such as that of CUDA, has no such reward: raising glibc's thresholds makes it one.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allocator:
    """Its name in results, what it is, and the environment that it takes."""

    name: str
    title: str
    environment: dict[str, str] = field(default_factory=dict)


# https://man7.org/linux/man-pages/man3/mallopt.3.html: nothing by mmap, nothing given back, one heap for all threads
# (the heap of a thread, such as autograd's, cannot hold more than 64 MiB).
CACHING = Allocator(
    "caching",
    "glibc that keeps what it has (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_, MALLOC_ARENA_MAX=1)",
    {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "MALLOC_TOP_PAD_": str(2**26),
        "MALLOC_ARENA_MAX": "1",
    },
)
DEFAULT = Allocator("default", "glibc as it is")
CUDA = Allocator("caching", "PyTorch's caching allocator")


def allocators_for(device: str, *, only_caching: bool) -> list[Allocator]:
    """The allocators to measure under, the one that results are judged by first."""
    if device != "cpu":
        return [CUDA]
    return [CACHING] if only_caching else [CACHING, DEFAULT]
