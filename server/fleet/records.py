"""What the hub knows of devices, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["measuring", "canary", "partial", "complete", "stopped"]
State = Literal["fetching", "trying", "serving", "fell_back", "refused", ""]
"""Where a device stands with a release; empty: it did not say."""
Standing = Literal["asked", "serving", "failed"]
OPEN_STAGES: tuple[Stage, ...] = ("measuring", "canary", "partial")
FAILED_STATES: tuple[State, ...] = ("fell_back", "refused")


@dataclass(frozen=True)
class Device:
    """An enrolled device.

    Attributes:
        name: Without `devices/`.
        device_class: Its class.
        public_key: Its ed25519 key in hex.
        trusted_key: Fingerprint of a signing key that it is known to trust.
        facts: What kind of machine it is; keys of `DeviceFacts`.
        status: What it said last, as `Status.to_json`; None: nothing yet.
        last_seen: When that was, in seconds since the epoch.
        enrolled: Seconds since the epoch.
        kept_sequence: Of the last report that is kept.
    """

    name: str
    device_class: str
    public_key: str
    trusted_key: str
    facts: dict[str, Any]
    status: dict[str, Any] | None
    last_seen: float | None
    enrolled: float
    kept_sequence: int


@dataclass(frozen=True)
class Served:
    """Where a device stands with a detector; as `ServedRelease` of the API says. Times in seconds; None: no step."""

    detector: str
    bundle: str
    counter: int
    state: State
    reason: str
    asked_counter: int
    points: int
    flagged: int
    step_p50: float | None
    step_p99: float | None
    series: int


@dataclass(frozen=True)
class Status:
    """How a device is."""

    served: Mapping[str, Served] = field(default_factory=dict)
    """By detector."""
    temperature_celsius: float | None = None
    uptime_seconds: float = 0.0
    dropped_reports: int = 0
    waiting_bytes: int = 0
    resident_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As the catalog keeps it."""
        return {**vars(self), "served": [vars(it) for it in self.served.values()]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Status:
        """The inverse."""
        return cls(**{**content, "served": {it["detector"]: Served(**it) for it in content["served"]}})


@dataclass(frozen=True)
class LiveRelease:
    """A release that devices are to run now.

    Attributes:
        detector: The detector.
        device_class: The class.
        counter: Its number.
        bundle_hash: Its bundle.
        version: The version of that.
        settings: As JSON.
        rollout: The roll-out that it belongs to; None: it is for the whole class.
        issued: Seconds since the epoch.
        expires: The same.
        key_id: Who signed.
        signed: `server.releases.Signed` as JSON.
    """

    detector: str
    device_class: str
    counter: int
    bundle_hash: str
    version: int
    settings: dict[str, Any]
    rollout: int | None
    issued: float
    expires: float
    key_id: str
    signed: str


@dataclass(frozen=True)
class RolloutRow:
    """A bundle on its way to the devices of a class.

    Attributes:
        id: Its number.
        detector: The detector.
        device_class: The class.
        version: What it brings.
        bundle_hash: The same.
        base_version: What the class goes back to.
        base_bundle: The same.
        first_counter: Of its first release; 0 while it is being measured.
        stage: How far it is.
        reason: Why it was stopped, or what it waits for.
        created: Seconds since the epoch.
        ended: The same; None while it goes on.
    """

    id: int
    detector: str
    device_class: str
    version: int
    bundle_hash: str
    base_version: int
    base_bundle: str
    first_counter: int
    stage: Stage
    reason: str
    created: float
    ended: float | None


@dataclass(frozen=True)
class Member:
    """A device that a roll-out has asked.

    Attributes:
        device: Its name.
        state: `asked`, `serving` since `proven`, or `failed`.
        reason: Why it failed.
        asked: When, in seconds since the epoch.
        proven: Since when it serves well; None: it does not.
    """

    device: str
    state: Standing
    reason: str
    asked: float
    proven: float | None


def members_by(members: Sequence[Member], state: Standing) -> list[Member]:
    """Those that stand there."""
    return [it for it in members if it.state == state]
