"""How much memory a device has left for this process, now.

    CUDA   free on the device, at most what the process may still take, plus what its caching allocator holds unused
    CPU    what the kernel can give without swapping (MemAvailable), at most what the limits of its control groups leave

Page cache that the kernel can drop counts as free in both CPU figures, as the kernel itself counts it.
Sources: proc_meminfo(5); Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.

Not known here: fragmentation, and what other processes will take later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from remat_pass.errors import OptionError


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Bytes that a device has, and how many of them are left."""

    free_bytes: int
    total_bytes: int
    """Of the device; on the CPU the smallest limit set on the process, if that is less."""


def read_free_memory(device: torch.device) -> FreeMemory:
    """What is left on a device.

    Raises:
        OptionError: The device is neither a CUDA device nor the CPU of a Linux machine.
    """
    if device.type == "cuda":
        return _cuda_memory(device)
    if device.type == "cpu" and Path("/proc/meminfo").exists():
        return cpu_memory()
    raise OptionError(
        f'memory_budget="auto": how much memory is free on {device} is not known on this system; pass bytes, a size '
        'such as "6GiB" or a fraction of the unconstrained peak'
    )


def cpu_memory(root: Path = Path("/")) -> FreeMemory:
    """What is left of the machine's memory; `root` is where `proc` and `sys` are found."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    free_bytes, total_bytes = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    for limit_bytes, used_bytes in _limits(root):
        free_bytes = min(free_bytes, max(0, limit_bytes - used_bytes))
        total_bytes = min(total_bytes, limit_bytes)
    return FreeMemory(free_bytes, total_bytes)


def _cuda_memory(device: torch.device) -> FreeMemory:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    reserved_bytes = torch.cuda.memory_reserved(device)
    allowed_bytes = int(torch.cuda.get_per_process_memory_fraction(device) * total_bytes) - reserved_bytes
    unused_bytes = reserved_bytes - torch.cuda.memory_allocated(device)
    return FreeMemory(max(0, min(free_bytes, allowed_bytes)) + unused_bytes, total_bytes)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of every control group around this process that has a limit."""
    mounted = root / "sys/fs/cgroup"
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except FileNotFoundError:
        return
    for _, controllers, path in groups:
        if not controllers:  # version 2
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _limits_of(mounted, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits_of(mounted / "memory", path, *names)


def _limits_of(mounted: Path, path: str, limit: str, usage: str, droppable: str) -> Iterator[tuple[int, int]]:
    """Of a group and those around it. In a container its own group is mounted, under another path than it is told."""
    inner = Path(path.strip("/"))
    for folder in (mounted / inner, *(mounted / outer for outer in inner.parents)):
        files = [folder / limit, folder / usage, folder / "memory.stat"]
        if not all(file.exists() for file in files):
            continue
        limit_text, usage_text, stat = (file.read_text() for file in files)
        if limit_text.strip() != "max":
            dropped = dict(line.split() for line in stat.splitlines()).get(droppable, "0")
            yield int(limit_text), int(usage_text) - int(dropped)
