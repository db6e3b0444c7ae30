"""What a service says of the detector that a load is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectors.errors import InvalidInputError, PreconditionError, PrunewatchError
from prunewatch.client import Client, ServiceError
from prunewatch.prepared import PreparedScoring
from server.bench.messages import Messages
from server.bench.tally import SHED
from server.config import HUB

NO_SUCH_SERVICE = "UNIMPLEMENTED"
TOO_LARGE = "larger than max"  # how gRPC itself says it, with the code of load that is shed


@dataclass(frozen=True)
class Target:
    """A detector to send a load to.

    Attributes:
        detector: Its name.
        features: Columns in its order; None: a device does not tell.
        stamped: Whether LIVE points need stamps.
        network: What kind it is; empty: a device does not tell.
        version: What serves on the hub; None: a device does not tell.
        steps: Times of a step of what serves, as they were measured: `batch`, `p50_seconds`, `p99_seconds`.
    """

    detector: str
    features: tuple[str, ...] | None
    stamped: bool
    network: str
    version: int | None
    steps: tuple[Mapping[str, Any], ...]


async def find(client: Client, detector: str | None) -> Target:
    """Asks for a detector, or for the only one.

    Raises:
        InvalidInputError: none is named, and there is not just one.
        PreconditionError: it is still learning.
        ServiceError: what the service answered, or that it can not be reached.
    """
    try:
        known = [await client.get(detector)] if detector else await client.list()
    except ServiceError as error:
        if error.code != NO_SUCH_SERVICE:
            raise
        return _device(detector)
    found = _only(known)
    if not found["served"]:
        raise PreconditionError(f"{found['name']!r} is still learning.", field="DETECTOR", hint="Fit it first.")
    versions = await client.versions(found["name"])
    serves: Mapping[str, Any] = next((it for it in found["served"] if it["device_class"] == HUB), {})
    return Target(
        found["name"],
        tuple(found["features"]),
        found["time"] == "stamp",
        found["network"],
        serves.get("version"),
        _steps(serves.get("bundle_hash"), versions),
    )


async def require_answer(scoring: PreparedScoring, messages: Messages, within_seconds: float) -> None:
    """Sends one request that leaves no trace, so that what is wrong with all of them is said before the load begins.

    Raises:
        PrunewatchError: what the service answered. That it has too much to do is no reason not to measure it.
    """
    reply = await scoring.score(messages.probe(), within_seconds)
    if reply.code and (reply.code != SHED or TOO_LARGE in reply.problem):
        raise PrunewatchError(
            f"the service answers {reply.code} to such messages: {reply.problem}",
            hint="Send fewer --series or --points." if reply.code == SHED else "",
        )


def _device(detector: str | None) -> Target:
    if detector is None:
        raise InvalidInputError(
            "this is a device, which does not list its detectors.", field="DETECTOR", hint="Name the one it serves."
        )
    return Target(detector, None, stamped=True, network="", version=None, steps=())


def _only(known: list[dict[str, Any]]) -> dict[str, Any]:
    if len(known) == 1:
        return known[0]
    names = ", ".join(it["name"] for it in known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    raise InvalidInputError(
        f"the service has {len(known)} detectors: {names}." if known else "the service has no detector.",
        field="DETECTOR",
        hint="Name one." if known else "Fit one first.",
    )


def _steps(bundle_hash: str | None, versions: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """What was measured of the bundle that serves on the hub."""
    bundles = (bundle for it in versions for bundle in (it["parent"], *it["children"].values()))
    found: list[Mapping[str, Any]] = next((it["measurements"] for it in bundles if it["hash"] == bundle_hash), [])
    return tuple(it for it in found if it["device_class"] == HUB)
