"""What there is to see of a hub's devices: by class, never by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from server.fleet.fleet import Fleet
from server.fleet.measuring import Measuring
from server.waiting import Waiting

DeviceFacts = dict[str, dict[str, Any]]
"""By device class: `devices`, `rollouts`, `waiting`, `in_use`."""


class FleetGlance:
    """Of a hub.

    Args:
        fleet: The devices.
        measuring: What they measure.
    """

    def __init__(self, fleet: Fleet, measuring: Measuring) -> None:
        self._fleet = fleet
        self._measuring = measuring

    def __call__(self, classes: Iterable[str]) -> Callable[[], DeviceFacts]:
        """Gathers on the loop; what is returned reads the rest in a thread."""
        links, fleet = self._fleet.links, self._fleet
        names, connected = list(classes), Counter(link.device_class for link in links)
        steps = self._measuring.in_service.in_use()

        def read() -> DeviceFacts:
            counts = fleet.book.counts()
            found: DeviceFacts = {
                name: {
                    "devices": _shown(connected[name], counts[name]) if counts.get(name) else None,
                    "rollouts": [],
                    "waiting": [],
                    "in_use": {
                        detector: {"p50_seconds": p50, "p99_seconds": p99}
                        for (detector, device_class), (p50, p99) in steps.items()
                        if device_class == name
                    },
                }
                for name in names
            }
            for row in fleet.book.rollouts_going_on():
                if row.device_class in found:
                    found[row.device_class]["rollouts"].append(
                        {
                            "detector": row.detector,
                            "version": row.version,
                            "stage": row.stage,
                            "reason": row.reason,
                            "created_seconds": row.created,
                        }
                    )
            for cycle in fleet.roster.catalog.awaiting():
                if cycle.device_class in found:
                    waiting = Waiting.of(cycle)
                    found[cycle.device_class]["waiting"].append(
                        {
                            "detector": cycle.detector,
                            "cycle": cycle.id,
                            "started_seconds": cycle.started,
                            "expires_seconds": waiting.expires,
                            "answers": len(waiting.answers),
                        }
                    )
            return found

        return read


def _shown(connected: int, enrolled: int) -> dict[str, int]:
    return {"connected": connected, "away": max(enrolled - connected, 0)}
