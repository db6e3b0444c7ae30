"""Graphs that the hub wants measured here: verified, fetched, measured one probe after the other, reported."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from detectors.errors import PrunewatchError
from server.background import in_background
from server.edge.delivery import Delivery
from server.edge.device import Device
from server.edge.reports import Measured, Measures, Report
from server.releases import Probe, Signed, UntrustedError

MOST_WAITING = 8
"""Probes that wait; the oldest are forgotten."""
MOST_BYTES = 64 << 20
"""All graphs of a probe together: they are in memory while they are measured."""
logger = logging.getLogger("prunewatch.edge.probing")


@dataclass(frozen=True)
class _Outcome:
    """What came of it."""

    problem: str
    costs: dict[str, tuple[float, float]]
    conditions: dict[str, float | int | str]


class Probing:
    """What becomes of probes.

    Args:
        device: Whose statements count.
        delivery: Fetches graphs.
        prober: Measures.
        send: Takes reports.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        device: Device,
        delivery: Delivery,
        prober: Measures,
        send: Callable[[Report], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._device = device
        self._delivery = delivery
        self._prober = prober
        self._send = send
        self._clock = clock
        self._waiting: deque[Signed] = deque(maxlen=MOST_WAITING)
        self._done: deque[str] = deque(maxlen=64)
        """Probes that were seen to: a hub may ask again when the link comes back."""
        self._news = asyncio.Event()

    def want(self, signed: Signed) -> None:
        """Takes a probe."""
        self._waiting.append(signed)
        self._news.set()

    async def run(self) -> None:
        """Measures until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                signed = self._waiting.popleft()
                try:
                    probe = self._device.trust.probe(signed)
                    self._require_due(probe)
                except UntrustedError as error:
                    logger.warning("a probe is not measured: it %s", error.problem)
                    continue
                if probe.id not in self._done:
                    await self._see_to(probe)
                    self._done.append(probe.id)

    def _require_due(self, probe: Probe) -> None:
        if probe.device_class != self._device.identity.device_class:
            raise UntrustedError(f"is for the class {probe.device_class!r}.", field="probe")
        if self._clock() > probe.expires:
            raise UntrustedError("has expired.", field="probe")

    async def _see_to(self, probe: Probe) -> None:
        try:
            outcome = await self._measured(probe)
        except (PrunewatchError, OSError) as error:
            outcome = _Outcome(str(error), {}, {})
        except Exception:
            logger.exception("probe %s failed", probe.id)
            outcome = _Outcome("measuring failed; the log of the device says more", {}, {})
        finally:
            await in_background(self._delivery.sweep)
        asked = {it.sha256 for it in probe.graphs}
        costs = {sha256: cost for sha256, cost in outcome.costs.items() if sha256 in asked}
        time_ns = int(self._clock() * 1e9)
        self._send(Measured(probe.id, probe.batch, costs, outcome.conditions, outcome.problem[:500], time_ns))

    async def _measured(self, probe: Probe) -> _Outcome:
        if sum(it.bytes for it in probe.graphs) > MOST_BYTES:
            return _Outcome(f"its graphs have more than {MOST_BYTES >> 20} MiB", {}, {})
        graphs: dict[str, bytes] = {}
        for it in probe.graphs:
            path = await self._delivery.fetch(it.sha256, limit=it.bytes, exact=it.bytes)
            graphs[it.sha256] = await in_background(path.read_bytes)
        outcome = await self._prober.measure(probe, graphs)
        return _Outcome(outcome.problem, dict(outcome.costs), dict(outcome.conditions))
