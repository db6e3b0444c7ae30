"""google.longrunning.Operations: progress and results of fits and cycles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2, message
from google.rpc import code_pb2, status_pb2

from detectors.errors import InvalidInputError, PreconditionError
from prunewatch.v1 import detectors_pb2
from server.frontier_messages import frontier_message
from server.maintenance import FRONTIER, Maintenance
from server.messages import cycle_result, fit_result
from server.names import detector_name, operation_name
from server.paging import page_of
from server.progress import Operations
from server.records import OperationRow
from server.statuses import recorded_error, status_of
from server.timestamps import timestamp

LIST_LIMIT = 10_000
WAIT_SECONDS = 600.0
Context = grpc.aio.ServicerContext[Any, Any]


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # untyped package
    """Serves operations.

    Args:
        operations: The operations.
        maintenance: Cancels them.
    """

    def __init__(self, operations: Operations, maintenance: Maintenance) -> None:
        self._operations = operations
        self._maintenance = maintenance

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """One operation as it is now."""
        return operation_message(await self._operations.get(operation_name(request.name)))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """A page of operations, newest first; filters are not supported."""
        if request.filter:
            raise InvalidInputError("filters are not supported.", field="filter", hint="Leave it out.")
        rows = await self._operations.recent(None, LIST_LIMIT)
        page, token = page_of(rows, request.page_size, request.page_token, lambda row: row.name)
        return operations_pb2.ListOperationsResponse(
            operations=[operation_message(row) for row in page], next_page_token=token
        )

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """One operation when it has ended, or as it is after the timeout; without one the call's deadline holds."""
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9 if request.HasField("timeout") else math.inf
        if seconds < 0:
            raise InvalidInputError("the timeout is negative.", field="timeout", hint="Leave it out.")
        row = await self._operations.wait(operation_name(request.name), min(seconds, WAIT_SECONDS))
        return operation_message(row)

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """Ends an operation; nothing that was published is undone."""
        await self._maintenance.cancel(operation_name(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """Refused: operations are part of a detector's history."""
        await self._operations.get(operation_name(request.name))
        raise PreconditionError("operations are kept.", field="name", hint="Cancel it, if it should end.")


def _response(kind: str, result: Mapping[str, Any]) -> message.Message:
    if kind == FRONTIER:
        return frontier_message(result)
    return fit_result(result) if kind == "fit" else cycle_result(result)


def operation_message(row: OperationRow) -> operations_pb2.Operation:
    """An operation as the API says it."""
    operation = operations_pb2.Operation(name=row.name, done=row.state != "running")
    operation.metadata.Pack(
        detectors_pb2.OperationMetadata(
            detector=detector_name(row.detector),
            kind=row.kind,
            stage=row.stage,
            done=row.done,
            message=row.message,
            create_time=timestamp(row.created),
            end_time=None if row.ended is None else timestamp(row.ended),
        )
    )
    if row.state == "succeeded":
        operation.response.Pack(_response(row.kind, row.result or {}))
    elif row.state == "failed":
        operation.error.CopyFrom(status_of(recorded_error(row.error or {})))
    elif row.state == "cancelled":
        operation.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message="It was cancelled."))
    return operation
