"""Measured times on disk, so that a kernel is timed once on a machine and not once in every process.

    <Inductor's cache>/remat_pass/kernel_times/<machine>.json   {"machine": "AMD EPYC", "times_ns": {"aten.mm": 51200}}

There is one file for every processor, GPU and torch version; what else a time depends on is in its key. Processes that
write at once may lose times to each other, which are then measured again; a file is always whole.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from remat_pass import _torch_compat

log = logging.getLogger(__name__)


def read_times() -> dict[str, int]:
    """All times that are known of this machine in nanoseconds, by key."""
    try:
        times: dict[str, int] = dict(json.loads(_path().read_text())["times_ns"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): its times are measured again", _path(), error)
        return {}
    return times


def keep_times(times: Mapping[str, int]) -> None:
    """Add times to those on disk; without a place to write to, they are measured again by the next process."""
    path = _path()
    content = {"machine": _machine(), "times_ns": dict(sorted({**read_times(), **times}.items()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("measured times cannot be kept in %s (%s)", path.parent, error)


def processor_name() -> str:
    """As Linux names it; `platform.processor()` is empty there."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _machine() -> str:
    # A process that has not used the GPU yet is not made to.
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    return f"{processor_name()}{gpu}, torch {torch.__version__}"


def _path() -> Path:
    name = hashlib.sha256(_machine().encode()).hexdigest()[:16]
    return Path(_torch_compat.inductor_cache_dir()) / "remat_pass" / "kernel_times" / f"{name}.json"
