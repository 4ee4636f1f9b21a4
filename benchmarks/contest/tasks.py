"""What is measured, in which company and in which order; torch-free.

A machine drifts: it slows down when it gets warm or when a neighbour wakes up. Two processes that take turns, one step
each, drift alike, so a time is only ever compared with the *anchor* (`backend="inductor"`) of its own group:

    group 1   anchor  a  b  c        round 1   anchor a b c
    group 2   anchor  d  e  f        round 2   a b c anchor
                                     round 3   b c anchor a  ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

ANCHOR = "inductor"
"""The contestant that every group holds; times are ratios to it."""
REFERENCE = "eager"
"""The contestant whose gradients are right by definition."""
OURS = "remat"
"""The family that is compared with all others."""
KNOB = "knob"
"""The family whose peaks we are held to: PyTorch's `activation_memory_budget`."""
GPU_LOWERING = "gpu lowering"
"""The target of rows that come from the rig for GPU code without a GPU: peaks counted, times modelled."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the contestants of one comparison share."""

    model: str
    precision: str
    """"fp32" or "bf16" (autocast)."""
    target: str
    """Where steps run: "cpu", "cuda", or `GPU_LOWERING`."""

    def __str__(self) -> str:
        return f"{self.model}, {self.precision}, {self.target}"


@dataclass(frozen=True, slots=True)
class Task:
    """One point of one contestant's curve."""

    setting: Setting
    contestant: str
    family: str
    through_inductor: bool
    point: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this task from all others."""
        return (self.setting.model, self.setting.precision, self.setting.target, self.contestant, self.point)

    @property
    def title(self) -> str:
        """For people: "knob dp 0.5", or the contestant alone if it has one point."""
        return f"{self.contestant} {self.point}".strip()


def in_groups(tasks: Sequence[_Item], size: int) -> list[list[_Item]]:
    """The tasks in order, in as few groups as hold at most `size` each, as equal as can be.

    Raises:
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a group of {size} holds nothing; give at least 1")
    count = -(-len(tasks) // size)
    return [list(tasks[len(tasks) * i // count : len(tasks) * (i + 1) // count]) for i in range(count)]


def turn(members: Sequence[_Item], number: int) -> list[_Item]:
    """The order of round `number`: each round begins one later, so that no member always follows the same pause."""
    first = number % len(members) if members else 0
    return [*members[first:], *members[:first]]


def thin(points: Sequence[_Item], count: int | None) -> list[_Item]:
    """`count` of the points, spread evenly with both ends among them; all of them for None."""
    if count is None or count >= len(points):
        return list(points)
    if count == 1:
        return [points[-1]]
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]
