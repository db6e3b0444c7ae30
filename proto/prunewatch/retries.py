"""When to ask again: exponential back-off with jitter, and what an overloaded service says about it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from prunewatch.errors import NEVER, ServiceError, call_error
from prunewatch.v1 import scoring_pb2


@dataclass(frozen=True)
class Retry:
    """How patiently to ask again.

    A service that is overloaded says how long to wait (`RetryInfo`, `grpc-retry-pushback-ms`): it is never asked
    sooner. Without that, waits double from `first_seconds` to `longest_seconds`.

    Attributes:
        attempts: Tries in all; None: until it succeeds.
        first_seconds: The wait after the first failure.
        longest_seconds: No wait of its own is longer.
        jitter: Part of a wait that is drawn, 0 to 1, so that many clients do not come back at once.
        draw: Gives numbers from 0 to 1.
    """

    attempts: int | None = 5
    first_seconds: float = 0.1
    longest_seconds: float = 10.0
    jitter: float = 0.5
    draw: Callable[[], float] = random.random

    def wait_seconds(self, failures: int, told: float | None = None) -> float:
        """Seconds to wait after so many failures in a row.

        Args:
            failures: 1 or more.
            told: What the service asked for.

        >>> Retry(jitter=0).wait_seconds(3), Retry(jitter=0).wait_seconds(100), Retry(jitter=0).wait_seconds(1, 7.5)
        (0.4, 10.0, 7.5)
        """
        wait = min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))
        if told is None:
            return wait * (1 - self.jitter * self.draw())
        return told + min(told, self.longest_seconds) * self.jitter * self.draw()

    def exhausted(self, failures: int) -> bool:
        """Whether there is no try left after so many failures."""
        return self.attempts is not None and failures >= self.attempts


class Patience(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc, unused-ignore]
    """Gives every call a timeout, and tries again what can be tried again.

    That is: what only reads, points with stamps and EPHEMERAL points when the service could not be reached in time (a
    point that was taken is known by its stamp and not counted twice), and all that it refused with a time to wait.

    Args:
        timeout_seconds: Of one try; None: no limit.
        retry: How patiently; None: one try.
    """

    def __init__(self, timeout_seconds: float | None, retry: Retry | None) -> None:
        self._timeout = timeout_seconds
        self._retry = retry

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        """Makes the call, several times if need be; returns the last."""
        details = client_call_details
        method = _method_of(details)
        if details.timeout is None and self._timeout is not None and not method.startswith("Wait"):
            details = details._replace(timeout=self._timeout)
        failures = 0
        while True:
            call = await continuation(details, request)
            code = await call.code()
            if code == grpc.StatusCode.OK or self._retry is None:
                return call
            error = call_error(code, await call.details(), await call.trailing_metadata() or ())
            failures += 1
            if not _may_repeat(error, method, request) or self._retry.exhausted(failures):
                return call
            await asyncio.sleep(self._retry.wait_seconds(failures, error.retry_seconds))


def _method_of(details: Any) -> str:
    """`Score` of `/prunewatch.v1.ScoringService/Score`."""
    path = details.method
    return (path.decode() if isinstance(path, bytes) else str(path)).rpartition("/")[2]


def _may_repeat(error: ServiceError, method: str, request: Any) -> bool:
    if error.retry_seconds is not None:
        return error.retry_seconds != NEVER
    if error.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return False
    if isinstance(request, scoring_pb2.ScoreRequest):
        return bool(request.stamps) or request.mode == scoring_pb2.SCORE_MODE_EPHEMERAL
    return method.startswith(("Get", "List", "Wait"))
