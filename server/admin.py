"""HTTP for people and machines that watch the process: /metrics, /healthz, /readyz. Loopback by default, GET only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

HEAD_BYTES = 8192
HEAD_SECONDS = 5.0
TEXT = "text/plain; charset=utf-8"


class Admin:
    """A very small HTTP server on the same loop.

    Args:
        registry: What /metrics shows.
        observe: Refreshes gauges before they are shown.
        is_ready: Whether to send work here.
    """

    def __init__(
        self, registry: CollectorRegistry, *, observe: Callable[[], None], is_ready: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._observe = observe
        self._is_ready = is_ready
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Begins to listen; OSError when the address is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
            method, target, *_ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            status, content_type, body = await self._answer(method, target.partition("?")[0])
            writer.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            writer.write(b"" if method == "HEAD" else body)
            await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not HTTP, or gone
        finally:
            writer.close()

    async def _answer(self, method: str, path: str) -> tuple[HTTPStatus, str, bytes]:
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET only\n"
        if path == "/metrics":
            self._observe()
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, await asyncio.to_thread(generate_latest, self._registry)
        if path == "/healthz":
            return HTTPStatus.OK, TEXT, b"alive\n"
        if path == "/readyz":
            ready = self._is_ready()
            return (HTTPStatus.OK, TEXT, b"ready\n") if ready else (HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"draining\n")
        return HTTPStatus.NOT_FOUND, TEXT, b"/metrics, /healthz and /readyz are here\n"
