"""Whether what serves on a class keeps its budget there: measured by devices, and as they see it in use."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from detectors.bundle import GRAPH
from server.config import Budget
from server.fleet.asking import Asking
from server.fleet.reports import ProbeReport
from server.fleet.tables import LONGEST, SHORTEST, Costs, believable, of_class
from server.measuring_settings import Measuring
from server.records import Measurement
from server.roster import Roster

ROUNDS = 21
STATUSES = 5
"""Of a device, the newest, that are looked at: one slow minute is no missed budget."""
HEARD_SECONDS = 86400.0
"""A device that was silent for longer does not count."""


@dataclass
class _Served:
    """What serves on a class, as devices measure it."""

    bundle: str
    batch: int
    names: tuple[str, ...]
    probe_id: str = ""
    asked: set[str] = field(default_factory=set)
    answered: float = 0.0
    answers: dict[str, Costs] = field(default_factory=dict)


@dataclass
class _Seen:
    """Steps in use on one device."""

    bundle: str
    heard: float
    p50: deque[float] = field(default_factory=lambda: deque(maxlen=STATUSES))
    p99: deque[float] = field(default_factory=lambda: deque(maxlen=STATUSES))


class InService:
    """What serves on classes with devices.

    Args:
        roster: The detectors.
        asking: Asks devices.
        settings: How many, and how old a measurement gets.
        clock: Seconds since the epoch.
    """

    def __init__(self, roster: Roster, asking: Asking, settings: Measuring, clock: Callable[[], float]) -> None:
        self._roster, self._asking, self._settings, self._clock = roster, asking, settings, clock
        self._served: dict[tuple[str, str], _Served] = {}
        self._seen: dict[tuple[str, str], dict[str, _Seen]] = {}

    async def look_at(self, name: str, device_class: str) -> None:
        """Has what serves measured, where nobody has, or long ago. `triggers.missed_budget` looks at what comes."""
        catalog, store = self._roster.catalog, self._roster.store
        serving = await asyncio.to_thread(catalog.serving, name, device_class)
        batch, key = self._roster.budget_of(device_class).batch, (name, device_class)
        if serving is None:
            return
        measured = await asyncio.to_thread(catalog.measurements, serving.bundle_hash)
        budget = self._roster.budget_of(device_class)
        is_slow = bool(self._slow(name, device_class, serving.bundle_hash, budget))
        oldest = self._clock() - (self._settings.ask_again if is_slow else self._settings.table_max_age)
        if any((it.device_class, it.batch) == (device_class, batch) and it.measured >= oldest for it in measured):
            self._served.pop(key, None)
            return
        known = self._served.get(key)
        if known is None or (known.bundle, known.batch) != (serving.bundle_hash, batch):
            bundle = await asyncio.to_thread(store.read_bundle, serving.bundle_hash)
            known = _Served(serving.bundle_hash, batch, (bundle.manifest.files[GRAPH].sha256,))
            self._served[key] = known
        if await self._is_recorded(key, known):
            return
        about = f"served {name} {device_class} {known.bundle} {batch}"
        devices = self._asking.who(about, device_class, answered=known.answers, wanted=self._settings.canaries)
        if devices:
            known.asked.update(devices)
            graphs = {known.names[0]: store.bundle_folder(known.bundle) / GRAPH}
            known.probe_id = await asyncio.to_thread(
                lambda: self._asking.ask(
                    about, device_class, devices, graphs, batch=batch, rounds=ROUNDS, probe_id=known.probe_id
                )
            )

    async def take(self, device_class: str, report: ProbeReport) -> bool:
        """Takes an answer; False where it is not one about what serves, or not to be believed."""
        for (_, known_class), known in self._served.items():
            if known_class != device_class or not known.probe_id or known.probe_id != report.probe_id:
                continue
            if report.batch != known.batch or not believable(report.costs, known.names, known.names[0]):
                return False
            known.answers[report.device] = report.costs
            known.answered = known.answered or self._clock()
            return True
        return False

    async def _is_recorded(self, key: tuple[str, str], known: _Served) -> bool:
        """Writes down what devices measured, once all that were asked have answered or were waited for."""
        if not known.answers:
            return False
        if len(known.answers) < len(known.asked) and self._clock() < known.answered + self._settings.patience:
            return False
        p50, p99 = of_class(list(known.answers.values()), known.names[0])[known.names[0]]
        measurement = Measurement(known.bundle, key[1], known.batch, p50, p99, self._clock())
        await asyncio.to_thread(self._roster.catalog.record_measurement, measurement)
        self._served.pop(key, None)
        return True

    def hear(
        self, device: str, device_class: str, detector: str, bundle: str, p50: float | None, p99: float | None
    ) -> None:
        """Takes what a device says of its steps since its last status.

        Args:
            device: Its name.
            device_class: Its class.
            detector: What it scores with.
            bundle: Hash of that.
            p50: In seconds; None or NaN: there was no step.
            p99: The same.
        """
        if p50 is None or p99 is None or not (SHORTEST <= p50 <= p99 <= LONGEST) or not math.isfinite(p99):
            return
        devices = self._seen.setdefault((detector, device_class), {})
        seen = devices.get(device)
        if seen is None or seen.bundle != bundle:
            devices.pop(device, None)
            seen = devices[device] = _Seen(bundle, 0.0)
        seen.heard = self._clock()
        seen.p50.append(p50)
        seen.p99.append(p99)

    def in_use(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Step times in use as devices say them: p50 and p99 in seconds, medians, by detector and class.

        Of those that were heard of in a day. Any thread may ask.
        """
        oldest, found = self._clock() - HEARD_SECONDS, {}
        for key, devices in list(self._seen.items()):
            heard = [it for it in list(devices.values()) if it.heard >= oldest and it.p99]
            if heard:
                p50, p99 = (float(np.median([np.median(list(getattr(it, q))) for it in heard])) for q in ("p50", "p99"))
                found[key] = p50, p99
        return found

    def missed(self, detector: str, device_class: str, bundle: str, budget: Budget) -> str:
        """How the budget is missed in use, in words, while devices have not measured what serves; empty: it is not.

        What they have measured decides: in use a step also takes what cold caches and other processes cost, which no
        narrower network mends, so that one cycle would follow the other. Then steps in use only have devices measure
        anew (`look_at`).

        Args:
            detector: The detector.
            device_class: The class.
            bundle: What it is to serve.
            budget: What a step may cost.
        """
        measured = self._roster.catalog.measurements(bundle)
        if any((it.device_class, it.batch) == (device_class, budget.batch) for it in measured):
            return ""
        return self._slow(detector, device_class, bundle, budget)

    def _slow(self, detector: str, device_class: str, bundle: str, budget: Budget) -> str:
        """How steps in use miss the budget; empty: they meet it, or too little was heard.

        They have any number of points. One of fewer than the budget's takes no longer than a whole one, so a budget
        that is missed by them is missed.
        """
        devices, now = self._seen.get((detector, device_class), {}), self._clock()
        newest = list(devices.values())  # one call into C: a status may come meanwhile
        heard = [it for it in newest if it.bundle == bundle and len(it.p50) == STATUSES]
        heard = [it for it in heard if now - it.heard <= HEARD_SECONDS]
        for name, limit in (("p50", budget.p50), ("p99", budget.p99)):
            if limit is None or not heard:
                continue
            usual = float(np.median([np.median(getattr(seen, name)) for seen in heard]))
            if usual > limit:
                return (
                    f"steps in use on {len(heard)} devices of {device_class} have a {name} of {usual * 1e6:.0f} us; "
                    f"{limit * 1e6:.0f} may be"
                )
        return ""
