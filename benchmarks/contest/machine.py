"""What results hold for: machine, versions, and the state of the sources down to uncommitted changes."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.demo_results import describe_machine
from benchmarks.demo_training import Settings

_ROOT = Path(__file__).parents[2]
# Results are written while it runs, so they are no part of what made them.
_SOURCES = ("remat_pass", "benchmarks", "tests/support", ":(exclude)benchmarks/results")

_IDENTITY = ("processor", "cores", "accelerator", "python", "torch", "remat_pass", "commit")


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions and commit; "+" and a digest behind the commit if sources differ from it."""
    return {**describe_machine(Settings(device=device)), "commit": _commit()}


def identity(machine: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal for rows of two runs to stand in one table."""
    return {name: machine[name] for name in _IDENTITY}


def _commit() -> str | None:
    """None outside of a repository."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changes = _git("diff", "HEAD", "--", *_SOURCES)
        new = _git("ls-files", "--others", "--exclude-standard", "--", *_SOURCES).split()
    except (OSError, subprocess.CalledProcessError):
        return None
    if not changes and not new:
        return commit
    digest = hashlib.sha256(changes.encode())
    for name in new:
        digest.update((_ROOT / name).read_bytes())
    return f"{commit}+{digest.hexdigest()[:6]}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(_ROOT), *arguments], check=True, capture_output=True, text=True).stdout
