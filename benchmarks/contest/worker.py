"""One contestant at one point, in a process of its own: `python -m benchmarks.contest.worker`.

`torch._dynamo.reset()` throws away every contestant's code, and the allocator's behaviour is fixed when a process
starts, so nobody shares a process. The driver asks, one question at a time, and this answers:

    probe      what Inductor and we find out about the processor once, into Inductor's cache
    prepare    build, compile (the first step), how much memory the process takes
    refer      write the gradients that others are compared with
    check      gradients and measured peak
    warm_up    a few steps
    step       one timed step; `compiles` says whether anything was compiled since
"""

import gc
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.cpu_vec_isa import pick_vec_isa

import remat_pass
from benchmarks.contest import gradients
from benchmarks.contest.channel import one_line, serve
from benchmarks.contest.contestants import CONTESTANTS, Unavailable
from benchmarks.contest.models import MODELS, Model, with_autocast, without_autocast
from remat_pass.kernel_times import processor_rates

_SEED = 1234
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
_PLAN_FIELDS = (
    "budget_bytes",
    "predicted_peak_bytes",
    "predicted_step_ns",
    "unconstrained_step_ns",
    "margin_permille",
    "unconstrained_peak_bytes",
    "least_peak_bytes",
    "recompute_ns",
    "planning_seconds",
    "judging_seconds",
)


class Runner:
    """The contestant and what it is asked; every public method is a question and returns a JSON-able answer."""

    model: Model
    module: nn.Module
    batch: tuple[Tensor, ...]
    function: Callable[..., Tensor]
    precision: str
    device: torch.device

    def probe(self) -> dict[str, Any]:
        """Which vector instructions compile and run, and how fast: some ten seconds, no part of compiling a model."""
        return {"vectors": str(pick_vec_isa()), "rates": repr(processor_rates())}

    def prepare(
        self, model: str, contestant: str, options: dict[str, Any], precision: str, device: str
    ) -> dict[str, Any]:
        """Everything up to the first step, which compiles."""
        self.model, self.precision, self.device = MODELS[model], precision, torch.device(device)
        module, batch = self.model.build()
        module = module.to(self.device)
        self.batch = tuple(tensor.to(self.device) for tensor in batch)
        self.module = with_autocast(module, self.device.type) if precision == "bf16" else module
        self.function = CONTESTANTS[contestant].prepare(self.model, self.module, options)
        begin = time.perf_counter()
        self._step()
        self._wait()
        seconds = time.perf_counter() - begin
        return {"compile_seconds": seconds, "plan": _planned(), **self._footprint()}

    def refer(self, path: str, against: str) -> dict[str, Any]:
        """Write this contestant's gradients as the reference `against`; those of the next precision, if none draws."""
        loss, own = self._gradients(self.function)
        tolerance = gradients.TOLERANCE[self.precision]
        allowed, truth = dict.fromkeys(own, tolerance), own
        if not self.model.draws:
            if self.precision == "bf16":
                loss, truth = self._gradients(without_autocast(self.module))
            else:
                loss, truth, for_jumps = self._exact()
                tolerance = max(tolerance, for_jumps)
            own = dict(zip(truth, own.values(), strict=True))  # the wrapper prefixes the names
            allowed = {name: max(tolerance, 2 * e) for name, e in gradients.errors(own, truth).items()}
        gradients.save(gradients.Reference(against, truth, allowed, loss), Path(path))
        return {"loss": loss}

    def _exact(self) -> tuple[float, gradients.Gradients, float]:
        """Loss and gradients in float64, and what their jumps allow; the parameters come back to the bit."""
        batch, self.batch = self.batch, tuple(t.double() if t.is_floating_point() else t for t in self.batch)
        self.module.double()
        try:
            loss, truth = self._gradients(self.module)
            for_jumps = gradients.tolerance_for_jumps(lambda: self._gradients(self.module)[1], self.module, truth)
            return loss, truth, for_jumps
        finally:
            self.module.float()
            self.batch = batch

    def check(self, reference: str) -> dict[str, Any]:
        """Gradients against the reference file (or against this contestant's own loss), and the measured peak."""
        known = gradients.load(Path(reference))
        loss, got = self._gradients(self.function)
        verdicts = []
        if self.model.draws:
            verdicts.append(gradients.differences(self._loss, without_autocast(self.module), got, self.precision))
        if not self.model.draws or gradients.same_masks(loss, known):
            verdicts.append(gradients.compare(got, known))
        worst = max(verdicts, key=lambda v: (not v.passed, v.error / v.allowed))
        return {
            "loss": loss,
            "gradient_norm": gradients.norm(got),
            "gradient_bytes": sum(p.numel() * p.element_size() for p in self.module.parameters() if p.requires_grad),
            "gradients": worst.to_json(),
            "peak_bytes": remat_pass.measure_peak_bytes(self._step, device=self.device),
        }

    def warm_up(self, steps: int) -> dict[str, Any]:
        """Steps that nobody times; collects garbage, so that none has to be collected soon."""
        for _ in range(steps):
            self._step()
        gc.collect()
        return {"compiles": _compiles(), **self._footprint()}

    def step(self) -> dict[str, Any]:
        """Forward and backward: seconds, page faults (memory taken anew from the system), and compilations so far."""
        self._wait()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        self.function(*self.batch).backward()
        self._wait()
        seconds = time.perf_counter() - begin
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        self.module.zero_grad(set_to_none=True)
        return {"seconds": seconds, "page_faults": faults, "compiles": _compiles()}

    def _step(self) -> None:
        self.function(*self.batch).backward()
        self.module.zero_grad(set_to_none=True)

    def _loss(self) -> float:
        """The loss at the seed, from the same graph as in a step: gradients enabled, and dropped."""
        torch.manual_seed(_SEED)
        return float(self.function(*self.batch).detach())

    def _gradients(self, function: Callable[..., Tensor]) -> tuple[float, gradients.Gradients]:
        """The loss and the gradients at the seed, by the names of the module without autocast."""
        torch.manual_seed(_SEED)
        loss = function(*self.batch)
        loss.backward()
        found = gradients.collect(without_autocast(self.module))
        self.module.zero_grad(set_to_none=True)
        return float(loss.detach()), found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _footprint(self) -> dict[str, int]:
        """Bytes that this process takes where the steps run, and bytes that are free there."""
        if self.device.type == "cuda":
            free_bytes, _ = torch.cuda.mem_get_info(self.device)
            return {"held_bytes": torch.cuda.max_memory_reserved(self.device), "free_bytes": free_bytes}
        held_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT_BYTES
        return {"held_bytes": held_bytes, "free_bytes": psutil.virtual_memory().available}


def _planned() -> dict[str, Any] | None:
    """What our backend planned last in this process; None for everyone else."""
    reports = remat_pass.reports()
    return {name: getattr(reports[-1], name) for name in _PLAN_FIELDS} if reports else None


def _compiles() -> int:
    """How many frames Dynamo has looked at so far; a recompilation adds one."""
    return sum(counters["frames"].values()) + counters["stats"]["unique_graphs"]


def answer(runner: Runner, question: dict[str, Any]) -> dict[str, Any]:
    """What goes wrong is an answer too."""
    try:
        return getattr(runner, question.pop("do"))(**question)
    except Unavailable as error:
        return {"failed": str(error), "unavailable": True}
    except Exception as error:  # a contestant may fail in any way; why is what its row says
        traceback.print_exc()
        return {"failed": one_line(error)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    serve(partial(answer, Runner()))
