"""A device: detectors scored with the same path as on the hub, from one bundle or from what a hub releases."""

from server.edge.app import Edge, load_bundle, run

__all__ = ["Edge", "load_bundle", "run"]
