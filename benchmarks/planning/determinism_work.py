"""What workers of the `determinism` section do: plan graphs and hash all plans of their frontiers.

Torch is imported where a graph is traced alone, so that the others take a second.
"""

import hashlib
import random

from remat_pass.plan_file import dump_plan
from remat_pass.problem import RematProblem
from remat_pass.schedule import plan_of
from remat_pass.solver import frontier
from tests.support.problems import Draft, u_net


def digests(*, traced: bool = True) -> dict[str, str]:
    """By graph, with or without a traced one; equal in every process, whatever its hash seed."""
    problems = {"random, 40 values": _random(40), "U-Net, 12 levels": u_net(12)}
    if traced:
        problems["Llama, 2 layers, inductor"] = _llama()
    return {name: _digest(problem) for name, problem in problems.items()}


def _llama() -> RematProblem:
    from benchmarks.planning.joint import llama_joint
    from remat_pass.analysis import analyze

    joint, _ = llama_joint(2, width=32, heads=2, context=64, decomposed=True)
    return analyze(joint, fuses=True, cost_model="roofline")[1]


def _digest(problem: RematProblem) -> str:
    digest = hashlib.sha256()
    for candidate in frontier(problem):
        digest.update(f"{candidate.peak_bytes} {candidate.recompute_ns}\n".encode())
        digest.update(dump_plan(problem, plan_of(problem, candidate.decisions)).encode())
    return digest.hexdigest()


def _random(count: int) -> RematProblem:
    """Values that read one or two of the last five, and a backward that reads each; always the same."""
    chance = random.Random(0)
    draft = Draft()
    draft.input("v0")
    for i in range(1, count + 1):
        reads = {f"v{chance.randrange(max(0, i - 5), i)}": None for _ in range(chance.randint(1, 2))}
        draft.op(f"v{i}", " ".join(reads), mib=chance.randint(1, 4), us=chance.randint(1, 9))
    draft.tangent("t")
    previous = "t"
    for i in range(count, 0, -1):
        draft.backward(f"g{i}", f"{previous} v{i}", mib=chance.randint(1, 4))
        previous = f"g{i}"
    return draft.build(outputs=f"v{count}", gradients="g1")
