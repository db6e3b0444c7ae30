"""How much may come: buckets that fill with time, and so a rate that holds whatever a caller does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Bucket:
    """So much an hour (or another period), at once or bit by bit.

    Args:
        amount: What it holds, and what comes back in a period.
        period: Seconds.
        clock: Seconds that only ever pass.
    """

    def __init__(self, amount: float, period: float, clock: Callable[[], float]) -> None:
        self._amount = amount
        self._period = period
        self._clock = clock
        self._left = amount
        self._at = clock()

    def take(self, wanted: float) -> bool:
        """Takes so much, if it is there."""
        self._refill()
        if wanted > self._left:
            return False
        self._left -= wanted
        return True

    def overdraw(self, wanted: float) -> float:
        """Takes so much, whether it is there or not; returns in how many seconds it will have been."""
        self._refill()
        self._left -= wanted
        return max(0.0, -self._left * self._period / self._amount)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._amount, self._left + (now - self._at) * self._amount / self._period)
        self._at = now


class Brake:
    """Holds senders back so that all together send so many bytes a second.

    Args:
        rate: Bytes a second.
        clock: Seconds that only ever pass.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._bucket = Bucket(rate, 1.0, clock)

    async def spend(self, length: int) -> None:
        """Waits until so many bytes may have been sent."""
        await asyncio.sleep(self._bucket.overdraw(length))


class FieldLimit:
    """What one device may send of its points.

    Args:
        bytes_per_hour: Of all.
        windows_per_hour: Flagged windows.
        clock: Seconds that only ever pass.
    """

    def __init__(self, bytes_per_hour: int, windows_per_hour: int, clock: Callable[[], float]) -> None:
        self._bytes = Bucket(bytes_per_hour, 3600.0, clock)
        self._windows = Bucket(windows_per_hour, 3600.0, clock)

    def admits(self, size: int, *, flagged: bool) -> bool:
        """Whether so many bytes may be kept; they count if they may."""
        return (not flagged or self._windows.take(1)) and self._bytes.take(size)
