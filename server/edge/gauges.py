"""What serves on a device, as Prometheus sees it."""

from __future__ import annotations

from detectors.bundle import Bundle
from server.metrics import Metrics


def show_bundle(metrics: Metrics, bundle: Bundle, version: int, device_class: str) -> None:
    """Shows a bundle as what scores, in place of the one before."""
    manifest = bundle.manifest
    labels = manifest.detector, device_class
    metrics.parameters.labels(*labels).set(manifest.network.parameters)
    metrics.units.labels(*labels).set(sum(manifest.network.units.values()))
    metrics.bundle_bytes.labels(*labels, "step").set(bundle.size)
    metrics.detector_info.remove_by_labels({"detector": manifest.detector})
    metrics.detector_info.labels(*labels, str(version), bundle.hash[:12], manifest.network.kind).set(1)
