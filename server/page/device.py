"""What there is to see of the agent of a device beside its detectors: link, reports that wait, releases and slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.edge import conditions
from server.edge.deployment import Deployment
from server.edge.device import Device
from server.edge.link import Link
from server.edge.outbox import Outbox
from server.edge.slots import SlotName, State


def device_shown(
    device: Device, deployments: Mapping[str, Deployment], outbox: Outbox, link: Link | None, hub: str | None
) -> dict[str, Any]:
    """As JSON; gathered on the loop of the agent. Times in seconds since the epoch, 0: never."""
    return {
        "name": device.identity.name,
        "device_class": device.identity.device_class,
        "hub": hub,
        "connected": link.is_open if link is not None else None,
        "last_contact_seconds": round(link.last_contact, 1) if link is not None else None,
        "waiting_bytes": outbox.waiting_bytes,
        "dropped_reports": outbox.dropped,
        "temperature_celsius": conditions.temperature(),
        "releases": [_release(it) for it in deployments.values()],
    }


def _release(deployment: Deployment) -> dict[str, Any]:
    state, (where, reason, asked) = deployment.slots.state, deployment.newest
    bundle, counter = deployment.serving
    return {
        "detector": deployment.name,
        "state": "stopped" if state.stopped else where.name.lower(),
        "reason": reason,
        "bundle": bundle[:12],
        "counter": counter,
        "asked_counter": asked,
        "slots": [
            {"slot": name, "bundle": slot.bundle[:12], "counter": slot.counter, "use": _use(state, name)}
            for name, slot in sorted(state.slots.items())
        ],
    }


def _use(state: State, name: SlotName) -> str:
    if name == state.trial:
        return "on trial"
    if name == state.active:
        return "serves" if state.trial is None else "to go back to"
    return "kept"
