"""Bundles as one file, under the name that the service knows them by (`detectors.archive`)."""

from detectors.archive import load_bundle, pack_bundle, unpack_bundle

__all__ = ["load_bundle", "pack_bundle", "unpack_bundle"]
