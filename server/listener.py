"""The two addresses of a process, gRPC and HTTP: built and ended the same way on the hub and on a device."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from detectors.errors import PreconditionError
from server.admin import Admin
from server.admission import Gate
from server.background import SWITCH_SECONDS
from server.config import Settings, is_loopback, split_address
from server.host import Host
from server.interceptors import Guard
from server.layout import TOKENS
from server.metrics import Metrics
from server.page.site import PageSite, View
from server.reflection import enable_reflection
from server.security.certificates import Certificates, TlsFiles
from server.security.door import Door
from server.security.gatekeeper import Gatekeeper
from server.security.tokens import Tokens
from server.streams import Streams

KEEPALIVE_MS = 60_000
LOOK_SECONDS = 0.02
LAST_SECONDS = 0.2
"""For calls that have come and are not refused yet. gRPC itself would tell them no more than CANCELLED."""
PENDING_CALLS = 10_000
"""Calls that wait inside gRPC before they are looked at. It refuses those beyond with CANCELLED, anybody's."""
logger = logging.getLogger("prunewatch.listener")
Register = Callable[[grpc.aio.Server], None]


class Listener:
    """Serves services with health and reflection, and drains them.

    Args:
        settings: Addresses, limits, how long to drain.
        metrics: Of the process.
        host: Its gauges are refreshed for /metrics, as those of calls and streams are.
        view: What the page on the admin address shows, where the settings want one; None: there is no page.
    """

    def __init__(self, settings: Settings, metrics: Metrics, host: Host, view: View | None = None) -> None:
        self._settings = settings
        self._host = host
        self._metrics = metrics
        self._health = health.aio.HealthServicer()
        self._ready = False
        any_host = not is_loopback(settings.admin)
        site = PageSite(view, any_host=any_host) if settings.page and view is not None else None
        self.certificates = certificates_of(settings)
        keeper, on_refusal = keeper_of(settings), metrics.admin_refused.inc  # the counter is there from the start
        self._admin = Admin(
            metrics.registry,
            observe=self._observe,
            is_ready=lambda: self._ready,
            site=site,
            door=None if keeper is None else Door(keeper, on_refusal),
            context=None if self.certificates is None else self.certificates.context,
        )
        limit = settings.max_message_bytes
        self.gate = Gate(settings.max_calls, settings.max_streams, metrics.refused.inc)
        places = settings.fleet.max_devices  # for the link of each, and a download
        self.device_gate = Gate(settings.max_calls, 2 * places, metrics.refused.inc, ("max_calls", "fleet.max_devices"))
        self.streams = Streams(settings.slow_reader_seconds, metrics.slow_readers.inc)
        self._server = grpc.aio.server(
            interceptors=[Guard(metrics, self.gate, self.device_gate, keeper)],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),  # a caller that vanished is noticed, and its streams end
                ("grpc.server.max_pending_requests", PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
                ("grpc.so_reuseport", 0),  # a second process on the same port is an error, not a coin toss
            ],
        )
        self._looking: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def admin_port(self) -> int:
        """The HTTP port that was bound."""
        return self._admin.port

    @property
    def page_address(self) -> str:
        """Where a browser finds the page."""
        return f"http{'' if self.certificates is None else 's'}://{self._settings.admin}/"

    @property
    def ready(self) -> bool:
        """Whether it serves: not before it has begun, nor while it drains."""
        return self._ready

    def _observe(self) -> None:
        """Refreshes what only the event loop may look at, before a scrape."""
        self._host.observe()
        limits = self._settings
        self._metrics.calls.replace({(): self.gate.calls})
        self._metrics.streams.replace({(): self.gate.streams})
        self._metrics.calls_limit.replace({(): limits.max_calls})
        self._metrics.streams_limit.replace({(): limits.max_streams})
        if self.certificates is not None:
            self.certificates.follow()
            self._metrics.certificate_expiry.replace({(): self.certificates.expires})

    async def start(self, services: Sequence[tuple[str, Register]]) -> None:
        """Begins to serve.

        Args:
            services: Full name and registration of each service.

        Raises:
            PreconditionError: an address is taken.
        """
        for _, register in services:
            register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [name for name, _ in services]
        enable_reflection([*names, health.SERVICE_NAME], self._server)
        try:
            self.port = self._bind()
        except RuntimeError:
            raise _taken("listen", self._settings.listen) from None
        try:
            await self._admin.start(*split_address(self._settings.admin))
        except OSError:
            raise _taken("admin", self._settings.admin) from None
        await self._server.start()
        self._looking = asyncio.create_task(self.streams.run())
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._ready = True

    def _bind(self) -> int:
        if self.certificates is None:
            return self._server.add_insecure_port(self._settings.listen)
        return self._server.add_secure_port(self._settings.listen, self.certificates.credentials())

    async def announce_end(self) -> None:
        """Says NOT_SERVING, so that callers go elsewhere; calls are still answered."""
        self._ready = False
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Lets calls end, then stops listening."""
        self._host.watchers.close()
        self.streams.end()
        self.gate.close()
        self.device_gate.close()
        end = time.monotonic() + self._settings.drain_seconds
        while not (self.gate.is_idle and self.device_gate.is_idle) and time.monotonic() < end:  # noqa: ASYNC110  (an event would cost every call)
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(LAST_SECONDS)
        await self._server.stop(0)
        if self._looking is not None:
            self._looking.cancel()
        await self._admin.stop()


def certificates_of(settings: Settings) -> Certificates | None:
    """What both addresses are encrypted with; None: they are not.

    Raises:
        InvalidInputError: the files can not be used.
    """
    if settings.tls is None:
        return None
    return Certificates(TlsFiles(settings.tls.certificate, settings.tls.key, settings.tls.client_ca))


def keeper_of(settings: Settings) -> Gatekeeper | None:
    """Who says whether somebody may call; None: whoever reaches the addresses may."""
    auth = settings.auth
    if auth is None:
        return None
    tokens = Tokens(auth.tokens or settings.store / TOKENS)
    return Gatekeeper(tokens, auth.identities, max_calls=auth.max_calls, max_streams=auth.max_streams)


def _taken(field: str, address: str) -> PreconditionError:
    return PreconditionError(f"can not listen on {address}.", field=field, hint="Is it in use? Choose another one.")


async def until_asked_to_stop(start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
    """Starts, waits for SIGTERM or SIGINT, and stops."""
    asked = asyncio.Event()
    sys.setswitchinterval(SWITCH_SECONDS)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        await start()
        await asked.wait()
        logger.info("asked to stop")
    finally:
        await stop()
