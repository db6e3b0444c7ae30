"""The outermost layer of every call: unreadable messages, errors to statuses, counting and timing."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from detectors.errors import DeadlineError, InvalidInputError
from server.admission import EXEMPT, OF_DEVICES, Gate
from server.metrics import Metrics
from server.statuses import GRPC_CODES, status_of, trailing_metadata

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
        gate: Says whether one more may be let in.
        device_gate: The same for what devices call.
    """

    def __init__(self, metrics: Metrics, gate: Gate, device_gate: Gate | None = None) -> None:
        self._metrics = metrics
        self._gate = gate
        self._device_gate = device_gate or gate
        self._wrapped: dict[str, Any] = {}
        self._refusing: dict[str, Any] = {}

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
            wrapped = self._wrapped[method] = self._wrap(handler, method)
        if method in self._refusing and self._gate_of(method).is_full(streaming=_is_streaming(wrapped)):
            return self._refusing[method]
        return wrapped

    def _gate_of(self, method: str) -> Gate:
        return self._device_gate if method.startswith(OF_DEVICES) else self._gate

    def _wrap(self, handler: Any, method: str) -> Any:
        label, streaming = _label(method), _is_streaming(handler)
        gate = None if method.startswith(EXEMPT) else self._gate_of(method)
        if gate is not None:
            self._refusing[method] = _refusing(handler, _Calls(self._metrics, label), gate)
        behaviour: Behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        seconds = None if handler.response_streaming else self._metrics.request_seconds.labels(label)
        calls = _Calls(self._metrics, label, seconds, gate, streaming=streaming)
        wrap = calls.generator if inspect.isasyncgenfunction(behaviour) else calls.coroutine
        return getattr(grpc, _kind(handler))(
            wrap(behaviour),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Calls:
    """Runs the calls of one method."""

    def __init__(
        self, metrics: Metrics, label: str, seconds: Any = None, gate: Gate | None = None, *, streaming: bool = False
    ) -> None:
        self._metrics = metrics
        self._label = label
        self._seconds = seconds
        self._gate = gate
        self._streaming = streaming

    def coroutine(self, behaviour: Behaviour) -> Behaviour:
        """Guards a handler that is a coroutine function."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            code = "OK"
            try:
                with self._admitted(context):
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
                await context.abort(GRPC_CODES[status.code], status.message, trailing_metadata(error, status))
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
                with self._admitted(context):
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
                await context.abort(GRPC_CODES[status.code], status.message, trailing_metadata(error, status))
            finally:
                self._metrics.requests.labels(self._label, code).inc()

        return call

    @contextmanager
    def _admitted(self, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
        """While a call runs that may: others have come since it was looked at first, and its time may be over."""
        if context.time_remaining() == 0:
            raise DeadlineError("it was too late to begin.", hint="Allow more time, or send less at once.")
        if self._gate is None:
            yield
            return
        if self._gate.is_full(streaming=self._streaming):
            raise self._gate.refusal(streaming=self._streaming)
        with self._gate.admitted(streaming=self._streaming):
            yield


def _refusing(handler: Any, calls: _Calls, gate: Gate) -> Any:
    """A handler of the same kind that refuses; messages are not parsed."""
    streaming = _is_streaming(handler)

    async def refuse(_requests: Any, _context: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise gate.refusal(streaming=streaming)

    return getattr(grpc, _kind(handler))(calls.coroutine(refuse))


def _kind(handler: Any) -> str:
    return f"{_side(handler.request_streaming)}_{_side(handler.response_streaming)}_rpc_method_handler"


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


def _is_streaming(handler: Any) -> bool:
    """Whether a call lasts: anything but one message for one answer, or an upload."""
    return bool(handler.response_streaming)


def _side(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    code: Any = context.code()
    found = GRPC_CODES.get(code, code) if isinstance(code, int) else code
    return found.name if isinstance(found, grpc.StatusCode) else "UNKNOWN"
