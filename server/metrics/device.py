"""What a device has beside: its link, its reports, its temperature. Not on a hub."""

from __future__ import annotations

from server.metrics.family import counter, reading
from server.metrics.labels import DETECTOR
from server.metrics.registry import Registered


class DeviceMetrics(Registered):
    """Of the agent of a device."""

    connected = reading("prunewatch_hub_connected", "1 while the link to the hub is open.")
    last_contact = reading("prunewatch_hub_last_contact_timestamp_seconds", "When the hub was last heard of; 0: never.")
    outbox_bytes = reading("prunewatch_outbox_bytes", "Reports that wait for the hub.")
    outbox_dropped = counter("prunewatch_outbox_dropped", "Reports that had to go for want of room.", "kind")
    rejections = counter("prunewatch_releases_rejected", "Releases that were refused or given up.", DETECTOR, "reason")
    temperature = reading("prunewatch_device_temperature_celsius", "Of the processor; NaN: not to be read.")
