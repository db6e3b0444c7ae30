"""Whoever calls, and what that one may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from detectors.errors import PrunewatchError

Scope = Literal["score", "operate", "admin", "device"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
IMPLIED: dict[Scope, frozenset[Scope]] = {
    "score": frozenset({"score"}),
    "operate": frozenset({"score", "operate"}),
    "admin": frozenset({"score", "operate", "admin"}),
    "device": frozenset({"device"}),
}
"""What each scope allows: who may operate may score, who administers may do both; a device is none of them."""


class UnauthenticatedError(PrunewatchError):
    """Nobody knows who calls: no token or certificate, or one that does not count (any more)."""


@dataclass(frozen=True)
class Principal:
    """Somebody who may do something.

    Attributes:
        name: Of the token or certificate; goes into the log, never into a metric.
        scopes: As granted.
    """

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether it may do what needs this scope.

        >>> Principal("ci", frozenset({"operate"})).may("score"), Principal("ci", frozenset({"score"})).may("operate")
        (True, False)
        """
        return any(scope in IMPLIED[granted] for granted in self.scopes)
