"""Small problems written by hand, in units a person adds up: a value is 1 MiB and takes 1 us unless a test says else.

A `Draft` names values, so that tests speak of "h1" where the planner speaks of 7:

    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.tangent("t")
    draft.backward("da", "t a")
    problem = draft.build(outputs="a", gradients="da")

    keep(problem, "a")          frozenset({1})
    forward(problem, plan)      "a"
"""

from collections.abc import Iterable
from dataclasses import replace

from remat_pass.problem import Kind, RematPlan, RematProblem, Run, Size, Value
from remat_pass.schedule import Program, decide, plan_of

MIB = 1024**2
US = 1000

A_VIEW = "a view: its base is saved instead, for the same bytes"
NOT_A_TENSOR = "not a tensor: its parts are saved instead"


class Draft:
    """A problem under construction. Reads are names, separated by spaces."""

    def __init__(self) -> None:
        self.values: list[Value] = []

    def input(self, name: str, mib: int = 1, *, static: bool = False) -> None:
        kind = Kind.STATIC_INPUT if static else Kind.ACTIVATION_INPUT
        self.values.append(Value(name, "placeholder", kind, size=Size(mib * MIB)))

    def op(
        self, name: str, reads: str = "", mib: int = 1, us: int = 1, kind: Kind = Kind.EXTERN, **more: object
    ) -> None:
        value = Value(name, kind.value, kind, self._indices(reads), Size(mib * MIB), recompute_ns=us * US)
        self.values.append(replace(value, **more))  # type: ignore[arg-type]

    def view(self, name: str, base: str, **more: object) -> None:
        holds = self._indices(base)
        self.op(name, base, 0, 0, Kind.VIEW, **{"holds": holds, "cannot_save": A_VIEW, **more})

    def several(self, name: str, reads: str, parts: dict[str, int], us: int = 1, **more: object) -> None:
        """An op with several outputs, `parts` by name and MiB: all of them are in its workspace while it runs."""
        workspace = sum(parts.values()) * MIB
        self.op(name, reads, 0, us, **{"workspace_bytes": workspace, "cannot_save": NOT_A_TENSOR, **more})
        inherited = {key: more[key] for key in ("cannot_recompute", "needs_tangent", "wish") if key in more}
        for part, mib in parts.items():
            self.op(part, name, mib, 0, Kind.PART, **inherited)

    def random(self, name: str, reads: str, mib: int = 1, state_mib: int = 1) -> None:
        """A draw that backward may repeat from a saved generator state."""
        self.op(name, reads, mib, kind=Kind.RANDOM, has_effect=True, rng_state_bytes=state_mib * MIB)

    def effect(self, name: str, reads: str, mib: int = 0, **more: object) -> None:
        reason = "has a side effect: running it twice would repeat it"
        self.op(name, reads, mib, has_effect=True, cannot_recompute=reason, **more)

    def tangent(self, name: str, mib: int = 1) -> None:
        self.values.append(Value(name, "placeholder", Kind.TANGENT, size=Size(mib * MIB), needs_tangent=True))

    def backward(self, name: str, reads: str, mib: int = 1, **more: object) -> None:
        self.op(name, reads, mib, **{"needs_tangent": True, **more})

    def build(self, *, outputs: str, gradients: str, **more: object) -> RematProblem:
        return RematProblem(tuple(self.values), self._indices(outputs), self._indices(gradients), **more)  # type: ignore[arg-type]

    def _indices(self, names: str) -> tuple[int, ...]:
        index = {value.name: i for i, value in enumerate(self.values)}
        return tuple(index[name] for name in names.split())


def chain(layers: int, **more: object) -> RematProblem:
    """Equal layers like tanh, whose gradient needs the output: f2 = f(f1), b2 = b(b3, f2)."""
    draft = Draft()
    draft.input("x")
    previous = "x"
    for i in range(1, layers + 1):
        draft.op(f"f{i}", previous)
        previous = f"f{i}"
    draft.tangent("t")
    previous = "t"
    for i in range(layers, 0, -1):
        draft.backward(f"b{i}", f"{previous} f{i}")
        previous = f"b{i}"
    return draft.build(outputs=f"f{layers}", gradients="b1", **more)


