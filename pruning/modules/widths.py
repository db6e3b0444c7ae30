"""How many units each group of a module keeps."""

from __future__ import annotations

from collections.abc import Mapping

from detectors.errors import InvalidInputError
from pruning.modules.survey import Plan

GRID = 8  # widths are multiples of it where a group is wide enough: odd ones are slower, not faster
GRIDDED = 16  # units from which on they are
LADDER = (1, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 1 / 32, 0)

Units = dict[str, int]


def share(plan: Plan, part: float) -> Units:
    """The same share of every group, on the grid; at least one unit."""
    return {group: _gridded(width, part) for group, width in plan.units.items()}


def _gridded(width: int, part: float) -> int:
    step = GRID if width >= GRIDDED else 1
    return width if part == 1 else min(width, max(step, round(width * part / step) * step))


def rungs(plan: Plan) -> list[Units]:
    """Widths from all units down to the narrowest, each share once."""
    ladder: list[Units] = []
    for part in LADDER:
        units = share(plan, part)
        if units not in ladder:
            ladder.append(units)
    return ladder


def asked(plan: Plan, units: Mapping[str, int]) -> Units:
    """Widths that the user gives; groups that are not named keep all.

    Raises:
        InvalidInputError: a layer without units that can go, or a number that it can not have.
    """
    by_layer = {layer: group for group, layers in plan.layers.items() for layer in layers}
    widths = dict(plan.units)
    for layer, width in units.items():
        if layer not in by_layer:
            why = plan.protected.get(layer, "no such layer makes units")
            raise InvalidInputError(
                f"{why}.", field=f"units.{layer}", hint=f"Layers that can be pruned: {', '.join(by_layer) or 'none'}."
            )
        full = plan.units[by_layer[layer]]
        if not 1 <= width <= full:
            raise InvalidInputError(f"{width} is not between 1 and {full}.", field=f"units.{layer}")
        widths[by_layer[layer]] = width
    return widths
