"""What workers of the `sizes` section do: solve a repeated problem, or trace a graph and partition it both ways.

Solving imports no torch, so that the memory of the process is the planner's own and its problem's.
"""

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_of
from remat_pass.solver import fastest_within, frontier

_T = TypeVar("_T")
_R = TypeVar("_R")
_SAMPLE_SECONDS = 0.02
_RUNS = 3
"""Of which the fastest counts: other load on a machine only ever adds."""
_WIDTH, _HEADS, _CONTEXT = 64, 4, 64
"""Of traced models: small, so that building and probing them is quick; the number of nodes does not depend on it."""


@dataclass
class Cost:
    """Time and memory of what runs inside `watched`."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    before_bytes: int = 0
    peak_bytes: int = 0
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


def least_cost(prepare: Callable[[], _T], run: Callable[[_T], _R]) -> tuple[_R, Cost]:
    """What some runs return, each on what is prepared anew outside its time; their least times, their most memory."""
    costs = []
    for _ in range(_RUNS):
        prepared = prepare()
        with watched() as cost:
            result = run(prepared)
        costs.append(cost)
    return result, Cost(
        min(c.wall_seconds for c in costs),
        min(c.cpu_seconds for c in costs),
        costs[0].before_bytes,
        max(c.peak_bytes for c in costs),
    )


def solve(template: str, nodes: int) -> dict[str, Any]:
    """Plan about so many joint nodes, repeated from a pickled `Template`."""
    repeatable = pickle.loads(Path(template).read_bytes())
    layers = repeatable.layers_for(nodes)
    return {"layers": layers, **_solved(lambda: repeatable.repeat(layers))}


def trace(layers: int) -> dict[str, Any]:
    """Trace a Llama-style model as Inductor would, and partition its joint graph our way and torch's."""
    from benchmarks.planning.joint import llama_joint
    from remat_pass import _torch_compat
    from remat_pass.analysis import analyze

    begin = time.perf_counter()
    joint, inputs = llama_joint(layers, width=_WIDTH, heads=_HEADS, context=_CONTEXT, decomposed=True)
    trace_seconds = time.perf_counter() - begin

    def analyzed(_: None = None) -> RematProblem:
        return analyze(joint, fuses=True, cost_model="roofline")[1]

    # The first analysis runs every distinct kernel once, to measure its scratch memory; the others remember.
    with watched() as probing:
        analyzed()
    _, analysis = least_cost(lambda: None, analyzed)
    _, torchs = least_cost(
        lambda: _torch_compat.copy_graph_module(joint.module),
        lambda copy: _torch_compat.partition_like_torch(
            copy, inputs, forward_count=joint.forward_count, static_indices=list(joint.static_indices)
        ),
    )
    return {
        "layers": layers,
        "trace_seconds": trace_seconds,
        "probing_seconds": max(0.0, probing.cpu_seconds - analysis.cpu_seconds),
        "analysis_seconds": analysis.cpu_seconds,
        "torch_seconds": torchs.cpu_seconds,
        "torch_wall_seconds": torchs.wall_seconds,
        **_solved(analyzed),
    }


def _solved(problem: Callable[[], RematProblem]) -> dict[str, Any]:
    (nodes, fuses, candidates), cost = least_cost(problem, _plan)
    return {
        "nodes": nodes,
        "fuses": fuses,
        "candidates": candidates,
        "solve_seconds": cost.cpu_seconds,
        "solve_wall_seconds": cost.wall_seconds,
        "grown_bytes": cost.peak_bytes - cost.before_bytes,
        "process_bytes": cost.peak_bytes,
    }


def _plan(problem: RematProblem) -> tuple[int, bool, int]:
    """The whole frontier, and the plan for half the peak; returns nodes, whether the lowering fuses, and candidates."""
    candidates = frontier(problem)
    plan_of(problem, (fastest_within(candidates, candidates[0].peak_bytes // 2) or candidates[-1]).decisions)
    return len(problem.values), problem.fuses, len(candidates)
