"""A device: detectors scored with the same path as on the hub, from one bundle or from what a hub releases."""

from server.edge.app import Edge, run

__all__ = ["Edge", "run"]
