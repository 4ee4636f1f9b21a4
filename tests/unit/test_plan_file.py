"""Plans as text: what comes back, what is refused and with which words.

Mutants these tests kill: each check of `check_plan` left out.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from remat_pass.errors import PlanError
from remat_pass.plan_file import check_plan, dump_plan, load_plan
from remat_pass.problem import RematPlan, RematProblem, Run
from tests.support.problems import Draft, chain, plan_keeping, residual_chain, step

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> str:
    file = folder / "plan.json"
    file.write_text(text)
    return str(file)


def test_text_of_a_plan() -> None:
    problem = chain(1)
    plan = plan_keeping(problem, "")
    assert json.loads(dump_plan(problem, plan)) == {
        "format": 1,
        "plans": {
            problem.fingerprint: {
                "forward": [["f1", 0, [["x", 0]]]],
                "backward": [["f1", 1, [["x", 0]]], ["b1", 0, [["t", 0], ["f1", 1]]]],
            }
        },
    }


@pytest.mark.parametrize("kept", ["", "r1", "a1 r1 a2 r2 a3", "o1 o2 o3"])
def test_a_plan_survives_the_file(tmp_path: Path, kept: str) -> None:
    problem = residual_chain(3)
    plan = plan_keeping(problem, kept)
    assert load_plan(written(tmp_path, dump_plan(problem, plan)), problem) == plan


def test_a_folder_is_searched_for_the_plan_of_this_graph(tmp_path: Path) -> None:
    problems = (chain(2), chain(3), chain(4))
    for i, problem in enumerate(problems):
        folder = tmp_path / f"graph_{i}"
        folder.mkdir()
        written(folder, dump_plan(problem, plan_keeping(problem, "f1")))
    for problem in problems:
        assert load_plan(str(tmp_path), problem) == plan_keeping(problem, "f1")


def test_equal_plans_are_equal_bytes_in_every_process() -> None:
    """Whatever the hash seed; and a planner that imported torch on the way would not be the torch-free one."""
    code = (
        "import sys\n"
        "from remat_pass.choice import choose\n"
        "from remat_pass.plan_file import dump_plan\n"
        "from remat_pass.schedule import plan_of\n"
        "from tests.support.problems import MIB, residual_chain\n"
        "problem = residual_chain(3)\n"
        "for budget in (None, 12 * MIB, 0.7):\n"
        "    print(dump_plan(problem, plan_of(problem, choose(problem, budget, None).candidate.decisions)))\n"
        "assert 'torch' not in sys.modules, 'the planner imported torch'\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(texts) == 1
    assert texts.pop().count('"format": 1') == 3


def test_a_plan_of_another_graph_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, dump_plan(chain(2), plan_keeping(chain(2), "")))
    problem = chain(3)
    with pytest.raises(PlanError) as caught:
        load_plan(path, problem)
    message = str(caught.value)
    assert f"plan={path!r} has no plan for this graph of {len(problem.values)} values" in message
    assert f"fingerprint {problem.fingerprint[:12]}" in message
    assert f"it holds {chain(2).fingerprint[:12]}" in message
    assert "plan again without plan=" in message


def test_an_empty_folder_holds_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="it holds no plan"):
        load_plan(str(tmp_path), chain(1))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"plans": {}}', '{"format": 1}', '{"format": 1, "plans": 3}']
)
def test_what_is_no_plan_file_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlanError, match=r"plan\.json is not a plan file \(.*Pass a file that debug_dir= wrote"):
        load_plan(written(tmp_path, text), chain(1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.json is not a plan file .*No such file"):
        load_plan(str(tmp_path / "nowhere.json"), chain(1))


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has format 2, this version reads 1"):
        load_plan(written(tmp_path, '{"format": 2, "plans": {}}'), chain(1))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "plan",
        {"forward": []},
        {"forward": 3, "backward": []},
        {"forward": [["f1", 0]], "backward": []},
        {"forward": [["unknown", 0, []]], "backward": []},
        {"forward": [["f1", 0, [["unknown", 0]]]], "backward": []},
        {"forward": [[["f1"], 0, []]], "backward": []},
        {"forward": [["f1", "first", [["x", 0]]]], "backward": []},
        {"forward": [["f1", None, [["x", 0]]]], "backward": []},
        {"forward": [["f1", 0, [["x", [0]]]]], "backward": []},
    ],
)
def test_a_malformed_plan_is_refused(tmp_path: Path, entry: object) -> None:
    problem = chain(1)
    path = written(tmp_path, json.dumps({"format": 1, "plans": {problem.fingerprint: entry}}))
    with pytest.raises(PlanError, match=r"the plan in .* is malformed"):
        load_plan(path, problem)


def test_a_plan_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    problem = chain(2)
    plan = plan_keeping(problem, "")
    wrong = replace(plan, backward=plan.backward[:-1])
    with pytest.raises(PlanError, match=r"does not compute this graph: backward does not compute b1\. Plan again"):
        load_plan(written(tmp_path, dump_plan(problem, wrong)), problem)


def graph() -> RematProblem:
    """One of everything that a plan can get wrong."""
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.view("v", "a")
    draft.random("drawn", "v")
    draft.effect("log", "drawn")
    draft.op("gathered", "a", cannot_recompute="a collective: every rank would have to run it again")
    draft.op("out", "drawn gathered")
    draft.tangent("t")
    draft.backward("g", "t v drawn")
    draft.backward("h", "g gathered")
    return draft.build(outputs="out", gradients="h")


def rows(text: str, problem: RematProblem) -> tuple[Run, ...]:
    """Steps such as "a(x) v'(a')"."""
    steps = (item.rstrip(")").split("(") for item in text.split())
    return tuple(step(problem, name, *(r for r in reads.split(",") if r)) for name, reads in steps)


FORWARD = "a(x) v(a) drawn(v) log(drawn) gathered(a) out(drawn,gathered)"
BACKWARD = "v'(a) g(t,v',drawn) h(g,gathered)"


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (FORWARD, BACKWARD),
        (FORWARD, "a'(x) v'(a') drawn'(v') g(t,v',drawn') h(g,gathered)"),
        (FORWARD, "a'(x) a''(x) v'(a') v''(a'') drawn'(v'') g(t,v',drawn') h(g,gathered)"),
    ],
)
def test_plans_that_compute_the_graph_are_accepted(forward: str, backward: str) -> None:
    problem = graph()
    assert check_plan(problem, RematPlan(rows(forward, problem), rows(backward, problem))) is None


@pytest.mark.parametrize(
    ("forward", "backward", "fault"),
    [
        (FORWARD + " a(x)", BACKWARD, "a, copy 0, is computed twice"),
        (FORWARD, "v'(a) v'(a) g(t,v',drawn) h(g,gathered)", "v, copy 1, is computed twice"),
        (FORWARD, BACKWARD + " h(g,gathered)", "h, copy 0, is computed twice"),
        (FORWARD + " g(t,v,drawn)", "h(g,gathered)", "g, copy 0, needs a tangent and runs in forward"),
        (
            FORWARD + " a'(x)",
            BACKWARD,
            "a, copy 1, runs in the wrong program: forward makes copy 0, backward the others",
        ),
        (FORWARD, "v'(a) g'(t,v',drawn) h(g',gathered)", "g, copy 1, runs in the wrong program"),
        (FORWARD, "a(x) " + BACKWARD, "a, copy 0, is computed twice"),
        (
            FORWARD,
            "v'(a) gathered'(a) g(t,v',drawn) h(g,gathered')",
            "gathered, copy 1, may not be recomputed: a collective: every rank would have to run it again",
        ),
        (FORWARD, "log'(drawn) " + BACKWARD, "log, copy 1, may not be recomputed: has a side effect"),
        (
            FORWARD,
            "v'(a) drawn'(v') drawn''(v') g(t,v',drawn'') h(g,gathered)",
            "drawn, copy 2, is random and can be drawn again only once",
        ),
        (FORWARD, "v'(a) g(t,drawn,v') h(g,gathered)", "g, copy 0, reads other values than the graph"),
        (FORWARD, "v'(a) g(t,v') h(g,gathered)", "g, copy 0, reads other values than the graph"),
        (FORWARD, "g(t,v',drawn) v'(a) h(g,gathered)", "g, copy 0, reads v, copy 1, which is not there"),
        (FORWARD, "v'(a'') g(t,v',drawn) h(g,gathered)", "v, copy 1, reads a, copy 2, which is not there"),
        ("v(a) " + FORWARD, BACKWARD, "v, copy 0, reads a, copy 0, which is not there"),
        # A view cannot be passed from forward to backward.
        (FORWARD, "g(t,v,drawn) h(g,gathered)", "g, copy 0, reads v, copy 0, which is not there"),
        ("a(x) v(a) drawn(v) gathered(a) out(drawn,gathered)", BACKWARD, "forward does not compute log"),
        ("a(x) v(a) drawn(v) log(drawn) gathered(a)", BACKWARD, "forward does not compute out"),
        (FORWARD, "v'(a) g(t,v',drawn)", "backward does not compute h"),
        (FORWARD, "", "backward does not compute g"),
    ],
)
def test_every_fault_of_a_plan_is_named(forward: str, backward: str, fault: str) -> None:
    problem = graph()
    found = check_plan(problem, RematPlan(rows(forward, problem), rows(backward, problem)))
    assert found is not None
    assert found.startswith(fault)


def test_a_value_that_only_forward_could_make_first_may_be_made_in_backward_alone() -> None:
    draft = Draft()
    draft.input("x")
    draft.op("out", "x")
    draft.op("slope", "x")
    draft.tangent("t")
    draft.backward("g", "t slope")
    problem = draft.build(outputs="out", gradients="g")
    assert check_plan(problem, RematPlan(rows("out(x)", problem), rows("slope'(x) g(t,slope')", problem))) is None
