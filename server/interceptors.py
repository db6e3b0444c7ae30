"""The outermost layer of every call: unreadable messages, errors to statuses, counting and timing."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from detectors.errors import InvalidInputError
from server.metrics import Metrics
from server.statuses import GRPC_CODES, status_of

DETAILS = "grpc-status-details-bin"
Behaviour = Callable[[Any, Any], Any]


class _Malformed:
    """Stands for a message that is not the protobuf it should be."""


MALFORMED = _Malformed()


def malformed_error() -> InvalidInputError:
    """What to answer to `MALFORMED`."""
    return InvalidInputError("the message is not a valid protobuf of this method's request.", hint="Check the client.")


def readable(message: Any) -> Any:
    """The message itself; `malformed_error` when it could not be parsed."""
    if message is MALFORMED:
        raise malformed_error()
    return message


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler, so that whatever happens inside becomes a proper status.

    Args:
        metrics: Counts calls by method and code, and times those that answer once.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Finds the handler and wraps it, once for each method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # unknown method: gRPC answers UNIMPLEMENTED
                return None
            wrapped = self._wrapped[method] = self._wrap(handler, _label(method))
        return wrapped

    def _wrap(self, handler: Any, label: str) -> Any:
        behaviour: Behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        seconds = None if handler.response_streaming else self._metrics.request_seconds.labels(label)
        calls = _Calls(self._metrics, label, seconds)
        wrap = calls.generator if inspect.isasyncgenfunction(behaviour) else calls.coroutine
        kind = f"{_side(handler.request_streaming)}_{_side(handler.response_streaming)}_rpc_method_handler"
        return getattr(grpc, kind)(
            wrap(behaviour),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Calls:
    """Runs the calls of one method."""

    def __init__(self, metrics: Metrics, label: str, seconds: Any) -> None:
        self._metrics = metrics
        self._label = label
        self._seconds = seconds

    def coroutine(self, behaviour: Behaviour) -> Behaviour:
        """Guards a handler that is a coroutine function."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            code = "OK"
            try:
                return await behaviour(readable(request), context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:  # a handler of gRPC's own has answered already
                code = _code_of(context)
                raise
            except Exception as error:  # noqa: BLE001  (everything else becomes a status here)
                status = status_of(error)
                code = GRPC_CODES[status.code].name
                await context.abort(GRPC_CODES[status.code], status.message, ((DETAILS, status.SerializeToString()),))
            finally:
                if self._seconds is not None:
                    self._seconds.observe(time.perf_counter() - began)
                self._metrics.requests.labels(self._label, code).inc()

        return call

    def generator(self, behaviour: Behaviour) -> Behaviour:
        """Guards a handler that is an asynchronous generator."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            code = "OK"
            try:
                async for response in behaviour(readable(request), context):
                    yield response
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = _code_of(context)
                raise
            except Exception as error:  # noqa: BLE001  (everything else becomes a status here)
                status = status_of(error)
                code = GRPC_CODES[status.code].name
                await context.abort(GRPC_CODES[status.code], status.message, ((DETAILS, status.SerializeToString()),))
            finally:
                self._metrics.requests.labels(self._label, code).inc()

        return call


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except Exception:  # noqa: BLE001  (parsers share no public error; nothing of theirs may reach a caller)
            return MALFORMED

    return parse


def _label(method: str) -> str:
    """`ScoringService/Score` of `/prunewatch.v1.ScoringService/Score`."""
    service, _, name = method.rpartition("/")
    return f"{service.rpartition('.')[2]}/{name}"


def _side(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    code: Any = context.code()
    found = GRPC_CODES.get(code, code) if isinstance(code, int) else code
    return found.name if isinstance(found, grpc.StatusCode) else "UNKNOWN"
