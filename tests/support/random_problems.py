"""Random small problems, as Hypothesis strategies.

They keep what analysis guarantees: a view owns no bytes and is saved through its base; an op with several outputs
cannot be saved and its parts inherit why it may not run twice; draws and effects run once in forward; whatever can
neither be saved nor recomputed is read by its parts alone. Tags may be on any op, as selective checkpointing puts them.
"""

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from remat_pass.problem import NO_BYTES, Kind, RematProblem, Size, Value
from tests.support.problems import A_VIEW, NOT_A_TENSOR

_SIZES = st.integers(0, 4)
_TIMES = st.integers(0, 5)
_FORWARD_KINDS = ("plain", "plain", "plain", "plain", "view", "several", "random", "effect", "pinned", "unsavable")


@dataclass
class _Sketch:
    values: list[Value] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)
    """What other values may read: everything but the tuples of ops with several outputs."""

    def add(self, value: Value, *, readable: bool = True) -> int:
        self.values.append(value)
        if readable:
            self.tensors.append(len(self.values) - 1)
        return len(self.values) - 1


@st.composite
def problems(draw: st.DrawFn, *, most: int = 12, fuses: bool = False) -> RematProblem:
    """Problems with up to `most` values that forward computes, views and parts included."""
    sketch = _Sketch()
    for i in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from((Kind.STATIC_INPUT, Kind.ACTIVATION_INPUT)))
        sketch.add(Value(f"x{i}", "placeholder", kind, size=Size(draw(_SIZES))))
    inputs = len(sketch.values)
    target = inputs + draw(st.integers(1, most))
    while len(sketch.values) < target:
        _add_forward(draw, sketch, room=target - len(sketch.values))
    computed = [i for i in sketch.tensors if i >= inputs]
    outputs = draw(st.lists(st.sampled_from(computed), min_size=1, max_size=3, unique=True)) if computed else [0]
    tangents = [
        sketch.add(Value(f"t{i}", "placeholder", Kind.TANGENT, size=Size(draw(_SIZES)), needs_tangent=True))
        for i in range(len(outputs))
    ]
    gradients = _add_backward(draw, sketch, computed or [0], tangents)
    return RematProblem(
        tuple(sketch.values),
        tuple(sorted(outputs)),
        tuple(gradients),
        fuses=fuses,
        resident_forward_bytes=draw(st.sampled_from((0, 0, 1))),
        resident_backward_bytes=draw(st.sampled_from((0, 0, 2))),
    )


def _add_forward(draw: st.DrawFn, sketch: _Sketch, *, room: int) -> None:
    flavour = draw(st.sampled_from(_FORWARD_KINDS))
    name = f"v{len(sketch.values)}"
    # Mostly the newest value, so that graphs are deep as well as wide.
    recent = st.sampled_from(sketch.tensors[-2:])
    reads = tuple(draw(st.lists(recent | st.sampled_from(sketch.tensors), min_size=1, max_size=3, unique=True)))
    wish = draw(st.sampled_from((None, None, None, "save", "recompute")))
    if flavour == "view":
        base = reads[:1]
        sketch.add(Value(name, "view", Kind.VIEW, base, holds=base, cannot_save=A_VIEW, wish=wish))
        return
    times = {"recompute_ns": draw(_TIMES), "save_ns": draw(st.integers(0, 2))}
    workspace = draw(st.sampled_from((0, 0, 2)))
    if flavour == "several" and room >= 3:
        sizes = [draw(_SIZES), draw(_SIZES)]
        forbidden = draw(st.sampled_from((None, None, "a higher-order op")))
        whole = Value(name, "several", Kind.EXTERN, reads, workspace_bytes=sum(sizes) + workspace, **times)
        whole = replace(whole, cannot_recompute=forbidden, cannot_save=NOT_A_TENSOR, wish=wish)
        index = sketch.add(whole, readable=False)
        for k, size in enumerate(sizes):
            part = Value(
                f"{name}_{k}", "getitem", Kind.PART, (index,), Size(size), cannot_recompute=forbidden, wish=wish
            )
            sketch.add(part)
        return
    kind = draw(st.sampled_from((Kind.EXTERN, Kind.POINTWISE, Kind.REDUCTION)))
    value = Value(name, kind.value, kind, reads, Size(draw(_SIZES)), workspace_bytes=workspace, wish=wish, **times)
    if flavour == "random":
        value = replace(value, kind=Kind.RANDOM, has_effect=True, rng_state_bytes=1)
    elif flavour == "effect":
        value = replace(value, has_effect=True, cannot_recompute="has a side effect", wish=None)
    elif flavour == "pinned":
        value = replace(value, cannot_recompute="a collective", wish=None)
    elif flavour == "unsavable":
        value = replace(value, cannot_save="an attribute of the module", wish=None)
    sketch.add(value)


def _add_backward(draw: st.DrawFn, sketch: _Sketch, computed: list[int], tangents: list[int]) -> list[int]:
    """Backward values in reverse order of the forward values they read; returns the gradients."""
    available = list(tangents)
    made: list[int] = []
    for i in reversed(computed):
        if draw(st.integers(0, 3)) == 0:
            continue
        upstream = draw(st.sampled_from(available[-2:]) | st.sampled_from(available))
        other = draw(st.lists(st.sampled_from(computed + available), max_size=1))
        # What reads nothing of forward may wait for its reader.
        reads = tuple(dict.fromkeys((upstream, *other) if draw(st.booleans()) else (upstream, i, *other)))
        name = f"g{len(sketch.values)}"
        flavour = draw(st.sampled_from(("plain", "plain", "plain", "view", "several", "effect", "random")))
        size, workspace = Size(draw(_SIZES)), draw(st.sampled_from((0, 0, 3)))
        if flavour == "view":
            base = reads[:1]
            value = Value(name, "view", Kind.VIEW, base, holds=base, cannot_save=A_VIEW, needs_tangent=True)
        elif flavour == "several":
            whole = Value(
                name, "several", Kind.EXTERN, reads, workspace_bytes=size.hint + workspace, needs_tangent=True
            )
            index = sketch.add(replace(whole, cannot_save=NOT_A_TENSOR), readable=False)
            available.append(
                sketch.add(Value(f"{name}_1", "getitem", Kind.PART, (index,), NO_BYTES, needs_tangent=True))
            )
            value = Value(f"{name}_0", "getitem", Kind.PART, (index,), size, needs_tangent=True)
        else:
            kind = Kind.RANDOM if flavour == "random" else draw(st.sampled_from((Kind.EXTERN, Kind.POINTWISE)))
            value = Value(name, kind.value, kind, reads, size, workspace_bytes=workspace, needs_tangent=True)
            value = replace(value, has_effect=flavour == "effect")
        made.append(sketch.add(value))
        available.append(made[-1])
    gradients = draw(st.lists(st.sampled_from(available), min_size=1, max_size=3, unique=True))
    if draw(st.integers(0, 5)) == 0:  # a gradient that does not depend on a tangent
        gradients.append(draw(st.sampled_from(computed)))
    return gradients
