"""A problem as a pebble game: the few values that are worth a decision, and the moments at which one can be taken.

The exact planners (`exact`, `milp`) search all plans of one shape, those of Checkmate with the backward values in the
order of the joint graph:

    forward   |  tangents  |  sweep  db3  |  sweep  db2 dw2  |  sweep  db1  |  sweep  end
                               ▲ a stage: forward values may run again, each at most once, in joint-graph order
                                 (the parts of an op right behind it); then backward values run

A plan of this shape is the sets of values that are *retained* into each stage, the saved values being those retained
into the first. What has to run again follows: what a stage reads or retains for the next and does not have, and what
that is computed from (`missing`). So the number of copies of a value is bounded by the number of stages only.

Contraction makes the game small without losing a plan:

    input, free to save         always at hand, never a decision                  `is_at_hand`
    view, constant              computed anew for every reader: a reader of a view reads its base   `_is_transparent`
    never read in backward      a fixed step of forward with fixed bytes          `_forward_steps`
    backward values             fixed steps with fixed bytes; two of them are one stage if recomputing between them is
                                no better than recomputing before or behind both  `_merge`

What it does not do: change the order of backward values or of forward, or run one value twice within a sweep
(`sweeps=2` allows that, and with it other orders within a stage).

Source: the stages are those of Jain et al., "Checkmate", MLSys 2020, https://arxiv.org/abs/1910.02653.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from remat_pass.fixed_bytes import add_up, backward_bytes, lifetimes
from remat_pass.problem import Kind, RematProblem


@dataclass(frozen=True, slots=True)
class Item:
    """A value worth a decision. Reads are items; what is at hand is left out."""

    value: int
    reads: tuple[int, ...]
    size: int
    workspace: int
    recompute_ns: int
    save_ns: int
    rng_bytes: int
    """Of the generator state that lets backward repeat the draw, once."""
    runs_in_forward: bool
    """Whether forward must run it. It may run any other, and what that is computed from."""
    can_save: bool
    can_recompute: bool
    is_tuple: bool
    """An op with several outputs: its parts run right behind it or not at all."""


@dataclass(frozen=True, slots=True)
class Step:
    """A value that runs at a fixed moment, or no value (-1): the arrival of the tangents, the end of backward."""

    value: int
    reads: tuple[int, ...]
    size: int
    """Bytes alive while it runs beside the items."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A sweep over all items, then steps of backward."""

    size: int
    """Bytes alive during the sweep beside the items."""
    held: frozenset[int]
    """Items whose storage a backward value holds across the sweep: they cannot be dropped in between."""
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Game:
    """All there is to decide on. Sizes in bytes, times in nanoseconds."""

    items: tuple[Item, ...]
    forward: tuple[tuple[Step, int | None], ...]
    """Forward in joint-graph order; with an item where the step is that item's run."""
    outputs: frozenset[int]
    """Items that live until forward returns."""
    entry: tuple[Step, ...]
    """The arrival of the tangents, and steps of backward before which no sweep is worthwhile."""
    stages: tuple[Stage, ...]
    sweep: tuple[int, ...]
    """Order of a sweep."""

    @property
    def moved_ns(self) -> int:
        """Time of the items that forward need not run: each runs once somewhere, which is no recompute."""
        return sum(item.recompute_ns for item in self.items if not item.runs_in_forward)


def game_of(problem: RematProblem, *, sweeps: int = 1, every_gap: bool = False) -> Game:
    """Contract a problem.

    Args:
        problem: The graph; its lowering must not fuse.
        sweeps: How many sweeps each stage has.
        every_gap: Whether every step of backward is a stage of its own.

    Raises:
        ValueError: The lowering fuses, or an op that is not free returns a storage it read and needs in backward.
    """
    if problem.fuses:
        raise ValueError("the exact planners count unfused storages; analyze the graph with fuses=False")
    roots = _roots(problem)
    relevant = _relevant(problem, roots)
    index = {v: i for i, v in enumerate(relevant)}
    items = tuple(_item(problem, v, index, roots) for v in relevant)
    of_root = {v: tuple(index[r] for r in roots[v] if r in index) for v in range(len(problem.values))}
    entry, stages = _backward(problem, of_root, every_gap)
    if sweeps > 1:
        stages = tuple(s for stage in stages for s in (*[replace(stage, steps=())] * (sweeps - 1), stage))
    return Game(
        items,
        _forward_steps(problem, index, of_root),
        frozenset(i for v in problem.forward_outputs for i in of_root[v]),
        entry,
        stages,
        _sweep_order(problem, relevant, index),
    )


