"""`prunewatch demo`: the main job on a real stream, with the service and its client in processes of their own."""

from server.demo.run import run

__all__ = ["run"]
