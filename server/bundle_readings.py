"""Gauges of bundles that serve: what their manifests say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from detectors.bundle import MANIFEST, Bundle, Manifest
from server.metrics import Metrics
from server.metrics.family import Labels
from server.rejections import check_name

Values = dict[Labels, float]


@dataclass(frozen=True)
class BundleFacts:
    """Of one bundle, which never change.

    Attributes:
        manifest: As it lies in the bundle.
        bytes: Of each file by the stem of its name, the manifest's too.
    """

    manifest: Manifest
    bytes: Mapping[str, int]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From its folder; nothing is verified, whoever loads the bundle does that.

        Raises:
            OSError, ValueError: there is none.
        """
        raw = (folder / MANIFEST).read_bytes()
        return cls._of(Manifest.model_validate_json(raw), len(raw))

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """From memory, for a device, which has the step graph alone."""
        return cls(bundle.manifest, {"step": bundle.size})

    @classmethod
    def _of(cls, manifest: Manifest, manifest_bytes: int) -> Self:
        sizes = {name.split(".")[0]: entry.bytes for name, entry in manifest.files.items()}
        return cls(manifest, {**sizes, MANIFEST.split(".")[0]: manifest_bytes})


@dataclass(frozen=True)
class Shown:
    """What serves somewhere.

    Attributes:
        detector: Its name.
        device_class: Where.
        version: That serves.
        bundle_hash: Of its bundle.
        facts: What is in it.
    """

    detector: str
    device_class: str
    version: int
    bundle_hash: str
    facts: BundleFacts


def show_bundles(metrics: Metrics, shown: Iterable[Shown]) -> None:
    """Shows these and no others."""
    parameters: Values = {}
    units: Values = {}
    macs: Values = {}
    sizes: Values = {}
    info: Values = {}
    version: Values = {}
    values: Values = {}
    limits: Values = {}
    for it in shown:
        where, manifest = (it.detector, it.device_class), it.facts.manifest
        network = manifest.network
        parameters[where], macs[where], version[where] = network.parameters, network.macs, it.version
        units |= {(*where, group): width for group, width in network.units.items()}
        sizes |= {(*where, kind): size for kind, size in it.facts.bytes.items()}
        info[*where, str(it.version), it.bundle_hash[:12], network.kind] = 1
        for name, check in (manifest.gate or {}).get("checks", {}).items():
            values[*where, check_name(name)], limits[*where, check_name(name)] = check["value"], check["limit"]
    metrics.parameters.replace(parameters)
    metrics.units.replace(units)
    metrics.macs.replace(macs)
    metrics.bundle_bytes.replace(sizes)
    metrics.detector_info.replace(info)
    metrics.version.replace(version)
    metrics.gate_value.replace(values)
    metrics.gate_limit.replace(limits)
