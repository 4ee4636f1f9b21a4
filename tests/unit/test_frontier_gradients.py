"""The contest's gradient checks: right gradients pass, wrong ones do not, and parameters come back to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.contest import gradients


def dropping_model() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model with dropout and its loss, the same at every call because it is seeded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 8))
    x = torch.randn(4, 16)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model(x).square().mean()

    return model, loss


def gradients_of(model: nn.Module, loss: Tensor) -> gradients.Gradients:
    loss.backward()
    found = gradients.collect(model)
    model.zero_grad(set_to_none=True)
    return found


def test_differences_tell_right_gradients_from_those_of_other_masks() -> None:
    model, loss = dropping_model()
    before = [p.detach().clone() for p in model.parameters()]
    right = gradients_of(model, loss())
    value = lambda: float(loss().detach())  # noqa: E731
    assert gradients.differences(value, model, right, "fp32").passed
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    torch.manual_seed(2)
    wrong = gradients_of(model, model(torch.randn(4, 16)).square().mean())
    assert not gradients.differences(value, model, wrong, "fp32").passed
    assert not gradients.differences(value, model, {n: 1.05 * g for n, g in right.items()}, "fp32").passed


@pytest.mark.parametrize("broken", [float("nan"), 0.0])
def test_differences_do_not_pass_what_is_no_gradient(broken: float) -> None:
    model, loss = dropping_model()
    got = {name: torch.full_like(p, broken) for name, p in model.named_parameters()}
    assert not gradients.differences(lambda: float(loss().detach()), model, got, "fp32").passed


def reference(**tensors: list[float]) -> gradients.Reference:
    return gradients.Reference(
        "eager", {n: torch.tensor(t) for n, t in tensors.items()}, dict.fromkeys(tensors, 1e-3), 1.0
    )


def test_comparison_names_the_worst_parameter() -> None:
    wanted = reference(a=[3.0, 4.0], b=[10.0])
    verdict = gradients.compare({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([10.0])}, wanted)
    assert (verdict.where, verdict.passed) == ("a", False)
    assert verdict.error == pytest.approx(0.1)
    assert gradients.compare({"a": torch.tensor([3.0, 4.001]), "b": torch.tensor([10.0])}, wanted).passed
    assert not gradients.compare({"a": torch.tensor([3.0, float("nan")]), "b": torch.tensor([10.0])}, wanted).passed


def test_rounding_of_a_gradient_that_is_nil_does_not_count() -> None:
    wanted = reference(a=[100.0], nil=[0.0])
    assert gradients.compare({"a": torch.tensor([100.0]), "nil": torch.tensor([1e-5])}, wanted).passed
    assert not gradients.compare({"a": torch.tensor([100.0]), "nil": torch.tensor([1e-2])}, wanted).passed


def test_other_parameters_are_an_error() -> None:
    with pytest.raises(ValueError, match="other parameters"):
        gradients.compare({"b": torch.tensor([1.0])}, reference(a=[1.0]))


def test_references_survive_the_file(tmp_path: Path) -> None:
    wanted = reference(a=[1.0, 2.0])
    gradients.save(wanted, tmp_path / "r.pt")
    found = gradients.load(tmp_path / "r.pt")
    assert torch.equal(found.gradients["a"], wanted.gradients["a"])
    assert (found.title, found.allowed, found.loss) == (wanted.title, wanted.allowed, wanted.loss)
    assert gradients.same_masks(1.0 + 1e-7, wanted) and not gradients.same_masks(1.0 + 1e-5, wanted)


@pytest.mark.parametrize(("bias", "jumps"), [(0.0, True), (0.5, False)])
def test_gradients_that_jump_within_a_rounding_are_known_to(bias: float, jumps: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.2, -0.3]]))
        model[0].bias.fill_(bias)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def found() -> gradients.Gradients:
        return gradients_of(model, model(torch.ones(1, 3, dtype=torch.float64)).sum())

    allowed = gradients.tolerance_for_jumps(found, model, found())
    assert allowed == 1e-2 if jumps else allowed < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_parameters_come_back_from_a_failure() -> None:
    model = nn.Linear(2, 1).double()
    before = model.weight.detach().clone()

    def fail() -> gradients.Gradients:
        raise RuntimeError("no step")

    with pytest.raises(RuntimeError, match="no step"):
        gradients.tolerance_for_jumps(fail, model, {})
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="not finite"):
        nan = {name: torch.full_like(p, torch.nan) for name, p in model.named_parameters()}
        gradients.tolerance_for_jumps(lambda: nan, model, nan)
