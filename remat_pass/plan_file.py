"""Plans as text: save one, diff two, pin one for every later run.

A plan file is JSON with one entry per compiled graph, found by the fingerprint of the problem it was made for:

    {"format": 1, "plans": {"<fingerprint>": {"forward": [["mul", 0, [["x", 0]]], ...], "backward": [...]}}}

A step is [value, copy, [[value, copy], ...]] with values by name. Keys are sorted and nothing depends on time, host or
hash seed, so equal plans are equal bytes.
"""

import json
from pathlib import Path
from typing import Any

from remat_pass.errors import PlanError
from remat_pass.problem import CopyId, RematPlan, RematProblem, Run

FORMAT = 1
FILE_NAME = "plan.json"


def dump_plan(problem: RematProblem, plan: RematPlan) -> str:
    """The text of a plan file that holds this one plan."""
    names = [v.name for v in problem.values]

    def rows(steps: tuple[Run, ...]) -> list[list[Any]]:
        return [[names[s.value], s.copy, [[names[v], c] for v, c in s.reads]] for s in steps]

    entry = {"forward": rows(plan.forward), "backward": rows(plan.backward)}
    return json.dumps({"format": FORMAT, "plans": {problem.fingerprint: entry}}, sort_keys=True) + "\n"


def load_plan(path: str, problem: RematProblem) -> RematPlan:
    """The plan that a file, or any `plan.json` below a folder, holds for this graph.

    Raises:
        PlanError: No file, not a plan file, no plan for this graph, or one that does not compute it.
    """
    files = sorted(Path(path).rglob(FILE_NAME)) if Path(path).is_dir() else [Path(path)]
    found: list[str] = []
    for file in files:
        plans = _read(file)
        if problem.fingerprint in plans:
            return _parse(plans[problem.fingerprint], problem, file)
        found += sorted(plans)
    held = ", ".join(f[:12] for f in found) or "no plan"
    raise PlanError(
        f"plan={path!r} has no plan for this graph of {len(problem.values)} values with fingerprint "
        f"{problem.fingerprint[:12]}; it holds {held}. The model, its input shapes, the torch version or the lowering "
        "differ from those the plan was made with: plan again without plan=, and save that plan with debug_dir=."
    )


def check_plan(problem: RematProblem, plan: RematPlan) -> str | None:
    """What is wrong with a plan, or None: every step reads copies made before it, nothing runs twice that may not."""
    values = problem.values
    made: set[CopyId] = {(i, 0) for i, v in enumerate(values) if v.is_input}
    fault = _check_steps(problem, plan.forward, made, in_backward=False)
    if fault:
        return fault
    missing = [i for i, must in enumerate(problem.runs_in_forward) if must and (i, 0) not in made]
    if missing:
        return f"forward does not compute {values[missing[0]].name}"
    made |= {(i, 0) for i, v in enumerate(values) if v.needs_tangent and v.op == "placeholder"}
    unsavable = {(i, 0) for i, v in enumerate(values) if v.cannot_save and not v.needs_tangent}
    fault = _check_steps(problem, plan.backward, made - unsavable, in_backward=True)
    if fault:
        return fault
    ran = {s.value for s in plan.backward}
    for i in (*problem.runs_in_backward, *problem.gradients):
        if i not in ran and (i, 0) not in made - unsavable:
            return f"backward does not compute {values[i].name}"
    return None


def _check_steps(problem: RematProblem, steps: tuple[Run, ...], made: set[CopyId], *, in_backward: bool) -> str | None:
    for step in steps:
        value = problem.values[step.value]
        where = f"{value.name}, copy {step.copy},"
        if (step.value, step.copy) in made:
            return f"{where} is computed twice"
        if value.needs_tangent and not in_backward:
            return f"{where} needs a tangent and runs in forward"
        if (step.copy > 0) != (in_backward and not value.needs_tangent):
            return f"{where} runs in the wrong program: forward makes copy 0, backward the others"
        if step.copy and value.cannot_recompute:
            return f"{where} may not be recomputed: {value.cannot_recompute}"
        if step.copy > 1 and value.rng_state_bytes:
            return f"{where} is random and can be drawn again only once"
        if tuple(v for v, _ in step.reads) != value.reads:
            return f"{where} reads other values than the graph"
        unmade = [copy for copy in step.reads if copy not in made]
        if unmade:
            return f"{where} reads {problem.values[unmade[0][0]].name}, copy {unmade[0][1]}, which is not there"
        made.add((step.value, step.copy))
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
        if document["format"] != FORMAT:
            raise PlanError(f"plan file {file} has format {document['format']!r}, this version reads {FORMAT}.")
        return dict(document["plans"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{file} is not a plan file ({error}). Pass a file that debug_dir= wrote.") from error


def _parse(entry: Any, problem: RematProblem, file: Path) -> RematPlan:
    index = problem.index

    def number(copy: Any) -> int:
        if type(copy) is not int or copy < 0:
            raise ValueError(f"copy {copy!r} is not a whole number from 0")
        return copy

    def steps(rows: Any) -> tuple[Run, ...]:
        return tuple(Run(index[v], number(c), tuple((index[r], number(k)) for r, k in reads)) for v, c, reads in rows)

    try:
        plan = RematPlan(steps(entry["forward"]), steps(entry["backward"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"the plan in {file} is malformed ({error!r}). Plan again without plan=.") from error
    fault = check_plan(problem, plan)
    if fault:
        raise PlanError(f"the plan in {file} does not compute this graph: {fault}. Plan again without plan=.")
    return plan
