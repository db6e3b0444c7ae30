"""What is known of a module's hidden units: collected layer by layer, and made into groups at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from detectors.training.networks import Group, Slice
from pruning.modules.layouts import Along, Units, same

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Reading:
    """Where a layer hears units: what it is given, or for recurrent weights what it said itself.

    Attributes:
        module: Name of the layer.
        side: Of the layer.
        axis: From the end, so negative.
        group: Whose units.
        inner: Entries of a unit.
        voices: A name for what each block says.
        first: Block of the axis with which they begin.
    """

    module: str
    side: Side
    axis: int
    group: str
    inner: int
    voices: tuple[str, ...]
    first: int = 0


@dataclass(frozen=True)
class Heard:
    """Where it can be watched what a weight reads: the layer, its side, the axis from the end and the first block."""

    layer: str
    side: Side
    axis: int
    first: int = 0


@dataclass(frozen=True)
class Plan:
    """What can be pruned of a module, and why the rest can not.

    Attributes:
        groups: Hidden units that leave together, in the order of the forward pass. A group is named by the first layer
            that makes its units.
        layers: Which layers make the units of each group.
        protected: Why a layer keeps all its units, by layer.
        sized: For each layer that knows a shape beside its weights (norms, `nn.Unflatten`), which units lie along which
            axis of that shape.
        readings: Where layers hear units.
    """

    groups: tuple[Group, ...]
    layers: Mapping[str, tuple[str, ...]]
    protected: Mapping[str, str]
    sized: Mapping[str, tuple[tuple[str, Slice], ...]]
    readings: tuple[Reading, ...]

    @property
    def units(self) -> dict[str, int]:
        """Units by group."""
        return {group.name: group.width for group in self.groups}

    def without(self, reasons: Mapping[str, str]) -> Plan:
        """The plan with more groups protected: {group: why}."""
        said = {layer: why for group, why in reasons.items() for layer in self.layers[group]}
        return Plan(
            tuple(group for group in self.groups if group.name not in reasons),
            {name: layers for name, layers in self.layers.items() if name not in reasons},
            {**self.protected, **said},
            {
                layer: left
                for layer, places in self.sized.items()
                if (left := tuple(it for it in places if it[0] not in reasons))
            },
            tuple(reading for reading in self.readings if reading.group not in reasons),
        )


@dataclass(frozen=True)
class _Place:
    """Units along an axis of a tensor, before it is known how coarse they are."""

    along: Along
    reads: bool
    bias: str | None = None
    phases: int = 1
    heard: Heard | None = None


class Survey:
    """Collects who makes units and who reads them.

    Args:
        shared: Tensors that the module knows under several names: units that lie along them are protected.
    """

    def __init__(self, shared: frozenset[str]) -> None:
        self._shared = shared
        self._places: dict[tuple[str, int], _Place] = {}
        self._sized: dict[tuple[str, int], Along] = {}
        self._made: dict[str, Units] = {}
        self.refused: dict[str, str] = {}

    def made(self, layer: str, width: int) -> Units:
        """The units that a layer makes: the same ones each time it is called."""
        if layer not in self._made:
            self._made[layer] = Units(layer, width)
        return self._made[layer]

    def owns(self, tensor: str, axis: int, along: Along) -> None:
        """Units are made along an axis of a tensor."""
        self._put(tensor, axis, _Place(along, reads=False))

    def reads(self, tensor: str, axis: int, along: Along, heard: Heard, bias: str | None, phases: int = 1) -> None:
        """Units are read along an axis of a weight."""
        self._put(tensor, axis, _Place(along, reads=True, bias=bias, phases=phases, heard=heard))

    def knows(self, layer: str, axis: int, along: Along | None) -> None:
        """A layer knows a shape, along whose axis units lie; None: at one call they do not."""
        place = along or Along(_stuck(f"{layer} is also given what are no units"))
        same(self._sized.setdefault((layer, axis), place), place)

    def _put(self, tensor: str, axis: int, place: _Place) -> None:
        if tensor in self._shared:
            place.along.units.protect(f"{tensor} is shared by several layers")
        known = self._places.setdefault((tensor, axis), place)
        same(known.along, place.along)

    def fixed(self, tensor: str, axis: int, why: str) -> None:
        """An axis is read without units at one call: units that other calls have along it stay."""
        self._put(tensor, axis, _Place(Along(_stuck(why)), reads=True))

    def plan(self) -> Plan:
        """Groups of what has been collected."""
        named: dict[Units, str] = {}
        for units in self._made.values():
            root = units.root
            if root not in named:
                named[root] = root.layers[0]
            if not any(place.reads for place in self._places.values() if place.along.units.root is root):
                root.protect("nothing that can be followed reads its units")
        groups = {root: name for root, name in named.items() if not root.reason}
        return Plan(
            tuple(self._group(root, name) for root, name in groups.items()),
            {name: tuple(dict.fromkeys(root.layers)) for root, name in groups.items()},
            self.refused | {layer: units.reason for layer, units in self._made.items() if units.reason},
            self._resolved_sizes(groups),
            self._readings(groups),
        )

    def _group(self, root: Units, name: str) -> Group:
        own, consumers = [], []
        for (tensor, axis), place in self._places.items():
            if place.along.units.root is root:
                where = replace(_slice(tensor, axis, place.along), bias=place.bias, phases=place.phases)
                if place.reads:
                    consumers.append(replace(where, voices=_voices(place)))
                else:
                    own.append(where)
        return Group(name, root.width // root.grain, tuple(own), tuple(consumers))

    def _resolved_sizes(self, groups: Mapping[Units, str]) -> dict[str, tuple[tuple[str, Slice], ...]]:
        sized: dict[str, tuple[tuple[str, Slice], ...]] = {}
        for (layer, axis), along in self._sized.items():
            if along.units.root in groups:
                where = (groups[along.units.root], _slice(layer, axis, along))
                sized[layer] = (*sized.get(layer, ()), where)
        return sized

    def _readings(self, groups: Mapping[Units, str]) -> tuple[Reading, ...]:
        readings: dict[Reading, None] = {}
        for place in self._places.values():
            root = place.along.units.root
            if root in groups and place.heard is not None:
                inner = int(place.along.inner * root.grain)
                it = place.heard
                readings[Reading(it.layer, it.side, it.axis, groups[root], inner, _voices(place), it.first)] = None
        return tuple(readings)


def _stuck(why: str) -> Units:
    units = Units(None, 0)
    units.protect(why)
    return units


def _slice(tensor: str, axis: int, along: Along) -> Slice:
    inner = along.inner * along.units.grain
    assert inner.denominator == 1, f"{tensor}, axis {axis}: {inner} entries a unit"
    return Slice(tensor, axis, blocks=len(along.voices), inner=int(inner))


def _voices(place: _Place) -> tuple[str, ...]:
    assert place.heard is not None
    return tuple(f"{place.heard.layer} {place.heard.side} {voice}" for voice in place.along.voices)
