"""Device classes that were made over the API; those of the configuration file win, and are changed there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from detectors.errors import AlreadyExistsError, ExhaustedError, InvalidInputError, NotFoundError, PreconditionError
from server.catalog import Catalog
from server.complaints import as_input_error
from server.config import Budget, DetectorConfig, check_device_class
from server.fleet import rows

MOST_CLASSES = 200
"""Also bounds the label values of the metrics."""


class HasClasses(Protocol):
    """What knows the classes of a hub (`server.roster.Roster`)."""

    device_classes: dict[str, Budget]

    def config_of(self, name: str) -> DetectorConfig:
        """How a detector learns and alarms."""


def made_classes(catalog: Catalog) -> dict[str, Budget]:
    """Those that were made over the API."""
    with catalog.reading() as connection:
        return {name: Budget.model_validate(budget) for name, budget in rows.device_classes(connection).items()}


class DeviceClasses:
    """Makes, changes and forgets classes.

    Args:
        catalog: Keeps those made over the API.
        known: All classes, with what they can afford.
        configured: Those of the configuration file.
    """

    def __init__(self, catalog: Catalog, known: HasClasses, configured: Mapping[str, Budget]) -> None:
        self._catalog = catalog
        self._known = known
        self._configured = configured

    def require(self, name: str, field: str = "name") -> Budget:
        """What a class can afford; NotFoundError names those there are."""
        if name not in self._known.device_classes:
            raise NotFoundError(
                f"there is no device class {name[:80]!r}.",
                field=field,
                hint=f"There are: {', '.join(sorted(self._known.device_classes)[:5])}.",
            )
        return self._known.device_classes[name]

    def is_configured(self, name: str) -> bool:
        """Whether the configuration file owns it."""
        return name in self._configured

    async def create(self, name: str, fields: Mapping[str, Any]) -> None:
        """Adds a class.

        Raises:
            InvalidInputError: this is no name, or no budget.
            AlreadyExistsError: there is one of this name.
            ExhaustedError: there are too many.
        """
        check_device_class(name)
        if name in self._known.device_classes:
            raise AlreadyExistsError(f"there is a device class {name!r} already.", field="device_class_id")
        if len(self._known.device_classes) >= MOST_CLASSES:
            raise ExhaustedError(f"there are {MOST_CLASSES} device classes.", hint="Delete one that nobody needs.")
        await self._put(name, _budget(fields))

    async def change(self, name: str, fields: Mapping[str, Any]) -> None:
        """Changes some of what a class can afford.

        Raises:
            InvalidInputError: this is no budget.
            NotFoundError: there is no such class.
            PreconditionError: the configuration file owns it.
        """
        now = self.require(name)
        self._require_ours(name)
        await self._put(name, _budget({**now.model_dump(mode="json"), **fields}))

    async def delete(self, name: str, detectors: list[str]) -> None:
        """Forgets a class.

        Args:
            name: The class.
            detectors: All there are.

        Raises:
            NotFoundError: there is no such class.
            PreconditionError: the configuration file owns it, or a detector or device names it.
        """
        self.require(name)
        self._require_ours(name)
        naming = [it for it in detectors if name in self._known.config_of(it).device_classes]
        if naming:
            raise PreconditionError(
                f"the detector {naming[0]!r} names {name!r}.", field="name", hint="Delete it first."
            )

        def forget() -> None:
            with self._catalog.writing() as connection:
                if count := rows.count_devices(connection).get(name, 0):
                    raise PreconditionError(
                        f"{count} devices of {name!r} are enrolled.", field="name", hint="Remove them first."
                    )
                rows.delete_device_class(connection, name)

        await asyncio.to_thread(forget)
        self._known.device_classes.pop(name, None)

    async def _put(self, name: str, budget: Budget) -> None:
        def put() -> None:
            with self._catalog.writing() as connection:
                rows.put_device_class(connection, name, budget.model_dump(mode="json"), self._catalog.clock())

        await asyncio.to_thread(put)
        self._known.device_classes[name] = budget

    def _require_ours(self, name: str) -> None:
        if self.is_configured(name):
            raise PreconditionError(
                f"{name!r} is defined in the server's configuration file.",
                field="name",
                hint="Change it there and restart the server.",
            )


def _budget(fields: Mapping[str, Any]) -> Budget:
    try:
        return Budget.model_validate(dict(fields))
    except ValidationError as error:
        complaint = as_input_error(error, Budget)
        raise InvalidInputError(
            complaint.problem, field=f"device_class.budget.{complaint.field}", hint=complaint.hint
        ) from error
