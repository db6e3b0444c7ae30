"""Who may look at the admin address where the settings have `auth`: whoever shows a token."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from http import HTTPStatus

from server.http_messages import Request, Response, text
from server.security.gatekeeper import BEARER, HINT, Gatekeeper
from server.security.principals import Scope, UnauthenticatedError

BASIC = "basic "
OPEN = frozenset({"/healthz", "/readyz"})
"""Paths that say no more than that there is a process: probes of supervisors carry no tokens."""
SCOPE: Scope = "score"
"""What looking needs: the same as reading detectors, scores and anomalies over gRPC."""
ASK = f"a token is needed. {HINT} In a browser any user name and the token as password will do.\n"


class Door:
    """Asks who wants to look.

    Args:
        keeper: Knows the tokens.
        on_refusal: Is told of each request that is refused.
    """

    def __init__(self, keeper: Gatekeeper, on_refusal: Callable[[], None] = lambda: None) -> None:
        self._keeper = keeper
        self._on_refusal = on_refusal

    def refusal(self, request: Request) -> Response | None:
        """What is answered instead; None: the request may be answered.

        401 asks for a token, as `Authorization: Bearer TOKEN` or as the password of Basic; 403 says that the one shown
        lacks the scope `score`.
        """
        refused = None if request.path in OPEN else self._refusal(request)
        if refused is not None:
            self._on_refusal()
        return refused

    def _refusal(self, request: Request) -> Response | None:
        try:
            principal = self._keeper.by_header(_as_bearer(request.headers.get("authorization", "")))
        except UnauthenticatedError:
            challenge = 'Basic realm="prunewatch", charset="UTF-8"'
            return text(HTTPStatus.UNAUTHORIZED, ASK, WWW_Authenticate=challenge, Cache_Control="no-store")
        if not principal.may(SCOPE):
            return text(HTTPStatus.FORBIDDEN, f"this token may not look: it needs the scope `{SCOPE}`\n")
        return None


def _as_bearer(given: str) -> str:
    """The header of a program for that of a browser; what is neither stays as it is, and opens nothing.

    >>> _as_bearer("Basic " + base64.b64encode(b"ann:pw_x").decode())
    'bearer pw_x'
    """
    if given[: len(BASIC)].lower() != BASIC:
        return given
    try:
        pair = base64.b64decode(given[len(BASIC) :].strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return BEARER + pair.partition(":")[2]
