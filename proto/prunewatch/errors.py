"""What the client raises: an error of the service with its parts, and when to ask again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata of gRPC's retry design (gRFC A6): wait so long; what is no number from 0 on means: do not."""
NEVER = math.inf
BROKEN = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"}
"""Codes with which a call ends when the connection or the server goes; all else would be the same the next time."""


class ServiceError(Exception):
    """The service refused a call, or could not be reached.

    Args:
        code: Name of the gRPC status code, e.g. `INVALID_ARGUMENT`.
        problem: What is wrong.
        field: The field of the request it is about.
        hint: What to do about it.
        retry_seconds: The service refused before it did anything, and wants to be asked again no sooner than that;
            `math.inf`: not at all. None: it said nothing about it.
    """

    def __init__(
        self, code: str, problem: str, field: str = "", hint: str = "", *, retry_seconds: float | None = None
    ) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem
        self.field = field
        self.hint = hint
        self.retry_seconds = retry_seconds

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.problem} {self.hint}".rstrip()

    @property
    def is_transient(self) -> bool:
        """Whether the same may succeed later: the service is away, or has asked for patience."""
        return self.retry_seconds != NEVER and (self.code == "UNAVAILABLE" or self.retry_seconds is not None)

    @property
    def is_of_the_connection(self) -> bool:
        """Whether another connection may help, or waiting."""
        return self.is_transient or (self.retry_seconds is None and self.code in BROKEN)


def service_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """What went wrong with a call."""
    return call_error(error.code(), error.details(), error.trailing_metadata() or ())


def call_error(code: grpc.StatusCode, details: str | None, trailing: Iterable[Any]) -> ServiceError:
    """What went wrong with a call, from its parts."""
    metadata = dict(trailing)
    error = _called(code.name, details or code.name, metadata.get(DETAILS))
    if (pushback := metadata.get(PUSHBACK)) is not None:
        error.retry_seconds = _pushed_back(pushback)
    return error


def _called(code: str, details: str, status: Any) -> ServiceError:
    if isinstance(status, bytes):
        with suppress(DecodeError, ValueError):  # damaged on the way: the plain words are left
            return status_error(status_pb2.Status.FromString(status))
    problem = details.rstrip(".") + "."
    if code == "UNAVAILABLE":
        return ServiceError(code, f"the server can not be reached: {problem}", hint="Start one: prunewatch serve.")
    if code == "UNIMPLEMENTED":
        return ServiceError(code, "the server does not offer this call.", hint="An edge only scores; ask a hub.")
    return ServiceError(code, problem)


def status_error(status: status_pb2.Status) -> ServiceError:
    """The parts of a status as the service writes it."""
    error = ServiceError(code_pb2.Code.Name(status.code), status.message)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            error.problem, error.field, error.hint = (
                info.metadata.get(key, "") for key in ("problem", "field", "hint")
            )
        elif detail.Unpack(retry):
            error.retry_seconds = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return error


def _pushed_back(milliseconds: str | bytes) -> float:
    try:
        told = int(milliseconds)
    except ValueError:
        return NEVER
    return told / 1000 if told >= 0 else NEVER
