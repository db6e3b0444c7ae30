"""What the catalog knows of devices and their classes, one transaction a call; each takes a thread's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.catalog import Catalog
from server.fleet import rollout_rows, rows
from server.fleet.presence import Presence
from server.fleet.records import Device, RolloutRow


class FleetBook:
    """Reads and writes devices.

    Args:
        catalog: Where they are.
        clock: Seconds since the epoch.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._clock = clock

    def find(self, name: str) -> Device | None:
        """A device, if there is one."""
        with self._catalog.reading() as connection:
            return rows.find_device(connection, name)

    def require(self, name: str) -> Device:
        """A device; NotFoundError if there is none."""
        with self._catalog.reading() as connection:
            return rows.require_device(connection, name)

    def devices(self, device_class: str = "", *, after: str = "", limit: int | None = None) -> list[Device]:
        """Devices by name."""
        with self._catalog.reading() as connection:
            return rows.list_devices(connection, device_class, after=after, limit=limit)

    def counts(self) -> dict[str, int]:
        """Devices of each class that has any."""
        with self._catalog.reading() as connection:
            return rows.count_devices(connection)

    def classes(self) -> dict[str, str]:
        """The class of each device."""
        with self._catalog.reading() as connection:
            return rows.class_of_each(connection)

    def change(self, name: str, **values: Any) -> None:
        """Changes columns of a device."""
        with self._catalog.writing() as connection:
            rows.change_device(connection, name, **values)

    def delete(self, name: str) -> None:
        """Forgets a device; NotFoundError if there is none."""
        with self._catalog.writing() as connection:
            rows.require_device(connection, name)
            rows.delete_device(connection, name)

    def keep_statuses(self, presence: Presence) -> None:
        """Writes down what devices said since the last call."""
        if heard := presence.take_unwritten():
            with self._catalog.writing() as connection:
                rows.keep_statuses(connection, heard)

    def trusted_keys(self) -> set[str]:
        """Fingerprints of the keys that devices are known to trust."""
        with self._catalog.reading() as connection:
            return rows.trusted_keys(connection)

    def costs(self, device_class: str, sha256: str, batch: int, since: float = 0.0) -> dict[str, tuple[float, float]]:
        """What devices of a class measured of a graph since then: (median, 99th percentile) in seconds by device."""
        with self._catalog.reading() as connection:
            return rows.costs_of(connection, device_class, sha256, batch, since)

    # classes made over the API

    def put_class(self, name: str, budget: dict[str, Any]) -> None:
        """Adds a class, or changes its budget."""
        with self._catalog.writing() as connection:
            rows.put_device_class(connection, name, budget, self._clock())

    def delete_class(self, name: str) -> None:
        """Forgets a class."""
        with self._catalog.writing() as connection:
            rows.delete_device_class(connection, name)

    # roll-outs

    def rollouts(
        self, detector: str = "", device_class: str = "", *, before: int | None = None, limit: int
    ) -> list[tuple[RolloutRow, dict[str, int]]]:
        """Roll-outs, newest first, each with how many of its devices stand where."""
        with self._catalog.reading() as connection:
            found = rollout_rows.find(connection, detector, device_class, before=before, limit=limit)
            counts = rollout_rows.counts(connection, [row.id for row in found])
        return [(row, counts.get(row.id, {})) for row in found]

    def rollout(self, number: int) -> tuple[RolloutRow, dict[str, int]]:
        """One; NotFoundError if there is none."""
        with self._catalog.reading() as connection:
            row = rollout_rows.require(connection, number)
            return row, rollout_rows.counts(connection, [number]).get(number, {})

    def rollouts_going_on(self) -> list[RolloutRow]:
        """Those that have not ended."""
        with self._catalog.reading() as connection:
            return rollout_rows.going_on(connection)
