"""A published version, loaded."""

from __future__ import annotations

from dataclasses import dataclass

from detectors.bundle import Bundle
from detectors.runtime import Runtime


@dataclass(frozen=True)
class Served:
    """One published version, loaded."""

    version: int
    bundle_hash: str
    runtime: Runtime
    warm_up_points: int

    @property
    def ring_points(self) -> int:
        """Points that a series must keep so that this version can be started from them, whole steps of them."""
        stride = self.runtime.stride
        return self.warm_up_points if stride == 1 else self.warm_up_points + 2 * stride

    @classmethod
    def load(cls, bundle: Bundle, version: int | None = None) -> Served:
        """Loads a verified bundle; `version` defaults to the one in its manifest."""
        manifest = bundle.manifest
        runtime = Runtime(bundle.graph, parameters=manifest.network.parameters)
        return cls(version or manifest.version, bundle.hash, runtime, manifest.warm_up_points)
