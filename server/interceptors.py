"""The outermost layer of every call: unreadable messages, errors to statuses, counting and timing."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from detectors.errors import DeadlineError, DeniedError, InvalidInputError
from server.admission import EXEMPT, OF_DEVICES, Gate
from server.logs import REQUEST_ID, of_request, request_id
from server.metrics import Metrics
from server.metrics.calls import MethodMetrics
from server.security.gatekeeper import HINT, Gatekeeper
from server.security.policy import OPEN, required
from server.security.principals import Principal, UnauthenticatedError
from server.statuses import GRPC_CODES, status_of, trailing_metadata

Behaviour = Callable[[Any, Any], Any]
UNKNOWN_CALLER = UnauthenticatedError("it is not said who calls.", hint=HINT)
audit = logging.getLogger("prunewatch.audit")


@dataclass
class Caller:
    """Whoever makes a call; nobody, where nobody was asked or it is not known yet."""

    principal: Principal | None = None


_caller: ContextVar[Caller] = ContextVar("caller")


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
        metrics: Counts calls by method and code, and times them.
        gate: Says whether one more may be let in.
        device_gate: The same for what devices call.
        keeper: Says who calls and whether that one may; None: whoever calls may.
    """

    def __init__(
        self, metrics: Metrics, gate: Gate, device_gate: Gate | None = None, keeper: Gatekeeper | None = None
    ) -> None:
        self._metrics = metrics
        self._gate = gate
        self._device_gate = device_gate or gate
        self._keeper = keeper
        self._wrapped: dict[str, Any] = {}
        self._refusing: dict[str, Any] = {}
        self._closed: set[str] = set()
        """Methods that not anybody may call."""

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
        caller, metadata = Caller(), handler_call_details.invocation_metadata
        _caller.set(caller)  # for the handler, which is run by this task
        of_request(request_id(next((value for key, value in metadata or () if key == REQUEST_ID), None)))
        if method in self._closed and self._keeper is not None:
            try:
                caller.principal = self._keeper.by_token(metadata)
                if caller.principal is not None:
                    self._keeper.require(caller.principal, method)
                elif not self._keeper.asks_certificates:
                    raise UNKNOWN_CALLER
            except (UnauthenticatedError, DeniedError) as error:
                return self._turning_away(wrapped, method, error)
        return wrapped

    def _turning_away(self, handler: Any, method: str, error: Exception) -> Any:
        """A handler of the same kind that says no; messages are not parsed."""

        async def refuse(_requests: Any, _context: grpc.aio.ServicerContext[Any, Any]) -> None:
            raise error

        calls = _Calls(MethodMetrics(self._metrics, method, handler), method)
        return getattr(grpc, _kind(handler))(calls.coroutine(refuse))

    def _gate_of(self, method: str) -> Gate:
        return self._device_gate if method.startswith(OF_DEVICES) else self._gate

    def _wrap(self, handler: Any, method: str) -> Any:
        metrics, streaming = MethodMetrics(self._metrics, method, handler), _is_streaming(handler)
        gate = None if method.startswith(EXEMPT) else self._gate_of(method)
        if gate is not None:
            self._refusing[method] = _refusing(handler, _Calls(metrics, method), gate)
        keeper = self._keeper if required(method) is not OPEN else None
        if keeper is not None:
            self._closed.add(method)
        behaviour: Behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        calls = _Calls(metrics, method, gate, keeper, streaming=streaming)
        wrap = calls.generator if inspect.isasyncgenfunction(behaviour) else calls.coroutine
        return getattr(grpc, _kind(handler))(
            wrap(behaviour),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Calls:
    """Runs the calls of one method."""

    def __init__(
        self,
        metrics: MethodMetrics,
        method: str,
        gate: Gate | None = None,
        keeper: Gatekeeper | None = None,
        *,
        streaming: bool = False,
    ) -> None:
        self._metrics = metrics
        self._method = method
        self._gate = gate
        self._keeper = keeper
        self._streaming = streaming
        self._changes = required(method) in ("operate", "admin")

    def coroutine(self, behaviour: Behaviour) -> Behaviour:
        """Guards a handler that is a coroutine function."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began, code = time.perf_counter(), "OK"
            self._metrics.started.inc()
            try:
                with self._let_in(context), self._admitted(context):
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
                self._ended(code, time.perf_counter() - began, request)

        return call

    def generator(self, behaviour: Behaviour) -> Behaviour:
        """Guards a handler that is an asynchronous generator."""

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            began, code = time.perf_counter(), "OK"
            self._metrics.started.inc()
            try:
                with self._let_in(context), self._admitted(context):
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
                self._ended(code, time.perf_counter() - began, request)

        return call

    def _ended(self, code: str, seconds: float, request: Any) -> None:
        """Counts a call, and writes a line: at `info` where it changes something, else at `debug`."""
        self._metrics.ended(code, seconds)
        level = logging.INFO if self._changes else logging.DEBUG
        if not audit.isEnabledFor(level):
            return
        caller = _caller.get()
        facts = {
            "method": self._method,
            "code": code,
            "seconds": seconds,
            "principal": caller.principal.name if caller.principal else "",
            "resource": _resource(request),
        }
        audit.log(level, "call", extra=facts)

    @contextmanager
    def _let_in(self, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
        """While a call runs of somebody who may make it."""
        if self._keeper is None:
            yield
            return
        caller = _caller.get()
        if caller.principal is None:
            caller.principal = self._keeper.by_certificate(context)
            self._keeper.require(caller.principal, self._method)
        with self._keeper.admitted(caller.principal, streaming=self._streaming):
            yield

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


def _resource(request: Any) -> str:
    """What a request is about, as it says; never its content."""
    named = (getattr(request, field, "") for field in ("name", "parent", "detector", "detector_id"))
    return next((it[:200] for it in named if isinstance(it, str) and it), "")


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


def _is_streaming(handler: Any) -> bool:
    """Whether a call lasts: anything but one message for one answer, or an upload."""
    return bool(handler.response_streaming)


def _side(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    code: Any = context.code()
    found = GRPC_CODES.get(code, code) if isinstance(code, int) else code
    return found.name if isinstance(found, grpc.StatusCode) else "UNKNOWN"