def residual_chain(layers: int) -> RematProblem:
    """Transformer-like layers on a residual path: a = up(r), 4 MiB; o = down(a); r' = r + o. Weights are static.

    r is the only thing that crosses from layer to layer, and it is cheap to recompute where its layer is recomputed
    anyway: a min cut alone keeps either everything or nothing of it (the cliff of pytorch#197838).
    """
    draft = Draft()
    draft.input("r0")
    draft.input("w", static=True)
    for i in range(1, layers + 1):
        draft.op(f"a{i}", f"r{i - 1} w", mib=4, us=40)
        draft.op(f"o{i}", f"a{i} w", us=40)
        draft.op(f"r{i}", f"r{i - 1} o{i}", us=2, kind=Kind.POINTWISE)
    draft.tangent("t")
    previous = "t"
    for i in range(layers, 0, -1):
        draft.backward(f"da{i}", f"{previous} a{i} w", mib=4)
        draft.backward(f"dr{i}", f"{previous} da{i} r{i - 1} w")
        previous = f"dr{i}"
    return draft.build(outputs=f"r{layers}", gradients="dr1")


def diamond() -> RematProblem:
    """a, then left and right of it, then both together; the gradients need left and right."""
    draft = Draft()
    draft.input("x")
    draft.op("a", "x")
    draft.op("left", "a")
    draft.op("right", "a")
    draft.op("out", "left right")
    draft.tangent("t")
    draft.backward("dl", "t right")
    draft.backward("dr", "t left")
    draft.backward("da", "dl dr")
    return draft.build(outputs="out", gradients="da")


def u_net(depth: int) -> RematProblem:
    """Every level on the way up reads the level of the same depth on the way down: up1 = u(up2, down1)."""
    draft = Draft()
    draft.input("x")
    previous = "x"
    for i in range(1, depth + 1):
        draft.op(f"down{i}", previous)
        previous = f"down{i}"
    for i in range(depth, 0, -1):
        draft.op(f"up{i}", f"{previous} down{i}" if previous != f"down{i}" else previous)
        previous = f"up{i}"
    draft.tangent("t")
    previous = "t"
    for i in range(1, depth + 1):
        draft.backward(f"dup{i}", f"{previous} up{i}")
        previous = f"dup{i}"
    for i in range(depth, 0, -1):
        draft.backward(f"ddown{i}", f"{previous} down{i}")
        previous = f"ddown{i}"
    return draft.build(outputs="up1", gradients="ddown1")


def keep(problem: RematProblem, names: str) -> frozenset[int]:
    """Values by name."""
    return frozenset(problem.index[name] for name in names.split())


def plan_keeping(problem: RematProblem, names: str) -> RematPlan:
    """The plan that saves what it can of the named values."""
    return plan_of(problem, decide(problem, keep(problem, names)))


def names(problem: RematProblem, indices: Iterable[int]) -> str:
    """Names of values, in the order given."""
    return " ".join(problem.values[i].name for i in indices)


def forward(problem: RematProblem, plan: RematPlan) -> str:
    """What forward runs, in order."""
    return _text(problem, plan.forward)


def backward(problem: RematProblem, plan: RematPlan) -> str:
    """What backward runs, in order; "a'" is the second copy of a, "a''" the third."""
    return _text(problem, plan.backward)


def positions(problem: RematProblem, program: Program) -> dict[str, int]:
    """Position of every step by name, with ' for each copy above 0."""
    steps = zip(program.values, program.copies, strict=True)
    return {problem.values[v].name + "'" * c: p for p, (v, c) in enumerate(steps)}


def step(problem: RematProblem, name: str, *reads: str) -> Run:
    """A step by names with ' for each copy above 0: step(problem, "b'", "a'", "x")."""
    (value, copy), *read = ((problem.index[n.rstrip("'")], n.count("'")) for n in (name, *reads))
    return Run(value, copy, tuple(read))


def _text(problem: RematProblem, steps: Iterable[Run]) -> str:
    return " ".join(problem.values[s.value].name + "'" * s.copy for s in steps)


def laid_out(program: Program) -> tuple[object, ...]:
    """All that a program says, to be compared with another."""
    copies = program.copies.tolist()
    return program.values, copies, program.reads, program.forward_end, program.saved, program.returned