def missing(game: Game, retained: frozenset[int], wanted: Iterable[int]) -> list[int]:
    """Items to run so that all wanted ones are there, in the order of a sweep."""
    run: set[int] = set()
    pending = [i for i in wanted if i not in retained]
    while pending:
        i = pending.pop()
        if i not in run:
            run.add(i)
            pending += [r for r in game.items[i].reads if r not in retained]
    return [i for i in game.sweep if i in run]


def is_at_hand(problem: RematProblem, v: int) -> bool:
    """Inputs, and what forward computes anyway and costs nothing to save."""
    value = problem.values[v]
    if value.is_input:
        return True
    free = not (value.size.hint or value.save_ns or value.cannot_save or value.holds)
    return problem.runs_in_forward[v] and free


def _is_transparent(problem: RematProblem, v: int, roots: list[tuple[int, ...]]) -> bool:
    """Whether it can be computed right before each reader for nothing: its bases are needed then anyway."""
    value = problem.values[v]
    costs = value.size.hint or value.workspace_bytes or value.recompute_ns or value.rng_state_bytes
    if costs or value.cannot_recompute or value.has_effect:
        return False
    return all(r in value.holds or not roots[r] for r in value.reads)


def _roots(problem: RematProblem) -> list[tuple[int, ...]]:
    """For every forward value the values that have to be there so that it can be read."""
    roots: list[tuple[int, ...]] = []
    for v, value in enumerate(problem.values):
        if value.needs_tangent or is_at_hand(problem, v):
            roots.append(())
        elif _is_transparent(problem, v, roots):
            roots.append(tuple(dict.fromkeys(r for read in value.reads for r in roots[read])))
        else:
            roots.append((v,))
    return roots


def _relevant(problem: RematProblem, roots: list[tuple[int, ...]]) -> list[int]:
    """The values that backward reads, directly or through what it may recompute, in joint-graph order."""
    needed = {r for v in problem.read_in_backward for r in roots[v]}
    for v in reversed(range(len(problem.values))):
        if v in needed:
            needed.update(r for read in problem.values[v].reads for r in roots[read])
    return sorted(needed)


def _item(problem: RematProblem, v: int, index: dict[int, int], roots: list[tuple[int, ...]]) -> Item:
    value = problem.values[v]
    if any(roots[h] for h in value.holds):
        raise ValueError(
            f"{value.name} ({value.op}) is not free to compute and shares the storage of a value that may be "
            "recomputed: the exact planners do not model that"
        )
    is_tuple = any(problem.values[r].kind is Kind.PART for r in problem.readers[v])
    return Item(
        value=v,
        reads=tuple(dict.fromkeys(index[r] for read in value.reads for r in roots[read])),
        size=value.size.hint,
        workspace=value.workspace_bytes,
        recompute_ns=value.recompute_ns,
        save_ns=value.save_ns,
        rng_bytes=value.rng_state_bytes,
        runs_in_forward=problem.runs_in_forward[v],
        can_save=value.cannot_save is None and not is_tuple,
        can_recompute=value.cannot_recompute is None,
        is_tuple=is_tuple,
    )


def _sweep_order(problem: RematProblem, relevant: list[int], index: dict[int, int]) -> tuple[int, ...]:
    """Joint-graph order with the parts of an op right behind it."""
    order: dict[int, None] = {}

    def add(v: int) -> None:
        order[index[v]] = None
        for r in problem.readers[v]:
            if problem.values[r].kind is Kind.PART and r in index:
                add(r)

    for v in relevant:
        if index[v] not in order:
            add(v)
    return tuple(order)


