"""What asks for a cycle that nobody has asked for, and what it is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.adoptions import back_off_until
from server.catalog import Catalog
from server.config import Budget, DetectorConfig
from server.pace import COOL_DOWN, LONG_AGO, Pace, is_due
from server.records import AWAITING, CORRECTED, CycleRow, Measurement, Serving, Trigger

LONGEST_COOL_DOWN = 7 * 86400.0
REMEMBERED_CYCLES = 50
BY_THEMSELVES = ("drift", "missed_budget", "config_change")
"""Triggers that keep the cool-down."""


@dataclass(frozen=True)
class Demand:
    """A cycle that is asked for.

    Attributes:
        trigger: By what.
        cause: The same in words.
        device_classes: It is for these.
    """

    trigger: Trigger
    cause: str
    device_classes: tuple[str, ...]


def scheduled(name: str, config: DetectorConfig, pace: Pace) -> Demand | None:
    """What the schedule asks for: one cycle for all classes that are due."""
    every = config.schedule.prune_every
    if every is None:
        return None
    due = []
    for device_class in config.device_classes:
        row = pace.find(name, device_class)
        if row is not None and is_due(every, row, config.schedule.jitter):
            due.append(device_class)
    return Demand("schedule", f"every {every}", tuple(due)) if due else None


def reconfigured(name: str, config: DetectorConfig, pace: Pace, budget_of: Callable[[str], Budget]) -> Demand | None:
    """Classes that are new, or whose budget is another than when their last cycle began."""
    changed, causes = [], []
    for device_class in config.device_classes:
        row, budget = pace.find(name, device_class), budget_of(device_class)
        if row is None or not budget.is_set or row.budget == in_words(budget):
            continue
        changed.append(device_class)
        was = f"was {row.budget} and " if row.budget else ""
        causes.append(f"the budget of {device_class} {was}is {in_words(budget)}")
    return Demand("config_change", "; ".join(causes), tuple(changed)) if changed else None


def measured_above(
    serving: Sequence[Serving], measurements: Mapping[str, Sequence[Measurement]], budget_of: Callable[[str], Budget]
) -> dict[str, str]:
    """Device classes whose served bundle was last measured above the budget, and how.

    Args:
        serving: What serves on each.
        measurements: By bundle hash.
        budget_of: What a step may cost on a class.
    """
    found = {}
    for served in serving:
        device_class, budget = served.device_class, budget_of(served.device_class)
        own = [
            it
            for it in measurements.get(served.bundle_hash, ())
            if it.batch == budget.batch and it.device_class == device_class
        ]
        newest = max(own, key=lambda it: it.measured, default=None)
        if newest is None:
            continue
        for quantile, limit, seconds in (
            ("p50", budget.p50, newest.p50_seconds),
            ("p99", budget.p99, newest.p99_seconds),
        ):
            if limit is not None and seconds > limit:
                found[device_class] = (
                    f"version {served.version} was measured on {device_class} with a {quantile} of "
                    f"{seconds * 1e6:.0f} us; {limit * 1e6:.0f} may be"
                )
    return found


def in_words(budget: Budget) -> str:
    """A budget as it is kept and told; empty where nothing is asked for."""
    said = {
        "p50": None if budget.p50 is None else f"{budget.p50 * 1e6:g}us",
        "p99": None if budget.p99 is None else f"{budget.p99 * 1e6:g}us",
        "speedup": None if budget.speedup is None else f"{budget.speedup:g}",
        "size": None if budget.size is None else f"{budget.size}B",
    }
    limits = [f"{key} {value}" for key, value in said.items() if value is not None]
    return ", ".join([*limits, f"batch {budget.batch}"]) if limits else ""


def cooled_down(name: str, config: DetectorConfig, pace: Pace, cycles: Sequence[CycleRow]) -> bool:
    """Whether something else than the schedule may begin a cycle again.

    Args:
        name: The detector.
        config: Its cool-down.
        pace: Knows when it last did.
        cycles: Newest first.
    """
    row = pace.find(name, COOL_DOWN)
    passed = LONG_AGO if row is None else row.seconds
    further = max(fruitless(cycles) - 1, 0)
    wait = config.triggers.cool_down * 2.0 ** min(further, 20)
    return passed >= min(wait, max(LONGEST_COOL_DOWN, config.triggers.cool_down))


def fruitless(cycles: Sequence[CycleRow]) -> int:
    """How many of the last automatic cycles in a row came to nothing on any device class; newest first.

    >>> from dataclasses import replace
    >>> row = CycleRow(1, "pump", "hub", "drift", 0.0, 1.0, "rejected", operation="operations/1")
    >>> fruitless([row]), fruitless([replace(row, operation="operations/2"), row])
    (1, 2)
    """
    fruits: dict[str, bool] = {}
    for row in cycles:
        if row.trigger in BY_THEMSELVES and row.outcome not in {AWAITING, CORRECTED}:  # of those it is not known yet
            fruits[row.operation] = fruits.get(row.operation, False) or row.outcome == "adopted"
    row_of = list(fruits.values())
    return next((place for place, adopted in enumerate(row_of) if adopted), len(row_of))


def allowed(
    catalog: Catalog, name: str, config: DetectorConfig, device_classes: Sequence[str], now: float
) -> list[str]:
    """Classes for which a cycle may begin by itself: not frozen, not pinned, not backing off after a roll back.

    Nor one whose last child still waits for devices: another one would take its place before it was measured.

    Args:
        catalog: The book.
        name: The detector.
        config: Its back-off.
        device_classes: Those asked for.
        now: Seconds since the epoch.
    """
    if catalog.get_detector(name).frozen:
        return []
    pinned = {it.device_class for it in catalog.all_serving(name) if it.pinned}
    waiting = {it.device_class for it in catalog.awaiting() if it.detector == name}
    adoptions = catalog.adoptions(name)
    seconds = config.probation.back_off
    return [
        device_class
        for device_class in device_classes
        if device_class not in pinned | waiting and back_off_until(adoptions, device_class, seconds) <= now
    ]
