"""`prunewatch healthcheck`: whether a process serves, for containers and supervisors."""

from __future__ import annotations

import http.client
import ssl
from http import HTTPStatus
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from detectors.errors import InvalidInputError
from server.commands.credentials import credentials
from server.commands.options import ConfigOption
from server.config import Settings, Tls, load_settings, split_address
from server.security.certificates import name_in

UNHEALTHY = 1
"""Exit code that a container engine counts as a failed check."""
ANSWER_SECONDS = 5.0
LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (asked at, not bound)  # nosec B104


def healthcheck(
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to ask (default: `listen` of the settings).", show_default=False),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Ask a hub or an edge whether it serves (`grpc.health.v1`), and say so with the exit code.

    Exit code 0: it serves; 1: it does not, with the reason on standard error. Without `--server` it asks where the
    settings say that this machine's process listens: the file of `--config`, `PRUNEWATCH__LISTEN`, or 127.0.0.1:8001.

    No token is needed. Where those settings have `tls`, the process must show the very certificate that they name, so
    that no authority is needed; where they have `tls.client_ca`, it is `/readyz` of the admin address that is asked.
    With `--server`, `--ca` names the authority.

        prunewatch healthcheck
        prunewatch healthcheck --config prunewatch.yaml
        prunewatch healthcheck --server 10.0.0.7:8001 --ca ca.crt
    """
    if server is not None and config is not None:
        raise InvalidInputError("name either an address or a file.", field="--server, --config")
    settings = None if server is not None else load_settings(config)
    address = reachable(settings.listen) if settings is not None else server or ""
    try:
        split_address(address)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--server") from error
    if problem := _problem(address, settings):
        typer.echo(f"{address} {problem}", err=True)
        raise typer.Exit(UNHEALTHY)
    typer.echo(f"{address} serves")


def reachable(listen: str) -> str:
    """Where to ask a process of this machine that listens on `listen`; "all addresses" can not be called.

    >>> reachable("0.0.0.0:8001"), reachable("[::]:8001"), reachable("10.0.0.7:8001")
    ('127.0.0.1:8001', '[::1]:8001', '10.0.0.7:8001')
    """
    host, port = split_address(listen)
    host = LOOPBACKS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _problem(address: str, settings: Settings | None) -> str:
    """What is wrong, asked as the command line and the settings say; empty when it serves."""
    who, tls = credentials(), None if settings is None else settings.tls
    if who.ca is not None:
        pem = [None if it is None else it.read_bytes() for it in (who.ca, who.key, who.certificate)]
        return why_not_serving(address, secure=grpc.ssl_channel_credentials(*pem))
    if settings is None or tls is None:
        return why_not_serving(address)
    try:
        pinned = tls.certificate.read_bytes()
        if tls.client_ca is not None:
            return why_not_ready(reachable(settings.admin), tls)
        return why_not_serving(address, secure=grpc.ssl_channel_credentials(pinned), name=name_in(pinned))
    except (OSError, ValueError):
        raise InvalidInputError("holds no certificate that can be read.", field=str(tls.certificate)) from None


def why_not_serving(
    address: str,
    seconds: float = ANSWER_SECONDS,
    *,
    secure: grpc.ChannelCredentials | None = None,
    name: str = "",
) -> str:
    """What is wrong with the process at `address`; empty when it serves.

    Args:
        address: Its gRPC address.
        seconds: That it may take to answer.
        secure: How to encrypt; None: plain text.
        name: That its certificate has, where that is not the host of the address.
    """
    # A proxy of the environment must not stand between a check and what it checks.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    made = grpc.insecure_channel(address, options) if secure is None else grpc.secure_channel(address, secure, options)
    with made as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return _in_words(error.code(), seconds)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else f"answers {status}: it starts or drains"


def why_not_ready(address: str, tls: Tls, seconds: float = ANSWER_SECONDS) -> str:
    """The same of the admin address, which asks nobody for a certificate."""
    context = ssl.create_default_context(cafile=str(tls.certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the very certificate is trusted, whoever has signed it
    context.check_hostname = False
    host, port = split_address(address)
    connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"can not be reached at the admin address {address} ({type(error).__name__}): is it running?"
    finally:
        connection.close()
    return "" if status == HTTPStatus.OK else f"is not ready (/readyz: {status}): it starts or drains"


def _in_words(code: grpc.StatusCode, seconds: float) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return "can not be reached: is it running, and is this its gRPC address?"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"did not answer within {seconds:g} seconds"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "speaks gRPC but knows no health service: is it a prunewatch?"
    return f"answered {code.name}"
