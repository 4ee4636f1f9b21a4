"""Whether a contestant's gradients are right: a wrong one is no point of a curve, however small or fast.

Models that draw no random numbers are compared with a reference, parameter by parameter:

    error(p) = ||g_p - r_p|| / max(||r_p||, 1% of ||r||)   at most 1e-3

The 1% is for parameters whose true gradient is nil (a key's bias, a convolution's bias before a norm), where one
rounding error would be compared with another. The reference is eager in the next precision, float64 for fp32 and fp32
for bf16, and what is allowed is 1e-3 (bf16: 3e-2) or twice the error of eager itself, whichever is larger: contestants
round at other places than eager, not more.

In fp32 it is also twice what the exact gradient of any parameter moves by where the parameters move by 2^-23 of
themselves, as much as activations do by the roundings of some ops; at most 1e-2. That is nothing for smooth models
(1e-6), but a ReLU whose input is next to zero ends up on the other side, and the gradient jumps: on the small ResNet by
up to 2e-3, which of 18 million units depends on the rounding. Inductor's gradients there are off by 1.6e-3 in float32
and 5e-12 in float64.

With dropout a compiled contestant may draw other masks than eager, so it is held against its own forward: with the same
seed before every run the masks are the same, its loss f is a plain function, and its gradient g must predict how f
changes. Along two directions d of norm 1 (the gradient itself, and the gradient with every parameter scaled alike)

    error(d) = |(f(w + e d) - f(w - e d)) / 2e - g·d| / |g·d|   at most 2% (bf16: 5%)

for the best of three steps e. On a small GPT-2 right gradients are off by 0.02% (bf16: 0.5%), and those of masks drawn
anew in backward (pytorch#190758) by 14%. Where the loss is that of the anchor, so were the masks, and the gradients are
also compared with the anchor's as above, which is sharper still: 0.4% against 81%, in bf16.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]

TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
DIFFERENCE_TOLERANCE = {"fp32": 0.02, "bf16": 0.05}

_NIL_SHARE = 0.01
_MOST_FOR_JUMPS = 1e-2
_ROUNDING = 2.0**-23
"""Standard deviation of the relative change of parameters."""
_ROUNDINGS = 4
"""How many are tried: the gradient of the small ResNet jumps in about three of them."""
_SAME_LOSS = 1e-6
_LOSS_CHANGES = {"fp32": (3e-4, 1e-3, 3e-3), "bf16": (1e-3, 3e-3, 1e-2)}
"""Relative changes of the loss that the steps e are chosen for: small for curvature, large for rounding."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a contestant's gradients were checked, the largest error in units of what is allowed, and where."""

    against: str
    error: float
    allowed: float
    where: str

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.error <= self.allowed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True, slots=True)
class Reference:
    """Gradients to compare with, and by how much each may differ."""

    title: str
    gradients: Gradients
    allowed: dict[str, float]
    loss: float


def save(reference: Reference, path: Path) -> None:
    torch.save(
        {name: getattr(reference, name) for name in ("title", "gradients", "allowed", "loss")}, path.with_suffix(".new")
    )
    path.with_suffix(".new").rename(path)  # so that a reader finds all or nothing


def load(path: Path) -> Reference:
    return Reference(**torch.load(path, weights_only=True))


def collect(module: nn.Module) -> Gradients:
    """The gradients of the module's parameters, on the CPU in float32, by name; missing ones are zero."""
    return {
        name: torch.zeros_like(p, device="cpu")
        if p.grad is None
        else p.grad.detach().to("cpu", torch.float32, copy=True)
        for name, p in module.named_parameters()
    }


def errors(got: Gradients, wanted: Gradients) -> dict[str, float]:
    """The error of each parameter, as defined on top."""
    if got.keys() != wanted.keys():
        raise ValueError(f"gradients of other parameters: {sorted(got.keys() ^ wanted.keys())[:3]}")
    floor = _NIL_SHARE * norm(wanted)
    return {name: float((got[name] - w).norm() / max(float(w.norm()), floor, 1e-30)) for name, w in wanted.items()}


