"""`prunewatch healthcheck`: whether a process serves, for containers and supervisors."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from detectors.errors import InvalidInputError
from server.commands.options import ConfigOption
from server.config import load_settings, split_address

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

        prunewatch healthcheck
        prunewatch healthcheck --config prunewatch.yaml
        prunewatch healthcheck --server 10.0.0.7:8001
    """
    if server is not None and config is not None:
        raise InvalidInputError("name either an address or a file.", field="--server, --config")
    address = server or reachable(load_settings(config).listen)
    try:
        split_address(address)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--server") from error
    if problem := why_not_serving(address):
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


def why_not_serving(address: str, seconds: float = ANSWER_SECONDS) -> str:
    """What is wrong with the process at `address`; empty when it serves."""
    # A proxy of the environment must not stand between a check and what it checks.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return _in_words(error.code(), seconds)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else f"answers {status}: it starts or drains"


def _in_words(code: grpc.StatusCode, seconds: float) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return "can not be reached: is it running, and is this its gRPC address?"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"did not answer within {seconds:g} seconds"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "speaks gRPC but knows no health service: is it a prunewatch?"
    return f"answered {code.name}"