def _forward_steps(
    problem: RematProblem, index: dict[int, int], of_root: dict[int, tuple[int, ...]]
) -> tuple[tuple[Step, int | None], ...]:
    """Forward with the fixed bytes of what backward never needs."""
    values = problem.values
    steps = [
        v for v in problem.forward_values if v not in problem.inputs and (problem.runs_in_forward[v] or v in index)
    ]
    fixed = [v not in index for v in steps]
    sizes, last = lifetimes(problem, steps, returned=problem.forward_outputs)
    alive = add_up([s if f else 0 for s, f in zip(sizes, fixed, strict=True)], list(range(len(steps))), last)
    reads = [list(dict.fromkeys(i for r in values[v].reads for i in of_root[r])) for v in steps]
    for p, v in enumerate(steps):
        # An op that returns a storage it read keeps that storage as long as its result lives.
        for i in (i for h in values[v].holds for i in of_root[h]):
            at = min(last[p], len(steps) - 1)
            reads[at] = list(dict.fromkeys((*reads[at], i)))
    resident = problem.resident_forward_bytes
    return tuple(
        (Step(v, tuple(reads[p]), alive[p] + resident + (values[v].workspace_bytes if fixed[p] else 0)), index.get(v))
        for p, v in enumerate(steps)
    )


def _backward(
    problem: RematProblem, of_root: dict[int, tuple[int, ...]], every_gap: bool
) -> tuple[tuple[Step, ...], tuple[Stage, ...]]:
    """The fixed steps of backward with their fixed bytes, as (entry, stages)."""
    values, fixed = problem.values, backward_bytes(problem)
    end = len(fixed.order)
    reads: list[dict[int, None]] = [dict.fromkeys(i for r in values[v].reads for i in of_root[r]) for v in fixed.order]
    reads.append(dict.fromkeys(i for g in problem.gradients for i in of_root[g]))
    held: list[set[int]] = [set() for _ in range(end + 1)]
    for p, v in enumerate(fixed.order):
        for i in (i for h in values[v].holds for i in of_root[h]):
            for q in range(p + 1, fixed.last[p] + 1):
                reads[q][i] = None
                held[q].add(i)
    entry = (Step(-1, (), fixed.arrival),) if end else ()
    stages = []
    for p in range(len(problem.tangents), end):
        step = Step(fixed.order[p], tuple(reads[p]), fixed.during[p])
        stages.append(Stage(fixed.before[p], frozenset(held[p]), (step,)))
    if reads[end]:
        stages.append(Stage(fixed.after, frozenset(held[end]), (Step(-1, tuple(reads[end]), 0),)))
    return (entry, tuple(stages)) if every_gap else _merge(entry, stages, fixed.after)


def _merge(entry: tuple[Step, ...], stages: list[Stage], after: int) -> tuple[tuple[Step, ...], tuple[Stage, ...]]:
    """Drop sweeps that are no better than the one before or behind.

    Let a step read no item. Whatever its own sweep runs may as well run behind it, if the step needs no more bytes
    than the step before it did and leaves no more than the sweep had; and whatever the next sweep runs may as well run
    before it, if it needs no more bytes than the step behind it does and the sweep before it has no more.
    """
    merged: list[Stage] = []
    last = entry
    for k, stage in enumerate(stages):
        behind = stages[k + 1].size if k + 1 < len(stages) else after
        reads_nothing = not (stage.steps[0].reads or stage.held or stage.steps[0].value < 0)
        if last and reads_nothing and stage.steps[0].size <= last[-1].size and behind <= stage.size:
            if merged:
                merged[-1] = replace(merged[-1], steps=(*merged[-1].steps, *stage.steps))
                last = merged[-1].steps
            else:
                last = entry = (*entry, *stage.steps)
        else:
            merged.append(stage)
            last = stage.steps
    result: list[Stage] = []
    for stage in reversed(merged):
        following = result[-1] if result else None
        lone = len(stage.steps) == 1 and not (stage.steps[0].reads or stage.held or stage.steps[0].value < 0)
        can_follow = following is not None and following.steps[0].value >= 0 and not following.held
        if following and lone and can_follow and _fits_before(stage, following):
            result[-1] = replace(following, size=stage.size, steps=(*stage.steps, *following.steps))
            continue
        result.append(stage)
    return entry, tuple(reversed(result))


def _fits_before(stage: Stage, following: Stage) -> bool:
    return stage.steps[0].size <= following.steps[0].size and stage.size <= following.size
