"""HTTP for people and machines that watch the process: metrics, health, and the page. Loopback by default, GET only.

Where the settings have `tls`, this address is encrypted too; where they have `auth`, only health is open.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from server.http_messages import Request, Response, parse_request, text

HEAD_BYTES = 8192
HEAD_SECONDS = 5.0
WRITE_SECONDS = 10.0
MOST_CONNECTIONS = 256
"""At once; more are closed unread. Each lives for one answer, so that it takes hundreds of clients to get there."""
HERE = "/metrics, /healthz and /readyz are here\n"
logger = logging.getLogger("prunewatch.admin")


class Site(Protocol):
    """Answers what is neither metrics nor health."""

    async def answer(self, request: Request) -> Response | None:
        """The answer; None: nothing is there."""


class Asks(Protocol):
    """Says who may look."""

    def refusal(self, request: Request) -> Response | None:
        """What is answered instead; None: the request may be answered."""


class Admin:
    """A very small HTTP server on the same loop.

    Args:
        registry: What /metrics shows.
        observe: Refreshes gauges before they are shown.
        is_ready: Whether to send work here.
        site: The page; None: there is none.
        door: Who may look; None: whoever reaches the address.
        context: Encrypts; None: plain text.
        write_seconds: Whoever has not read an answer for so long is let go of.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        observe: Callable[[], None],
        is_ready: Callable[[], bool],
        site: Site | None = None,
        door: Asks | None = None,
        context: ssl.SSLContext | None = None,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._registry = registry
        self._observe = observe
        self._is_ready = is_ready
        self._site = site
        self._door = door
        self._context = context
        self._write_seconds = write_seconds
        self._server: asyncio.Server | None = None
        self._connections = 0
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Begins to listen; OSError when the address is taken."""
        tls = (
            {}
            if self._context is None
            else {"ssl_handshake_timeout": HEAD_SECONDS, "ssl_shutdown_timeout": HEAD_SECONDS}
        )
        self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES, ssl=self._context, **tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MOST_CONNECTIONS:
                await self._exchange(reader, writer)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # not HTTP, gone, or too slow: nothing of the answer stays in memory
        finally:
            self._connections -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = parse_request(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS))
        response = await self._answer(request)
        writer.transport.set_write_buffer_limits(high=0)  # drained means sent
        writer.write(response.encoded(head=request.method == "HEAD"))
        await asyncio.wait_for(writer.drain(), self._write_seconds)

    async def _answer(self, request: Request) -> Response:
        if request.method not in {"GET", "HEAD"}:
            return text(HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n", Allow="GET, HEAD")
        if self._door is not None and (refusal := self._door.refusal(request)) is not None:
            return refusal
        if request.path == "/metrics":
            self._observe()
            shown = await asyncio.to_thread(generate_latest, self._registry)
            return Response(HTTPStatus.OK, CONTENT_TYPE_LATEST, shown)
        if request.path == "/healthz":
            return text(HTTPStatus.OK, "alive\n")
        if request.path == "/readyz":
            ready = self._is_ready()
            return text(HTTPStatus.OK, "ready\n") if ready else text(HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
        found = None if self._site is None else await self._of_site(request, self._site)
        return found or text(HTTPStatus.NOT_FOUND, HERE if self._site is None else f"the page is /; {HERE}")

    @staticmethod
    async def _of_site(request: Request, site: Site) -> Response | None:
        try:
            return await site.answer(request)
        except Exception:
            logger.exception("the page could not answer %s", request.path)
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "something went wrong; the log says what\n")
