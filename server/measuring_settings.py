"""Settings of what devices measure: how many are asked, and how long is waited for them."""

from __future__ import annotations

from pydantic import Field

from server.loop_settings import Section
from server.quantities import Seconds


class Measuring(Section):
    """How the hub learns what a step costs on devices of a class."""

    table_devices: int = Field(default=5, ge=1, le=64)
    """Devices of a class that measure its latency table."""
    table_graphs: int = Field(default=64, ge=8, le=2048)
    """Networks of a table, about: more foretell better, and take a device longer."""
    table_max_age: Seconds = 90 * 86400.0
    """Then devices measure anew."""
    canaries: int = Field(default=3, ge=1, le=64)
    """Devices that measure a child before its class gets it."""
    patience: Seconds = 3600.0
    """After the first of them has answered the others are waited for so long."""
    expires: Seconds = 7 * 86400.0
    """A child that no device has measured after so long is rejected."""
    ask_again: Seconds = 3600.0
    """A device that has not answered is asked again after so long."""
