"""The waist: what the planner knows about a graph, and what it decides, without torch.

Analysis turns a joint graph into a `RematProblem`; the solver turns a `RematProblem` into a `RematPlan`;
the rewrite turns a `RematPlan` into two graphs. Everything that decides sees only the classes of this file,
so it is tested in milliseconds on problems written by hand.

    values 0 .. n-1 in joint-graph order, each reading earlier ones

    x ──► a ──► b ──► loss          forward values: computable without a tangent; may run in forward,
    │     │     │                   in backward, or in both (then b is *recomputed*)
    │     ▼     ▼
    └──► da ◄── db ◄── tangent      backward values: need a tangent; run once, in backward

A plan is two straight-line programs, tuples of `Run` steps. `Run(value=b, copy=1, reads=((a, 0),))` computes a
second copy of b from the copy of a that forward made. What is saved is not stated but follows: the copies that
forward makes and backward reads. Liveness, verification, rewriting and the plan file read only steps.
"""

import enum
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

CopyId = tuple[int, int]
"""(value, copy): one run of one value. Inputs and tangents have the one copy 0."""


class Kind(str, enum.Enum):
    """What computing a value means to the lowering."""

    STATIC_INPUT = "static input"
    """A parameter or buffer: resident anyway, free to save."""
    ACTIVATION_INPUT = "activation input"
    """Any other graph input: not counted in the peak, but saving it keeps it alive."""
    TANGENT = "tangent"
    """A gradient that autograd hands to backward."""
    SYMBOL = "symbol"
    """An integer, float or boolean that the host computes."""
    CONSTANT = "constant"
    """An attribute of the module: a lifted tensor or the graph of a higher-order op."""
    VIEW = "view"
    """Shares the storage of one of its reads."""
    PART = "part"
    """One output of an op that returns several."""
    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    RANDOM = "random"
    EXTERN = "extern"
    """A kernel of its own: matmul, convolution, attention, and everything unknown."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a storage: `hint` is what planning uses; `expression` the symbolic size, if shapes are dynamic."""

    hint: int
    expression: str | None = None


NO_BYTES = Size(0)


@dataclass(frozen=True, slots=True)
class Value:
    """What one node of the joint graph yields."""

    name: str
    """Name of the node in the joint graph."""
    op: str
    kind: Kind
    reads: tuple[int, ...] = ()
    """Values this one is computed from, in order of first use, each once."""
    size: Size = NO_BYTES
    """Storage that running it creates and that it owns. An input's is its own size, which no peak counts."""
    holds: tuple[int, ...] = ()
    """The reads whose storage stays alive as long as this value does: the base of a view."""
    copy_bytes: int = 0
    """Of an input: of the copy that its convolutions read instead, in the layout that they want. It is made first of
    all and lives to the last of them."""
    expanded_bytes: int = 0
    """Of the largest view of it that a library call reads, where that has more elements than it has itself."""
    workspace_bytes: int = 0
    """Bytes alive only while it runs. An op with several outputs has all of them here: its parts own them."""
    rng_state_bytes: int = 0
    """Bytes to save in forward so that a random value can be drawn again in backward."""
    recompute_ns: int = 0
    """Estimated time to compute it once more."""
    arithmetic_ns: int = 0
    """Estimated time that a generated loop spends on computing it, beside moving bytes."""
    save_ns: int = 0
    """Estimated time to write it in forward only because it is saved."""
    needs_tangent: bool = False
    """True for backward values."""
    has_effect: bool = False
    """It runs exactly once whatever is read of it: mutations, collectives, assertions."""
    waits: bool = False
    """Of backward, and run late for its first reader: what that one needs of forward runs before it, not behind it."""
    reduces_rows: bool = False
    """A reduction that leaves the last dimension: no loop over rows is fused with it."""
    cannot_recompute: str | None = None
    """Why running it twice is forbidden, or None."""
    cannot_save: str | None = None
    """Why it cannot be passed from forward to backward, or None."""
    wish: str | None = None
    """"save" or "recompute" where the user tagged it (checkpoint(), selective checkpointing), else None."""
    source: str | None = None
    """The user's file:line."""

    @property
    def is_input(self) -> bool:
        """Whether it is there before forward runs (parameters, buffers, activations, integers; not tangents)."""
        return self.kind in (Kind.STATIC_INPUT, Kind.ACTIVATION_INPUT) or (
            self.kind is Kind.SYMBOL and self.op == "placeholder"
        )

    @property
    def is_free(self) -> bool:
        """Whether running it takes no kernel, so that running it twice is no recompute worth the name."""
        return self.kind in (Kind.SYMBOL, Kind.CONSTANT, Kind.VIEW, Kind.PART)


