"""How a client shows who it is and makes sure whom it talks to: TLS, a token, a certificate of its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class Credentials:
    """What a connection is made with. None of it: plain text, and nobody in particular.

    Attributes:
        token: Made with `prunewatch tokens make`.
        ca: PEM file of the authorities that may vouch for the service; with it the connection is encrypted.
        certificate: PEM file of the client's own certificate, where the service asks for one; needs `ca` and `key`.
        key: PEM file of its private key.
        allow_plaintext: Send the token over a connection that others can read, too. On this machine it always is.
    """

    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key belong together")
        if self.certificate is not None and self.ca is None:
            raise ValueError("a certificate is shown over TLS only: name the authority of the service, too")

    def channel(
        self,
        address: str,
        options: Sequence[tuple[str, Any]] = (),
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    ) -> grpc.aio.Channel:
        """A connection to `HOST:PORT`.

        Raises:
            ValueError: a token would be sent where others can read it.
            OSError: a file can not be read.
        """
        if self.ca is not None:
            return grpc.aio.secure_channel(address, self._channel_credentials(), options, interceptors=interceptors)
        if self.token is None:
            return grpc.aio.insecure_channel(address, options, interceptors=interceptors)
        if not self.allow_plaintext and not _is_this_machine(address):
            raise ValueError(
                f"the token would be sent to {address} without encryption: name the authority of the service"
            )
        telling = [kind(self.token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
        return grpc.aio.insecure_channel(address, options, interceptors=[*telling, *(interceptors or ())])

    def _channel_credentials(self) -> grpc.ChannelCredentials:
        ca, certificate, key = (None if it is None else it.read_bytes() for it in (self.ca, self.certificate, self.key))
        secure = grpc.ssl_channel_credentials(ca, key, certificate)
        if self.token is None:
            return secure
        return grpc.composite_channel_credentials(secure, grpc.access_token_call_credentials(self.token))


class _Telling:
    """Adds the token to what a call says of itself. gRPC sends call credentials over TLS only."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def _told(self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), (AUTHORIZATION, f"Bearer {self._token}"))
        return await continuation(
            grpc.aio.ClientCallDetails(
                method=details.method,
                timeout=details.timeout,
                metadata=metadata,
                credentials=details.credentials,
                wait_for_ready=details.wait_for_ready,
            ),
            request,
        )


class _UnaryUnary(_Telling, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._told(continuation, client_call_details, request)


class _UnaryStream(_Telling, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._told(continuation, client_call_details, request)


class _StreamUnary(_Telling, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await self._told(continuation, client_call_details, request_iterator)


class _StreamStream(_Telling, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await self._told(continuation, client_call_details, request_iterator)


def _is_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")
