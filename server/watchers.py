"""Who wants to hear of anomalies. Each listener has a bounded queue; a slow one loses the oldest and hurts nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection

from server.anomalies import Anomaly

QUEUE = 1000  # anomalies that wait for one listener


class Subscription:
    """Anomalies for one listener."""

    def __init__(self, detectors: Collection[str], limit: int = QUEUE) -> None:
        self.detectors = frozenset(detectors)
        self.dropped = 0
        """Anomalies that were lost because the listener was too slow."""
        self._queue: deque[Anomaly] = deque(maxlen=limit)
        self._filled = asyncio.Event()
        self._closed = False

    def wants(self, detector: str) -> bool:
        """Whether it listens to this detector."""
        return not self.detectors or detector in self.detectors

    def put(self, anomaly: Anomaly) -> bool:
        """Queues an anomaly; False when the oldest one had to go."""
        full = len(self._queue) == self._queue.maxlen
        self.dropped += full
        self._queue.append(anomaly)
        self._filled.set()
        return not full

    async def __aiter__(self) -> AsyncIterator[Anomaly]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._closed:
                return
            self._filled.clear()
            await self._filled.wait()

    def close(self) -> None:
        """Ends the iteration after what is queued."""
        self._closed = True
        self._filled.set()


class Watchers:
    """All listeners; `on_drop` is called for each lost anomaly."""

    def __init__(self, on_drop: Callable[[], None]) -> None:
        self._on_drop = on_drop
        self._subscriptions: set[Subscription] = set()
        self.closed = False
        """Nothing more will come: the process ends."""

    def add(self, detectors: Collection[str], limit: int = QUEUE) -> Subscription:
        """Begins to listen."""
        subscription = Subscription(detectors, limit)
        self._subscriptions.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Ends listening."""
        self._subscriptions.discard(subscription)

    def of(self, detector: str) -> list[Subscription]:
        """Who listens to a detector; usually nobody."""
        return [subscription for subscription in self._subscriptions if subscription.wants(detector)]

    def publish(self, anomaly: Anomaly, subscriptions: Collection[Subscription]) -> None:
        """Queues an anomaly for `subscriptions`."""
        for subscription in subscriptions:
            if not subscription.put(anomaly):
                self._on_drop()

    def close(self) -> None:
        """Ends all subscriptions."""
        self.closed = True
        for subscription in self._subscriptions:
            subscription.close()
