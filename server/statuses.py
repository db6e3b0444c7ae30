"""Errors as gRPC says them: one table of codes, details after AIP-193, and nothing that was not meant for callers."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

import detectors.errors
from detectors.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptBundleError,
    DeadlineError,
    DeniedError,
    EndingError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    PrunewatchError,
    disk_full,
)
from server.discretion import without_folders
from server.logs import REQUEST_ID, current_request
from server.security.principals import UnauthenticatedError

DOMAIN = "prunewatch"
DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"
UNEXPECTED = "Something went wrong inside the server; its log says what."
CODES: Mapping[type[PrunewatchError], int] = {
    InvalidInputError: code_pb2.INVALID_ARGUMENT,
    NotFoundError: code_pb2.NOT_FOUND,
    AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    PreconditionError: code_pb2.FAILED_PRECONDITION,
    ConflictError: code_pb2.ABORTED,
    ExhaustedError: code_pb2.RESOURCE_EXHAUSTED,
    CorruptBundleError: code_pb2.DATA_LOSS,
    DeadlineError: code_pb2.DEADLINE_EXCEEDED,
    DeniedError: code_pb2.PERMISSION_DENIED,
    EndingError: code_pb2.UNAVAILABLE,
    PrunewatchError: code_pb2.INTERNAL,
}
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
logger = logging.getLogger("prunewatch.statuses")


def status_of(error: Exception) -> status_pb2.Status:
    """What a caller may know of an error; what is not a `PrunewatchError` goes into the log and becomes INTERNAL."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = disk_full()
    if not isinstance(error, PrunewatchError):
        logger.error("unexpected error", exc_info=error)
        return status_pb2.Status(code=code_pb2.INTERNAL, message=UNEXPECTED)
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    facts = {name: without_folders(getattr(error, name)) for name in ("problem", "field", "hint")}
    field, told = facts["field"], f"{facts['problem']} {facts['hint']}".strip()
    reason = code_pb2.Code.Name(code)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=facts)]
    if isinstance(error, OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * error.retry_seconds))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if code == code_pb2.INVALID_ARGUMENT and field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=told)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=code, message=f"{field}: {told}" if field else told)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def trailing_metadata(error: Exception, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with a status: details, the id of the call, and when to come again, as gRPC's own retries read it."""
    told: list[tuple[str, str | bytes]] = [(DETAILS, status.SerializeToString())]
    if request := current_request():
        told.append((REQUEST_ID, request))
    if isinstance(error, OverloadedError):
        told.append((PUSHBACK, str(round(1000 * error.retry_seconds))))
    return tuple(told)


def recorded_error(fields: Mapping[str, str]) -> PrunewatchError:
    """The error that the catalog or the trainer wrote down."""
    kind = getattr(detectors.errors, fields.get("type", ""), PrunewatchError)
    if not (isinstance(kind, type) and issubclass(kind, PrunewatchError)):
        kind = PrunewatchError
    return kind(fields.get("problem", ""), field=fields.get("field", ""), hint=fields.get("hint", ""))
