"""What workers of the `sizes` section do: solve a repeated problem, or trace a graph and partition it both ways.

Solving imports no torch, so that the memory of the process is the planner's own and its problem's.
"""

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_of
from remat_pass.solver import fastest_within, frontier

_SAMPLE_SECONDS = 0.02
_WIDTH, _HEADS, _CONTEXT = 64, 4, 64
"""Of traced models: small, so that building and probing them is quick; the number of nodes does not depend on it."""


class Cost:
    """Time and memory of what runs inside `watched`."""

    wall_seconds = 0.0
    cpu_seconds = 0.0
    before_bytes = 0
    peak_bytes = 0
    """Resident memory of the process: before, and at most."""


@contextmanager
def watched() -> Iterator[Cost]:
    """Measures its block; memory is sampled, as the system's own high-water mark may stem from before."""
    process, cost, done = psutil.Process(), Cost(), threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            cost.peak_bytes = max(cost.peak_bytes, process.memory_info().rss)

    cost.before_bytes = cost.peak_bytes = process.memory_info().rss
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.wall_seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        done.set()
        sampler.join()
        cost.peak_bytes = max(cost.peak_bytes, process.memory_info().rss)


def solve(template: str, nodes: int) -> dict[str, Any]:
    """Plan about so many joint nodes, repeated from a pickled `Template`."""
    repeatable = pickle.loads(Path(template).read_bytes())
    layers = repeatable.layers_for(nodes)
    problem = repeatable.repeat(layers)
    with watched() as cost:
        candidates = _plan(problem)
    return {"layers": layers, "nodes": len(problem.values), **_solved(problem, candidates, cost)}


def trace(layers: int) -> dict[str, Any]:
    """Trace a Llama-style model as Inductor would, and partition its joint graph our way and torch's."""
    from benchmarks.planning.joint import llama_joint
    from remat_pass import _torch_compat
    from remat_pass.analysis import analyze

    begin = time.perf_counter()
    joint, inputs = llama_joint(layers, width=_WIDTH, heads=_HEADS, context=_CONTEXT, decomposed=True)
    trace_seconds = time.perf_counter() - begin
    # The first analysis runs every distinct kernel once, to measure its scratch memory; a second one remembers.
    times = []
    for _ in range(2):
        with watched() as cost:
            _, problem, _unprobed = analyze(joint, fuses=True, cost_model="roofline")
        times.append(cost.cpu_seconds)
    with watched() as solving:
        candidates = _plan(problem)
    copy = _torch_compat.copy_graph_module(joint.module)
    with watched() as torchs:
        _torch_compat.partition_like_torch(
            copy, inputs, forward_count=joint.forward_count, static_indices=list(joint.static_indices)
        )
    return {
        "layers": layers,
        "nodes": len(problem.values),
        "trace_seconds": trace_seconds,
        "probing_seconds": max(0.0, times[0] - times[1]),
        "analysis_seconds": times[1],
        "torch_seconds": torchs.cpu_seconds,
        "torch_wall_seconds": torchs.wall_seconds,
        **_solved(problem, candidates, solving),
    }


def _plan(problem: RematProblem) -> int:
    """The whole frontier, and the plan for half the peak; returns the number of candidates."""
    candidates = frontier(problem)
    plan_of(problem, (fastest_within(candidates, candidates[0].peak_bytes // 2) or candidates[-1]).decisions)
    return len(candidates)


def _solved(problem: RematProblem, candidates: int, cost: Cost) -> dict[str, Any]:
    return {
        "fuses": problem.fuses,
        "candidates": candidates,
        "solve_seconds": cost.cpu_seconds,
        "solve_wall_seconds": cost.wall_seconds,
        "grown_bytes": cost.peak_bytes - cost.before_bytes,
        "process_bytes": cost.peak_bytes,
    }
