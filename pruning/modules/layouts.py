"""Where hidden units lie along the axes of a tensor, and what reshaping does to that.

An axis along which units lie has `blocks x width x inner` entries: block by block, in each block unit by unit, each
unit with `inner` neighbouring entries. What can not be said so is not followed: its units are protected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction


class Units:
    """Units that leave together, while it is being found out which do: joined sets share one root.

    Args:
        layer: Who makes them; None for a tensor of the module that only goes along.
        width: How many entries that layer makes of them.

    Attributes:
        layers: Who makes them.
        joined: The set that this one was joined to; what follows counts only where there is none.
        own_grain: Entries of a unit.
        own_reason: Why they are protected.
    """

    def __init__(self, layer: str | None, width: int) -> None:
        self.layers = [] if layer is None else [layer]
        self.width = width
        self.own_grain = 1
        self.own_reason = ""
        self.joined: Units | None = None

    @property
    def root(self) -> Units:
        """The set that speaks for all that were joined with it."""
        return self if self.joined is None else self.joined.root

    @property
    def grain(self) -> int:
        """Neighbouring entries of the layer that make one unit (positions that a view tells apart)."""
        return self.root.own_grain

    @property
    def reason(self) -> str:
        """Why they are protected; empty: they are not."""
        return self.root.own_reason

    def protect(self, reason: str) -> None:
        """Keeps them all; the first reason counts."""
        self.root.own_reason = self.root.own_reason or reason

    def coarsen(self, entries: int) -> None:
        """So many neighbouring entries of the layer leave together from now on."""
        root = self.root
        root.own_grain = math.lcm(root.own_grain, entries)
        if root.width % root.own_grain:
            self.protect("a view cuts through its units")

    def join(self, other: Units) -> None:
        """Unit j here and unit j there leave together from now on."""
        one, two = self.root, other.root
        if one is two:
            return
        if one.width != two.width:
            for each, met in ((one, two), (two, one)):
                each.protect(met.reason or "its units meet units of another number")
            return
        one.layers = [*one.layers, *two.layers]
        one.coarsen(two.own_grain)
        one.own_reason = one.own_reason or two.own_reason
        two.joined = one


@dataclass(frozen=True)
class Along:
    """Units along one axis.

    Attributes:
        units: Which.
        inner: Entries of one unit, for one entry of the layer that made it; a fraction after a view that splits units.
        voices: What each block says (both directions of a layer say different things).
    """

    units: Units
    inner: Fraction = Fraction(1)
    voices: tuple[str, ...] = ("",)


Axes = tuple[Along | None, ...]


@dataclass(frozen=True)
class Laid:
    """A tensor's shape and what lies along each axis."""

    shape: tuple[int, ...]
    axes: Axes = field(default=())

    def __post_init__(self) -> None:
        if not self.axes:
            object.__setattr__(self, "axes", (None,) * len(self.shape))
        assert len(self.axes) == len(self.shape), f"{len(self.axes)} axes for shape {self.shape}"

    @property
    def along(self) -> list[Along]:
        """Whatever lies along any axis."""
        return [axis for axis in self.axes if axis is not None]

    def protect(self, reason: str) -> None:
        """Protects all units in it."""
        for axis in self.along:
            axis.units.protect(reason)


def same(one: Along, two: Along) -> bool:
    """Joins units that lie the same way along two axes that meet entry by entry; False, and protected, where not."""
    if one.inner != two.inner or len(one.voices) != len(two.voices):
        for each in (one, two):
            each.units.protect("its units meet others that lie in another order")
        return False
    one.units.join(two.units)
    return True


def reshaped(laid: Laid, shape: Sequence[int]) -> Laid:
    """What `view` and `reshape` make of it: axes are merged and split as the sizes say."""
    axes: list[Along | None] = [None] * len(shape)
    seen = 0
    for (first, last), (start, stop) in _chunks(laid.shape, shape):
        seen = last
        merged = _merged(laid.shape[first:last], laid.axes[first:last])
        axes[start:stop] = _split(merged, shape[start:stop])
    Laid(laid.shape[seen:], laid.axes[seen:]).protect("a view cuts through its units")
    return Laid(tuple(shape), tuple(axes))


def _chunks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Smallest runs of old and of new axes with the same number of entries."""
    i = j = 0
    while i < len(old) and j < len(new):
        first, start, have, want = i, j, old[i], new[j]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have, i = have * old[i], i + 1
            else:
                want, j = want * new[j], j + 1
        yield (first, i), (start, j)


def _merged(sizes: Sequence[int], axes: Sequence[Along | None]) -> Along | None:
    """Neighbouring axes as one: what comes after units is inside them, what comes before repeats them."""
    along, before = None, 1
    for size, axis in zip(sizes, axes, strict=True):
        if axis is not None and along is not None:
            for each in (along, axis):
                each.units.protect("a view mixes its units with others")
            return None
        if axis is not None:
            along = replace(axis, voices=axis.voices * before)
        elif along is not None:
            along = replace(along, inner=along.inner * size)
        before *= size
    return along


def _split(along: Along | None, sizes: Sequence[int]) -> list[Along | None]:
    """One axis as several: blocks first, then the units, then what is inside them."""
    axes: list[Along | None] = [None] * len(sizes)
    if along is None:
        return axes
    blocks, rest = len(along.voices), math.prod(sizes)
    for i, size in enumerate(sizes):
        rest //= size
        if size == 1 or (blocks > 1 and blocks % size == 0):
            blocks //= size
            continue
        if size % blocks:
            along.units.protect("a view cuts through its units")
            return axes
        inner = along.inner / rest
        along.units.coarsen(inner.denominator)
        axes[i] = Along(
            along.units, inner, along.voices[:blocks] if blocks == len(along.voices) else _pooled(along, blocks)
        )
        return axes
    return axes


def _pooled(along: Along, blocks: int) -> tuple[str, ...]:
    """What blocks say when an axis of its own tells the others apart: all of it."""
    return ("+".join(dict.fromkeys(along.voices)),) * blocks
