"""Deep problems made by repeating layers, for the planner benchmark, are those that tracing as many layers gives."""

from dataclasses import replace

import pytest

from benchmarks.planning.joint import llama_joint
from benchmarks.planning.repeat import Template
from remat_pass.analysis import analyze
from remat_pass.problem import RematProblem, Value


def traced(layers: int, *, decomposed: bool) -> RematProblem:
    joint, _ = llama_joint(layers, width=16, heads=2, context=32, decomposed=decomposed)
    return analyze(joint, fuses=decomposed, cost_model="roofline")[1]


def unnamed(problem: RematProblem) -> list[Value]:
    return [replace(value, name="", source=None) for value in problem.values]


@pytest.mark.parametrize("decomposed", [False, True])
def test_repeated_layers_are_those_that_are_traced(decomposed: bool) -> None:
    repeated = Template(traced(4, decomposed=decomposed), 4).repeat(6)
    deep = traced(6, decomposed=decomposed)
    assert unnamed(repeated) == unnamed(deep)
    assert repeated.forward_outputs == deep.forward_outputs
    assert repeated.gradients == deep.gradients
