"""Serves the page and its JSON: static files from memory, answers that are made once for all who ask at the same time.

Nothing here can change anything, and nothing is made on the event loop that scores: JSON is written by a thread of
lower priority, at most once a second for each address, however many people look.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import ipaddress
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from detectors.errors import InvalidInputError, NotFoundError, PreconditionError, PrunewatchError
from server.background import in_background
from server.http_messages import Request, Response, text

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
JSON = "application/json; charset=utf-8"
FRESH_SECONDS = 1.0
"""So long an answer is given again as it was made."""
MOST_KEPT = 64
"""Answers that are kept; the oldest goes. A handful of people look at a few detectors."""
MOST_ASKED = 32
"""Requests that are worked on at once; more are told to come again."""
COMPRESSED_FROM = 2048  # bytes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
STATUSES = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    NotFoundError: HTTPStatus.NOT_FOUND,
    PreconditionError: HTTPStatus.CONFLICT,
}
logger = logging.getLogger("prunewatch.page.site")
Make = Callable[[], dict[str, Any]]
"""Makes an answer from what was gathered; runs in a thread."""


class View(Protocol):
    """What there is to see of a process.

    Each method gathers on the event loop what only it may read, and returns what makes the answer in a thread. They
    raise a `PrunewatchError` where there is nothing to see; so may what they return.
    """

    async def overview(self) -> Make:
        """Everything at a glance."""

    async def detector(self, name: str) -> Make:
        """One detector."""

    async def frontier(self, name: str, device_class: str) -> Make:
        """What it can be pruned to."""

    async def report(self, name: str, device_class: str, cycle: int | None) -> Make:
        """What a cycle did; None: the newest that built a child for the class."""


@dataclass(frozen=True)
class _Kept:
    response: Response
    compressed: Response
    until: float

    def for_request(self, request: Request) -> Response:
        """As the client can read it; without a body where it has it already."""
        etag = self.response.headers["ETag"]
        if etag in {it.strip() for it in request.headers.get("if-none-match", "").split(",")}:
            return Response(HTTPStatus.NOT_MODIFIED, "", b"", self.response.headers)
        return self.compressed if "gzip" in request.headers.get("accept-encoding", "") else self.response


class PageSite:
    """The page.

    Args:
        view: What it shows.
        any_host: Answer by whatever name it is reached; else only by IP address and as `localhost`, so that no page of
            somebody else's can have its own name lead here (DNS rebinding).
        monotonic: Seconds that only ever pass.
    """

    def __init__(self, view: View, *, any_host: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._any_host = any_host
        self._monotonic = monotonic
        self._asked = 0
        self._kept: dict[str, _Kept] = {}
        self._making: dict[str, asyncio.Task[_Kept]] = {}
        self._static = {f"/page/{path.name}": _static(path) for path in sorted(STATIC.iterdir()) if path.is_file()}
        self._static["/"] = self._static["/page/index.html"]

    async def answer(self, request: Request) -> Response | None:
        """A file, JSON, or None where neither is there."""
        if not (request.path in self._static or request.path.startswith("/api/")):
            return None
        if not self._any_host and not _is_address(request.host):
            told = "ask by IP address or as localhost; other names are answered where `insecure: true` is said\n"
            return text(HTTPStatus.MISDIRECTED_REQUEST, told)
        if (static := self._static.get(request.path)) is not None:
            return static.for_request(request)
        if self._asked >= MOST_ASKED:
            return text(HTTPStatus.SERVICE_UNAVAILABLE, "too many people look; try again\n", Retry_After="2")
        self._asked += 1
        try:
            return await self._json(request)
        finally:
            self._asked -= 1

    async def _json(self, request: Request) -> Response | None:
        try:
            asked = self._route(request)
            if asked is None:
                return None
            key, gather = asked
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._monotonic():
                kept = await self._shared(key, gather)
        except PrunewatchError as error:
            return _error(error)
        return kept.for_request(request)

    def _route(self, request: Request) -> tuple[str, Callable[[], Awaitable[Make]]] | None:
        """What makes an answer, and the key under which it is kept."""
        view, query = self._view, request.query
        device_class = query.get("device_class", "hub")
        match request.path.strip("/").split("/"):
            case ["api", "overview"]:
                return "overview", view.overview
            case ["api", "detectors", name]:
                return f"detector {name}", lambda: view.detector(name)
            case ["api", "detectors", name, "frontier"]:
                return f"frontier {name} {device_class}", lambda: view.frontier(name, device_class)
            case ["api", "detectors", name, "report"]:
                cycle = _number(query["cycle"], "cycle") if "cycle" in query else None
                return f"report {name} {device_class} {cycle}", lambda: view.report(name, device_class, cycle)
        return None

    async def _shared(self, key: str, gather: Callable[[], Awaitable[Make]]) -> _Kept:
        """Whoever asks while an answer is being made waits for the same one."""
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.create_task(self._make(key, gather))
            making.add_done_callback(lambda it: self._made(key, it))
        return await asyncio.shield(making)

    def _made(self, key: str, making: asyncio.Task[_Kept]) -> None:
        del self._making[key]
        if not making.cancelled():
            making.exception()  # whoever asked may have gone: then nobody else takes it

    async def _make(self, key: str, gather: Callable[[], Awaitable[Make]]) -> _Kept:
        make = await gather()
        response, compressed = await in_background(lambda: _encoded(make()))
        kept = _Kept(response, compressed, self._monotonic() + FRESH_SECONDS)
        self._kept.pop(key, None)
        self._kept[key] = kept
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return kept


def _static(path: Path) -> _Kept:
    return _Kept(*_both(TYPES[path.suffix], path.read_bytes()), until=math.inf)


def _encoded(answer: dict[str, Any]) -> tuple[Response, Response]:
    try:
        told = json.dumps(answer, allow_nan=False, separators=(",", ":"))
    except ValueError:  # a network that is broken gives such numbers, and JSON has none of them
        told = json.dumps(_finite(answer), separators=(",", ":"))
    return _both(JSON, told.encode())


def _both(content_type: str, body: bytes) -> tuple[Response, Response]:
    """An answer as it is, and compressed."""
    headers = {**HEADERS, "ETag": f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'}
    plain = Response(HTTPStatus.OK, content_type, body, headers)
    if len(body) < COMPRESSED_FROM:
        return plain, plain
    compressed = gzip.compress(body, 1, mtime=0)
    return plain, Response(HTTPStatus.OK, content_type, compressed, {**headers, "Content-Encoding": "gzip"})


def _finite(value: Any) -> Any:
    """The same with None for what is not a finite number."""
    if isinstance(value, dict):
        return {key: _finite(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(it) for it in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error(error: PrunewatchError) -> Response:
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), None)
    if status is None:
        logger.error("the page can not show it", exc_info=error)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    body = json.dumps({"error": {"problem": error.problem, "hint": error.hint}}).encode()
    return Response(status, JSON, body, HEADERS)


def _number(text_: str, field: str) -> int:
    if not (text_.isascii() and text_.isdigit() and len(text_) < 16):
        raise InvalidInputError(f"{text_[:20]!r} is not a whole number.", field=field)
    return int(text_)


def _is_address(host: str) -> bool:
    """Whether it can not be a name that somebody else owns."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in {"localhost", ""}
    return True
