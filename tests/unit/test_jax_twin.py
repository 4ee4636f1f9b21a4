"""The JAX twin computes the loss and the gradients of the PyTorch model, however its layers come."""

import importlib.util
import sys
from typing import Any

import pytest

from benchmarks.contest import jax_twin
from benchmarks.contest.models import MODELS


def _measure(policy: str, *, scanned: bool) -> dict[str, Any]:
    pytest.importorskip("jax")
    from benchmarks.contest.model_jax_measure import measure

    return measure("tiny", policy, scanned=scanned, steps=1)


def _assert_computes_what_the_pytorch_model_does(result: dict[str, Any]) -> None:
    module, batch = MODELS["tiny"].build()
    loss = module(*batch)
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    assert result["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert result["gradient_bytes"] == sum(gradient.nbytes for gradient in gradients)


def test_a_loop_over_layers() -> None:
    result = _measure("dots_with_no_batch_dims", scanned=False)
    _assert_computes_what_the_pytorch_model_does(result)
    assert len(result["step_seconds"]) == 1


def test_a_scan_over_layers_takes_less_where_it_saves_less() -> None:
    results = [_measure(policy, scanned=True) for policy in ("nothing", "dots", "everything")]
    for result in results:
        _assert_computes_what_the_pytorch_model_does(result)
    peaks = [result["peak_bytes"] for result in results]
    assert results[0]["gradient_bytes"] < peaks[0]
    assert peaks == sorted(set(peaks))


def test_without_jax_it_says_so_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["jax_twin", "--model", "tiny"])
    assert jax_twin.main() == jax_twin.JAX_IS_MISSING == 3
    assert "pip install jax" in capsys.readouterr().err
