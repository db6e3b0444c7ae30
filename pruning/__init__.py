"""How a network becomes smaller and stays good. Knows no transport, no threads and no clock of its own.

`pruning.prune` is the library call. It is fetched when first asked for: `pruning.outcome` must load without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.modules.dispatch import prune

__all__ = ["prune"]


def __getattr__(name: str) -> Any:
    """The library call."""
    if name == "prune":
        from pruning.modules.dispatch import prune  # noqa: PLC0415  (not before it is needed)

        return prune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
