"""From the sets that are retained into each stage to an explicit plan.

forward    what it must run, what is saved, and what that is computed from, in joint-graph order
backward   stage by stage what is missing (`stages.missing`), then the backward values of the stage; what was
contracted, views above all, runs again right before its reader unless its base is still the same copy
"""

from remat_pass.problem import CopyId, RematPlan, RematProblem, Run
from remat_pass.stages import Game, Step, is_at_hand, missing


def plan_retaining(problem: RematProblem, game: Game, retained: list[frozenset[int]]) -> RematPlan:
    """The explicit plan that retains the given items into each stage; the first are the saved ones."""
    return _Writer(problem, game).write(retained)


class _Writer:
    """Writes the runs of a plan, and remembers which copy of a value is the current one."""

    def __init__(self, problem: RematProblem, game: Game) -> None:
        self.problem = problem
        self.game = game
        self.index = {item.value: i for i, item in enumerate(game.items)}
        self.current: dict[int, CopyId] = {}
        self.made: dict[int, int] = {}
        self.runs: list[Run] = []
        self.read_by: dict[CopyId, tuple[CopyId, ...]] = {}

    def write(self, retained: list[frozenset[int]]) -> RematPlan:
        game = self.game
        forward = self._forward(retained[0] if retained else frozenset())
        self.current = {game.items[i].value: (game.items[i].value, 0) for i in (retained[0] if retained else ())}
        self._steps(game.entry)
        for s, stage in enumerate(game.stages):
            after = retained[s + 1] if s + 1 < len(retained) else frozenset()
            wanted = [*after, *(i for step in stage.steps for i in step.reads)]
            for i in missing(game, retained[s], wanted):
                self._run(game.items[i].value)
            self._steps(stage.steps)
        for g in self.problem.gradients:
            self._copy_of(g)
        return RematPlan(forward, tuple(self.runs))

    def _forward(self, saved: frozenset[int]) -> tuple[Run, ...]:
        problem = self.problem
        needed = {self.game.items[i].value for i in saved}
        steps = []
        for v in reversed(problem.forward_values):
            if v not in problem.inputs and (problem.runs_in_forward[v] or v in needed):
                reads = problem.values[v].reads
                needed.update(reads)
                steps.append(Run(v, 0, tuple((r, 0) for r in reads)))
        return tuple(reversed(steps))

    def _steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if step.value >= 0:
                reads = tuple(self._copy_of(r) for r in self.problem.values[step.value].reads)
                self.runs.append(Run(step.value, 0, reads))

    def _copy_of(self, v: int) -> CopyId:
        """The copy to read now; a view is computed again if its base is another copy than last time."""
        if self.problem.values[v].needs_tangent or is_at_hand(self.problem, v):
            return v, 0
        if v in self.index:
            return self.current[v]
        reads = tuple(self._copy_of(r) for r in self.problem.values[v].reads)
        known = self.current.get(v)
        if known is None or self.read_by[known] != reads:
            known = self._run(v)
        return known

    def _run(self, v: int) -> CopyId:
        reads = tuple(self._copy_of(r) for r in self.problem.values[v].reads)
        self.made[v] = self.made.get(v, 0) + 1
        self.current[v] = (v, self.made[v])
        self.runs.append(Run(v, self.made[v], reads))
        self.read_by[self.current[v]] = reads
        return self.current[v]
