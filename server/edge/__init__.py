"""A device: what scores there, and what a hub asks of it. No training framework, no store, no catalog."""

from server.edge.app import Edge, load_bundle, run

__all__ = ["Edge", "load_bundle", "run"]
