"""Reading what is free, from made-up machines.

Mutants these tests kill: MemFree for MemAvailable; kilobytes for bytes; the limit of an outer control group is passed
over; droppable page cache counts as used; unused memory of the caching allocator, or the cap of the process, is left
out.
"""

from pathlib import Path

import pytest
import torch

from remat_pass.errors import OptionError
from remat_pass.free_memory import FreeMemory, cpu_memory, read_free_memory

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712


def machine(root: Path, *, groups: str | None = None) -> Path:
    """16 GiB, 12 of them available."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {16 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable:  {12 * 2**20} kB\nHugePages_Total: 0\n"
    )
    if groups is not None:
        (root / "proc/self/cgroup").write_text(groups)
    return root


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, droppable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {droppable}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def test_without_control_groups(tmp_path: Path) -> None:
    assert cpu_memory(machine(tmp_path)) == FreeMemory(12 * GIB, 16 * GIB)


def test_a_limit_of_version_2(tmp_path: Path) -> None:
    root = machine(tmp_path, groups="0::/job/step\n")
    group(root / "sys/fs/cgroup/job/step", V2, "max", GIB, 0)
    group(root / "sys/fs/cgroup/job", V2, 8 * GIB, 5 * GIB, 2 * GIB)
    assert cpu_memory(root) == FreeMemory(5 * GIB, 8 * GIB)


def test_a_limit_of_version_1_in_a_container(tmp_path: Path) -> None:
    root = machine(tmp_path, groups="9:name=systemd:/\n4:cpu,memory:/outside/abc\n0::/\n")
    group(root / "sys/fs/cgroup/memory", V1, 4 * GIB, 3 * GIB, 0)
    assert cpu_memory(root) == FreeMemory(GIB, 4 * GIB)


def test_no_limit_of_version_1(tmp_path: Path) -> None:
    root = machine(tmp_path, groups="4:memory:/\n")
    group(root / "sys/fs/cgroup/memory", V1, UNLIMITED_V1, 3 * GIB, 0)
    assert cpu_memory(root) == FreeMemory(12 * GIB, 16 * GIB)


def test_more_in_use_than_allowed(tmp_path: Path) -> None:
    root = machine(tmp_path, groups="0::/\n")
    group(root / "sys/fs/cgroup", V2, 4 * GIB, 5 * GIB, 0)
    assert cpu_memory(root) == FreeMemory(0, 4 * GIB)


@pytest.mark.parametrize(
    ("fraction", "free_gib"),
    [(1.0, 23), (0.5, 13), (0.25, 3)],  # 20 free on the card; 80 * fraction may be held, 30 are, 3 of them unused
)
def test_cuda(monkeypatch: pytest.MonkeyPatch, fraction: float, free_gib: int) -> None:
    for name, value in {
        "mem_get_info": (20 * GIB, 80 * GIB),
        "memory_reserved": 30 * GIB,
        "memory_allocated": 27 * GIB,
        "get_per_process_memory_fraction": fraction,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert read_free_memory(torch.device("cuda:1")) == FreeMemory(free_gib * GIB, 80 * GIB)


def test_other_devices() -> None:
    with pytest.raises(OptionError, match="free on meta is not known on this system; pass bytes"):
        read_free_memory(torch.device("meta"))