def compare(got: Gradients, reference: Reference) -> Verdict:
    """The parameter that is furthest beyond what it is allowed."""
    found = errors(got, reference.gradients)
    # NaN goes first: it is beyond everything.
    worst = max(found, key=lambda name: (found[name] != found[name], found[name] / reference.allowed[name]))
    return Verdict(reference.title, found[worst], reference.allowed[worst], worst)


def tolerance_for_jumps(gradients_of: Callable[[], Gradients], module: nn.Module, truth: Gradients) -> float:
    """Twice the largest error of a parameter's gradient when all parameters are moved by float32 roundings, but 1e-2.

    Args:
        gradients_of: The gradients where the parameters are.
        module: In float64; its parameters come back to the bit.
        truth: Its gradients.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    for _ in range(_ROUNDINGS):
        with _coming_back(module):
            with torch.no_grad():
                for p in filter(torch.is_floating_point, module.parameters()):
                    noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
                    p.mul_(1 + _ROUNDING * noise)
            found += errors(gradients_of(), truth).values()
    if not all(math.isfinite(error) for error in found):
        raise ValueError("the exact gradient is not finite, so that nothing can be compared with it")
    return min(2 * max(found), _MOST_FOR_JUMPS)


def same_masks(loss: float, reference: Reference) -> bool:
    """Whether a loss at the seed shows that the same random numbers were drawn as in the reference."""
    return abs(loss - reference.loss) <= _SAME_LOSS * abs(reference.loss)


def differences(loss_of: Callable[[], float], module: nn.Module, gradients: Gradients, precision: str) -> Verdict:
    """Gradients against central differences of the loss that they belong to.

    Args:
        loss_of: The loss at the seed; the same at every call unless parameters change.
        module: Its parameters are moved, and put back to the bit.
        gradients: What the contestant says.
        precision: "fp32" or "bf16".
    """
    allowed = DIFFERENCE_TOLERANCE[precision]
    found = {
        name: _difference_error(loss_of, module, gradients, direction, precision)
        for name, direction in _directions(gradients).items()
    }
    worst = max(found, key=lambda name: (found[name] != found[name], found[name]))
    return Verdict("differences of its own loss", found[worst], allowed, f"along the {worst}")


def norm(gradients: Gradients) -> float:
    """The Euclidean norm of all gradients together."""
    return float(torch.stack([g.double().norm() for g in gradients.values()]).norm())


def _directions(gradients: Gradients) -> dict[str, Gradients]:
    """Two directions of norm 1."""
    whole = norm(gradients)
    # What is next to nil stays nil: its direction would be rounding errors.
    scaled = {
        name: g / max(float(g.norm()), 1e-30) if float(g.norm()) > 1e-4 * whole else torch.zeros_like(g)
        for name, g in gradients.items()
    }
    scale = norm(scaled) or 1.0
    return {
        "gradient": {name: g / max(whole, 1e-30) for name, g in gradients.items()},
        "gradient, every parameter scaled alike": {name: g / scale for name, g in scaled.items()},
    }


def _difference_error(
    loss_of: Callable[[], float], module: nn.Module, gradients: Gradients, direction: Gradients, precision: str
) -> float:
    slope = sum(float((gradients[name].double() * d.double()).sum()) for name, d in direction.items())
    if not slope > 0:
        return float("nan")
    base = abs(loss_of())
    best = float("inf")
    for change in _LOSS_CHANGES[precision]:
        step = change * base / (2 * slope)
        measured = (_loss_at(loss_of, module, direction, step) - _loss_at(loss_of, module, direction, -step)) / (
            2 * step
        )
        best = min(best, abs(measured - slope) / slope)
    return best


def _loss_at(loss_of: Callable[[], float], module: nn.Module, direction: Gradients, step: float) -> float:
    with _coming_back(module):
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.add_(direction[name].to(p.device), alpha=step)
        return loss_of()


@contextmanager
def _coming_back(module: nn.Module) -> Iterator[None]:
    """Parameters may be moved inside; behind it they are what they were, to the bit."""
    before = {p: p.detach().clone() for p in module.parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in before.items():
                p.copy_(value)
