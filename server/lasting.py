"""Whether what is flagged stays flagged: then it is no incident, the series has come to behave otherwise."""

from __future__ import annotations

from collections import deque

BLOCKS = 64
"""A window is counted in so many pieces."""
HALF = 0.5
"""Of the points of a window that are flagged where it lasts."""


class Lasting:
    """Counts what is flagged of the newest points of a detector. Over a restart it begins anew."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[int, int]] = deque()
        self._points = self._flagged = 0

    def take(self, points: int, flagged: int, window: int) -> None:
        """Counts points of one request; those before the newest `window` are forgotten.

        >>> lasting = Lasting()
        >>> for _ in range(10):
        ...     lasting.take(10, 6, window=100)
        >>> lasting.lasts(100), lasting.lasts(200)
        (True, False)
        >>> lasting.take(100, 10, window=100)
        >>> lasting.lasts(100)
        False
        """
        if self._blocks and self._blocks[-1][0] + points <= window // BLOCKS:
            last = self._blocks.pop()
            self._blocks.append((last[0] + points, last[1] + flagged))
        else:
            self._blocks.append((points, flagged))
        self._points += points
        self._flagged += flagged
        while self._points - self._blocks[0][0] >= window:
            old = self._blocks.popleft()
            self._points -= old[0]
            self._flagged -= old[1]

    def lasts(self, window: int) -> bool:
        """Whether at least half of the newest `window` points were flagged; not before there were so many."""
        return self._points >= window and self._flagged >= HALF * self._points

    def clear(self) -> None:
        """Forgets everything: another version scores."""
        self._blocks.clear()
        self._points = self._flagged = 0