@dataclass(frozen=True)
class RematProblem:
    """A joint graph as the planner sees it.

    Values are in joint-graph order, which is an execution order: reads come before readers, the forward part
    before the backward part. `forward_outputs` and `gradients` name what each program must return.
    """

    values: tuple[Value, ...]
    forward_outputs: tuple[int, ...]
    gradients: tuple[int, ...]
    fuses: bool = False
    """Whether the lowering fuses pointwise values into their readers (Inductor), so that they never exist."""
    joins_loops: bool = False
    """Whether it makes one function of all it generates between two library calls (Inductor's C++)."""
    calls_apart: int = 8
    """Over how many library calls such a lowering may move a loop to one that writes or loads what it loads."""
    delays_loops: bool = False
    """Whether it may do so where the later one needs the result of such a call, so that the earlier one waits."""
    margin_permille: int = 0
    """Stated prediction error of the lowering, in thousandths of the peak."""
    resident_forward_bytes: int = 0
    resident_backward_bytes: int = 0
    """What other compiled graphs keep alive while these two run."""
    symbolic: bool = field(default=False)
    """Whether some size is an expression: then every figure holds at the hinted sizes."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the structure: equal for equal graphs in every process. Neither costs nor order enter."""
        names = [v.name for v in self.values]
        rows = sorted(
            (
                v.name,
                v.op,
                [names[r] for r in v.reads],
                v.size.hint,
                str(v.size.expression),
                v.needs_tangent,
                v.has_effect,
            )
            for v in self.values
        )
        returned = [[names[i] for i in outputs] for outputs in (self.forward_outputs, self.gradients)]
        text = json.dumps([rows, returned, self.fuses])
        return hashlib.sha256(text.encode()).hexdigest()

    def with_margin(self, peak_bytes: int) -> int:
        """The smallest budget in bytes that a predicted peak fits, the prediction error of the lowering included."""
        return -(-peak_bytes * (1000 + self.margin_permille) // 1000)

    def without_margin(self, budget_bytes: int) -> int:
        """The largest predicted peak that a budget in bytes is enough for."""
        return budget_bytes * 1000 // (1000 + self.margin_permille)

    @cached_property
    def index(self) -> dict[str, int]:
        """Value by name."""
        return {value.name: i for i, value in enumerate(self.values)}

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For every value the values that read it, in order."""
        readers: list[list[int]] = [[] for _ in self.values]
        for i, value in enumerate(self.values):
            for read in value.reads:
                readers[read].append(i)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def size_bytes(self) -> np.ndarray:
        """Bytes of the storage that each value owns; shape (values,), int64."""
        return np.array([v.size.hint for v in self.values], dtype=np.int64)

    @cached_property
    def expanded_bytes(self) -> np.ndarray:
        """Bytes of the largest view of each value, as far as it is larger (`Value`); shape (values,), int64."""
        return np.array([v.expanded_bytes for v in self.values], dtype=np.int64)

    @cached_property
    def workspace_bytes(self) -> np.ndarray:
        """Bytes that each value takes only while it runs; shape (values,), int64."""
        return np.array([v.workspace_bytes for v in self.values], dtype=np.int64)

    @cached_property
    def has_holds(self) -> np.ndarray:
        """Whether each value keeps a storage of another alive; shape (values,), bool."""
        return np.array([bool(v.holds) for v in self.values], dtype=bool)

    @cached_property
    def runs_alone(self) -> np.ndarray:
        """Whether each value is a library call's, or a part of one's, or a tangent; shape (values,), bool."""
        kinds = (self.values[v.reads[0]].kind if v.kind is Kind.PART else v.kind for v in self.values)
        return np.array([kind in (Kind.EXTERN, Kind.RANDOM, Kind.TANGENT) for kind in kinds], dtype=bool)

    def is_kind(self, *kinds: Kind) -> np.ndarray:
        """Whether each value is of one of the kinds; shape (values,), bool."""
        if kinds not in self._of_kind:
            self._of_kind[kinds] = np.array([v.kind in kinds for v in self.values], dtype=bool)
        return self._of_kind[kinds]

    @cached_property
    def reduces_rows(self) -> np.ndarray:
        """`Value.reduces_rows` of each value; shape (values,), bool."""
        return np.array([v.reduces_rows for v in self.values], dtype=bool)

    def is_op(self, *names: str) -> np.ndarray:
        """Whether each value is of one of the ops, such as "aten.exp", in any overload; shape (values,), bool."""
        if names not in self._of_op:
            self._of_op[names] = np.array([v.op.rpartition(".")[0] in names for v in self.values], dtype=bool)
        return self._of_op[names]

    @cached_property
    def _of_kind(self) -> dict[tuple[Kind, ...], np.ndarray]:
        return {}

    @cached_property
    def _of_op(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}

    @cached_property
    def parts(self) -> dict[int, tuple[int, ...]]:
        """For every op that returns several values these, in order."""
        parts: dict[int, list[int]] = {}
        for i, value in enumerate(self.values):
            if value.kind is Kind.PART:
                parts.setdefault(value.reads[0], []).append(i)
        return {op: tuple(of) for op, of in parts.items()}

    @cached_property
    def drawn(self) -> frozenset[int]:
        """Random values and their parts."""
        random = [i for i, v in enumerate(self.values) if v.kind is Kind.RANDOM]
        return frozenset([*random, *(part for op in random for part in self.parts.get(op, ()))])

    @cached_property
    def forgettable(self) -> frozenset[int]:
        """Forward values that may run again after they have been there; of draws those that are no part, and once."""
        again = (i for i in self.forward_values if i not in self.inputs and not self.values[i].cannot_recompute)
        return frozenset(i for i in again if i not in self.drawn or self._is_whole(i))

    def _is_whole(self, v: int) -> bool:
        """Whether it is neither an op with several outputs nor one of these."""
        return v not in self.parts and self.values[v].kind is not Kind.PART

    @cached_property
    def forward_values(self) -> tuple[int, ...]:
        """Values that can be computed without a tangent, inputs included, in order."""
        return tuple(i for i, v in enumerate(self.values) if not v.needs_tangent)

    @cached_property
    def forward_layouts(self) -> dict[tuple[tuple[int, ...], bool], tuple[int, ...]]:
        """Steps of forward that `schedule` has worked out, by what it runs beside what it must, and their order."""
        return {}

    @cached_property
    def read_values(self) -> np.ndarray:
        """What the values read, inputs left out, one value's reads behind the other's; shape (reads,), int64."""
        return np.array([r for v in self.values for r in v.reads if r not in self.inputs], dtype=np.int64)

    @cached_property
    def read_bounds(self) -> np.ndarray:
        """Value v reads `read_values[read_bounds[v] : read_bounds[v + 1]]`; shape (values + 1,), int64."""
        return np.cumsum([0, *(sum(r not in self.inputs for r in v.reads) for v in self.values)])

    @cached_property
    def is_forward(self) -> np.ndarray:
        """Whether each value can be computed without a tangent; shape (values,), bool."""
        return np.array([not v.needs_tangent for v in self.values], dtype=bool)

    @cached_property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """What has to run with each value if it is not there: what it reads, and its parts."""
        return tuple((*v.reads, *self.parts.get(i, ())) for i, v in enumerate(self.values))

    @cached_property
    def backward_steps(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """What runs in backward, each with what has to be there that needs no tangent, inputs left out; in order."""
        values, wanted = self.values, dict[int, tuple[int, ...]]()
        for i in reversed(self.runs_in_backward):
            here = [r for r in values[i].reads if not values[r].needs_tangent and r not in self.inputs]
            if values[i].waits:
                here += wanted.get(self._first_reader(i), ())
            wanted[i] = tuple(dict.fromkeys(here))
        return tuple((i, wanted[i]) for i in self.runs_in_backward)

    def _first_reader(self, v: int) -> int:
        """The first step that reads a value, through views or not; -1 for none."""
        found = [v]
        for r in found:  # grows
            found += self.readers[r] if r == v or self.values[r].kind is Kind.VIEW else ()
        return min((r for r in found[1:] if self.values[r].kind is not Kind.VIEW), default=-1)

    @cached_property
    def inputs(self) -> frozenset[int]:
        """Values that are there before forward runs."""
        return frozenset(i for i, v in enumerate(self.values) if v.is_input)

    @cached_property
    def loaded_inputs(self) -> dict[int, tuple[int, ...]]:
        """The inputs of `_SHARED_BYTES` or more that values read directly, by value."""
        large = {i for i in self.inputs if self.values[i].size.hint >= _SHARED_BYTES}
        reads = ((v, tuple(r for r in value.reads if r in large)) for v, value in enumerate(self.values))
        return {v: inputs for v, inputs in reads if inputs}

    @cached_property
    def copied_inputs(self) -> tuple[int, ...]:
        """Inputs that the lowering copies for its convolutions."""
        return tuple(i for i in sorted(self.inputs) if self.fuses and self.values[i].copy_bytes)

    @cached_property
    def tangents(self) -> tuple[int, ...]:
        """What autograd hands to backward, in order."""
        return tuple(i for i, v in enumerate(self.values) if v.kind is Kind.TANGENT)

    @cached_property
    def read_in_backward(self) -> frozenset[int]:
        """Forward values that backward values read, or that backward returns."""
        read = {r for i in self.runs_in_backward for r in self.values[i].reads}
        return frozenset(i for i in (*read, *self.gradients) if not self.values[i].needs_tangent)

    @cached_property
    def runs_in_forward(self) -> tuple[bool, ...]:
        """For every value whether forward must run it whatever is saved: outputs, effects, and what they read."""
        must = [False] * len(self.values)
        for i in self.forward_outputs:
            must[i] = not self.values[i].needs_tangent
        for i in reversed(range(len(self.values))):
            value = self.values[i]
            must[i] = must[i] or (value.has_effect and not value.needs_tangent)
            if must[i]:
                for read in value.reads:
                    must[read] = True
        return tuple(must)

    @cached_property
    def runs_in_backward(self) -> tuple[int, ...]:
        """The backward values that gradients and effects need, in order."""
        must = [False] * len(self.values)
        for i in self.gradients:
            must[i] = True
        for i in reversed(range(len(self.values))):
            value = self.values[i]
            must[i] = must[i] or (value.has_effect and value.needs_tangent)
            if must[i] and value.needs_tangent:
                for read in value.reads:
                    must[read] = True
        return tuple(i for i, v in enumerate(self.values) if must[i] and v.needs_tangent and v.kind is not Kind.TANGENT)


_SHARED_BYTES = 10
"""Inductor fuses loops for what both load from so many bytes on (`score_fusion_memory_threshold`)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Compute one copy of a value from given copies of what it reads (parallel to `Value.reads`)."""

    value: int
    copy: int
    reads: tuple[CopyId, ...]


@dataclass(frozen=True, slots=True)
class RematPlan:
    """Two straight-line programs, in execution order. Forward runs copy 0 of a value, backward later ones."""

    forward: tuple[Run, ...]
    backward: tuple[Run, ...]

    def saved(self, problem: RematProblem) -> tuple[int, ...]:
        """Values whose forward copy, or whose input, backward reads or returns; in joint-graph order."""
        in_backward = {step.value for step in self.backward}
        read = {copy for step in self.backward for copy in step.reads}
        read.update((g, 0) for g in problem.gradients if g not in in_backward)
        return tuple(sorted(v for v, c in read if c == 0 and not problem.values[v].needs_tangent))

    def recomputed(self) -> dict[int, int]:
        """How often each value is run again: all its runs but the first, wherever that is."""
        counts: dict[int, int] = {}
        for step in (*self.forward, *self.backward):
            counts[step.value] = counts.get(step.value, -1) + 1
        return {v: n for v, n in counts.items() if n}
