"""Deep problems without tracing them: the layers of a captured problem, repeated.

A joint graph of L equal layers is periodic in three places, with a head before and a tail behind each:

    inputs      head │ layer 0 │ layer 1 │ ... │ layer L-1 │ tail        weights
    forward     head │ layer 0 │ layer 1 │ ... │ layer L-1 │ tail
    backward    head │ layer L-1 │ ...   │ layer 1 │ layer 0 │ tail      the loss first, the embedding last

Where the periods lie is found by comparing values. A problem of n layers takes layer 0 and layer L-1 as they are and
repeats layer 1; what a value reads stays as many layers away as it was. From four layers on, all inner ones are alike
or the problem is refused. Torch-free. A captured problem of six layers is equal to one of four repeated to six, but for
names (`tests/integration/test_planner_benchmark.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from remat_pass.problem import Kind, RematProblem, Value


@dataclass(frozen=True, slots=True)
class _Region:
    """Positions `start` to `end` of a problem; layer by layer from `first` on, `period` values each."""

    start: int
    end: int
    first: int
    period: int
    layers: int
    reversed: bool = False
    """Whether the last layer comes first."""

    @property
    def behind(self) -> int:
        """Where the tail begins."""
        return self.first + self.layers * self.period

    def layer_at(self, slot: int) -> int:
        return self.layers - 1 - slot if self.reversed else slot

    def repeated(self, start: int, layers: int) -> "_Region":
        """The same region from `start` on with another number of layers."""
        first = start + self.first - self.start
        end = first + layers * self.period + self.end - self.behind
        return _Region(start, end, first, self.period, layers, self.reversed)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value is: at an offset into a layer, or, if `layer` is None, into the head or the tail."""

    region: int
    in_tail: bool
    layer: int | None
    offset: int


class Template:
    """A problem of a few equal layers that can be repeated to any number of them."""

    def __init__(self, problem: RematProblem, layers: int) -> None:
        """Find the layers of a captured problem.

        Raises:
            ValueError: Fewer than four layers, none found, or inner layers differ.
        """
        if layers < 4:
            raise ValueError(f"{layers} layers do not show whether inner ones are alike; capture at least 4")
        self.problem, self.layers = problem, layers
        values = problem.values
        inputs = next(i for i, v in enumerate(values) if v.op != "placeholder")
        backward = next(i for i, v in enumerate(values) if v.needs_tangent and v.kind is not Kind.TANGENT)
        signatures = [_signature(v) for v in values]
        self.regions = [
            _periodic(signatures, 0, inputs, layers),
            _periodic(signatures, inputs, backward, layers),
            replace(_periodic(signatures, backward, len(values), layers), reversed=True),
        ]
        self.places = [_place(self.regions, p) for p in range(len(values))]
        self._refuse_different_layers()

    @property
    def values_per_layer(self) -> int:
        return sum(region.period for region in self.regions)

    def layers_for(self, values: int) -> int:
        """The number of layers whose problem has about so many values; at least as many as were captured."""
        rest = len(self.problem.values) - self.layers * self.values_per_layer
        return max(self.layers, round((values - rest) / self.values_per_layer))

    def repeat(self, layers: int) -> RematProblem:
        """The problem of so many layers.

        Raises:
            ValueError: Fewer layers than were captured.
        """
        if layers < self.layers:
            raise ValueError(f"{layers} layers are fewer than the {self.layers} that were captured")
        old, regions = self.problem, list[_Region]()
        for region in self.regions:
            regions.append(region.repeated(regions[-1].end if regions else 0, layers))
        places = [_place(regions, p) for p in range(regions[-1].end)]
        sources = [_position(self.regions, self._captured(place, layers)) for place in places]

        def moved(reader: _Place | None, source: int, target: int) -> int:
            return _position(regions, self._target(reader, source, target, layers))

        values = tuple(
            replace(
                old.values[source],
                name=old.values[source].name + ("" if place.layer is None else f".{place.layer}"),
                reads=tuple(moved(place, source, r) for r in old.values[source].reads),
                holds=tuple(moved(place, source, h) for h in old.values[source].holds),
            )
            for place, source in zip(places, sources, strict=True)
        )
        # Gradients are those of the first inputs, the parameters, in their order.
        trained = [(places[p], s) for p, s in enumerate(sources[: regions[0].end]) if s < len(old.gradients)]
        return replace(
            old,
            values=values,
            forward_outputs=tuple(moved(None, o, o) for o in old.forward_outputs),
            gradients=tuple(moved(place, s, old.gradients[s]) for place, s in trained),
        )

    def _captured(self, place: _Place, layers: int) -> _Place:
        """The captured value that a value of the repeated problem is made from."""
        if place.layer is None or place.layer == 0:
            return place
        return replace(place, layer=self.layers - 1 if place.layer == layers - 1 else 1)

    def _target(self, reader: _Place | None, source: int, target: int, layers: int) -> _Place:
        """What a repeated value reads, given what its source reads: as many layers away, or as near to an end."""
        place, layer = self.places[target], self.places[source].layer
        if place.layer is None:
            return place
        if reader is not None and reader.layer is not None and layer is not None:
            return replace(place, layer=reader.layer + place.layer - layer)
        return place if place.layer < self.layers / 2 else replace(place, layer=place.layer + layers - self.layers)

    def _refuse_different_layers(self) -> None:
        for i, place in enumerate(self.places):
            if place.layer is not None and 1 < place.layer < self.layers - 1:
                first = _position(self.regions, replace(place, layer=1))
                reads = [self._target(place, first, r, self.layers) for r in self.problem.values[first].reads]
                if reads != [self.places[r] for r in self.problem.values[i].reads]:
                    raise ValueError(f"{self.problem.values[i].name} reads other values than in the layer before")


def _signature(value: Value) -> Value:
    """What is equal in equal layers: everything but names and positions."""
    return replace(value, name="", reads=(0,) * len(value.reads), holds=(0,) * len(value.holds), source=None)


def _periodic(signatures: Sequence[Value], start: int, end: int, layers: int) -> _Region:
    """The longest period that repeats `layers` times in a region, as early as possible."""
    for period in range((end - start) // layers, 0, -1):
        run = 0
        for p in range(start, end - period):
            run = run + 1 if signatures[p] == signatures[p + period] else 0
            if run == period * (layers - 1):
                return _Region(start, end, p + 1 - run, period, layers)
    raise ValueError(f"values {start} to {end} do not repeat {layers} times")


def _place(regions: Sequence[_Region], position: int) -> _Place:
    number = next(k for k, region in enumerate(regions) if position < region.end)
    region = regions[number]
    if position < region.first:
        return _Place(number, False, None, position - region.start)
    if position >= region.behind:
        return _Place(number, True, None, position - region.behind)
    slot, offset = divmod(position - region.first, region.period)
    return _Place(number, False, region.layer_at(slot), offset)


def _position(regions: Sequence[_Region], place: _Place) -> int:
    region = regions[place.region]
    if place.layer is None:
        return (region.behind if place.in_tail else region.start) + place.offset
    return region.first + region.layer_at(place.layer) * region.period + place.offset
