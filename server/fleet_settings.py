"""Settings of devices: how many, how new versions reach them, and what they may send back."""

from __future__ import annotations

from pydantic import Field

from server.loop_settings import Section
from server.quantities import Bytes, Seconds


class Rollout(Section):
    """How a new bundle reaches the devices of a class: some, more, all; each stage has to go well."""

    canaries: float = Field(default=1.0, gt=0)
    """Devices that take it first; below 1 a share of the class."""
    share: float = Field(default=0.25, gt=0, le=1)
    """The share that takes it next."""
    window: Seconds = 600.0
    """So long each device of a stage has to serve it before the next stage begins."""
    patience: Seconds = 3600.0
    """A device that is asked and was not heard of for so long is not waited for."""
    failures: float = Field(default=0.1, ge=0, lt=1)
    """It is stopped where more than this share of the devices that were asked refuse it, fall back or misbehave."""
    slower: float = Field(default=1.5, ge=1)
    """A device misbehaves whose 99th percentile of a step is above this many times the budget of its class and what it
    needed before."""
    alarm_flood: float = Field(default=5.0, gt=1)
    """A device misbehaves that flags more than this many times the share that its class mates flag, or may."""


class FieldSettings(Section):
    """What a device may send of its points; more is not taken."""

    wanted: bool = True
    """Whether any are."""
    bytes_per_hour: Bytes = 4 << 20
    """Of one device."""
    windows_per_hour: int = Field(default=60, ge=0)
    """Flagged windows of one device; stretches of normal points only count as bytes."""


class FleetSettings(Section):
    """The devices of this hub."""

    max_devices: int = Field(default=10_000, ge=1)
    """More can not be enrolled."""
    status_every: Seconds = 30.0
    """How often a device says how it is. One that was silent for three times as long is away, and its link is ended."""
    release_valid: Seconds = 30 * 86400.0
    """A release can be adopted for so long; it is issued anew when half of that is over. It serves on for ever."""
    download_rate: Bytes = 8 << 20
    """Bytes a second that all downloads together may take, so that scoring does not suffer."""
    rollout: Rollout = Rollout()
    field: FieldSettings = FieldSettings()
