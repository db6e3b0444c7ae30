"""How much may be going on at once: beyond it callers are told to come again later, before their messages are parsed.

gRPC's own limit (`maximum_concurrent_rpcs`) would also turn health checks away: a busy process would be killed for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detectors.errors import EndingError, OverloadedError, PrunewatchError

EXEMPT = ("/grpc.health.", "/grpc.reflection.", "/inference.GRPCInferenceService/Server")
"""What asks whether this process lives, and what it offers."""
OF_DEVICES = "/prunewatch.v1.DeviceService/"
"""Has a gate of its own: links that are open for days take nobody's place, and nobody takes theirs."""
LEAST_DELAY, LONGEST_DELAY = 0.05, 5.0
SMOOTHING = 0.05


class Gate:
    """Counts calls and streams, and refuses those that are too many.

    Args:
        max_calls: Calls that are answered once and have not been.
        max_streams: Streams that are open.
        refused: Told of each call that was refused.
        keys: Settings that raise the limits.
    """

    def __init__(
        self,
        max_calls: int,
        max_streams: int,
        refused: Callable[[], None] = lambda: None,
        keys: tuple[str, str] = ("max_calls", "max_streams"),
    ) -> None:
        self._keys = keys
        self._limits = {False: max_calls, True: max_streams}
        self._open = {False: 0, True: 0}
        self._refused = refused
        self._seconds = 0.0
        self._is_closed = False

    def close(self) -> None:
        """Lets nobody in any more: the process is about to end."""
        self._is_closed = True

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return not any(self._open.values())

    @property
    def calls(self) -> int:
        """Calls that run."""
        return self._open[False]

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return self._open[True]

    def is_full(self, *, streaming: bool) -> bool:
        """Whether one more is too many."""
        return self._is_closed or self._open[streaming] >= self._limits[streaming]

    def refusal(self, *, streaming: bool) -> PrunewatchError:
        """What one that is too many is told: to come again in about the time that a call takes now, not all at once."""
        if self._is_closed:
            return EndingError("the server is about to end.", hint="Ask another one, or this one when it is back.")
        self._refused()
        what, key = ("streams are open" if streaming else "calls are running"), self._keys[streaming]
        delay = min(max(self._seconds, LEAST_DELAY), LONGEST_DELAY) * random.uniform(1, 2)  # noqa: S311  (no secret)
        return OverloadedError(
            f"{self._limits[streaming]} {what} already.",
            hint=f"Come again in a moment, with more points in each message; or raise {key}.",
            retry_seconds=delay,
        )

    @contextmanager
    def admitted(self, *, streaming: bool) -> Iterator[None]:
        """While one that was let in runs."""
        self._open[streaming] += 1
        began = time.perf_counter()
        try:
            yield
        finally:
            self._open[streaming] -= 1
            if not streaming:
                self._seconds += SMOOTHING * (time.perf_counter() - began - self._seconds)
