"""One detector on a device: what its slots hold, what scores, and whether that has proven itself."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detectors.bundle import GRAPH, Bundle
from detectors.errors import CorruptBundleError, PrunewatchError
from detectors.served import Served
from server.bundle_readings import BundleFacts, Shown
from server.conduct import FEW_BROKEN, Race, misconduct
from server.config import DetectorConfig, Retention
from server.edge.field import FieldSink, Limits
from server.edge.reports import FieldPoints, ReleaseEvent, ReleaseState, Report, Standing
from server.edge.slots import SlotName, Slots
from server.host import Host
from server.hosted import HostedDetector
from server.loop_settings import Probation
from server.metrics.device import DeviceMetrics
from server.releases import Release, Signed
from server.series_file import SeriesFile
from server.shadow import Shadow
from server.usage import Usage

SERIES_MEMORY = 32 << 20
"""For state and rings of the series of a detector; those silent for longest wait in the store."""
logger = logging.getLogger("prunewatch.edge.deployment")


@dataclass(frozen=True)
class Window:
    """How a bundle proves itself on a device.

    Attributes:
        points: Scored without cause for complaint ...
        seconds: ... or so long without one, where points are rare.
        limits: What is cause for complaint.
        look_seconds: How often it is looked at.
    """

    points: int = 500
    seconds: float = 600.0
    limits: Probation = field(default_factory=Probation)
    look_seconds: float = 1.0


@dataclass(frozen=True)
class Surroundings:
    """What the detectors of a device share.

    Attributes:
        root: The store.
        host: Scores.
        device: Metrics of the device.
        limits: Of what may be sent of the points.
        send: Takes reports.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
        window: In which bundles prove themselves.
        sends_points: Whether any may be.
    """

    root: Path
    host: Host
    device: DeviceMetrics
    limits: Limits
    send: Callable[[Report], None]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    window: Window = Window()
    sends_points: bool = True


@dataclass
class _Trial:
    began: float
    before: Served | None
    """What would serve again."""
    shadow: Shadow | None = None
    race: Race | None = None


class Deployment:
    """A detector of a device.

    Args:
        name: Its name.
        slots: Where its bundles lie.
        around: What it shares with others.
    """

    def __init__(self, name: str, slots: Slots, around: Surroundings) -> None:
        self.name = name
        self.slots = slots
        self._around = around
        self._trial: _Trial | None = None
        self._changing = asyncio.Lock()
        self._serving: tuple[str, int] = ("", 0)
        self._stated: tuple[ReleaseState, str, int] | None = None
        """Of a release that is on its way or was refused, while nothing of it is written."""
        self._steps = 0
        self._usage: Usage | None = None
        self.shown: Shown | None = None
        """What scores, for gauges."""

    @property
    def hosted(self) -> HostedDetector | None:
        """What takes points; None: nothing was ever served."""
        host = self._around.host
        return host.get(self.name) if self.name in host else None

    @property
    def serving(self) -> tuple[str, int]:
        """Bundle and counter of the release that scores; `("", 0)`: none does."""
        return self._serving

    async def start(self) -> None:
        """Serves what the slots hold, as far as they hold something."""
        async with self._changing:
            await asyncio.to_thread(self.slots.recover)
            try:
                await self._start()
            except OSError as error:
                await self._start_uncounted(error)

    async def _start(self) -> None:
        """Serves what is to serve.

        Raises:
            OSError: what has to be noted before can not be written.
        """
        if self.slots.state.trial is not None and not self.slots.starts_left:
            reason = f"it did not survive {self.slots.state.starts} starts"
            await self._give_up(ReleaseState.FELL_BACK, reason, "crashed")
        while (name := self.slots.serving) is not None:
            try:
                await self._serve(name)
            except PrunewatchError as error:
                logger.exception("%s: slot %s can not serve", self.name, name)
                if name == self.slots.state.trial:
                    await self._give_up(ReleaseState.REFUSED, f"it can not be loaded: {error.problem}", "unable")
                else:
                    await asyncio.to_thread(self.slots.lose, name)
            else:
                return

    async def _start_uncounted(self, problem: OSError) -> None:
        """Scores on a full disk: with what has proven itself, else with what may still be started.

        Raises:
            OSError: there is neither.
        """
        name = self.slots.state.active or (self.slots.state.trial if self.slots.starts_left else None)
        if name is None:
            raise problem
        logger.warning("%s: a start can not be counted, slot %s serves: %s", self.name, name, problem)
        await self._serve(name, counted=False)

    async def adopt(self, signed: Signed, release: Release, manifest: Path, graph: Path) -> None:
        """Lets what was delivered serve, on trial. Points are scored all the while.

        Raises:
            OSError: the slot can not be written; what served goes on.
        """
        async with self._changing:
            name = await asyncio.to_thread(self.slots.put, signed, release, manifest, graph)
            try:
                await self._serve(name)
            except PrunewatchError as error:
                await self._give_up(ReleaseState.REFUSED, f"it can not serve: {error.problem}", "unable")
                await self._serve_again()
                return
            finally:
                self._stated = None
        self._tell(release.bundle, release.counter, ReleaseState.TRYING, "")

    async def renew(self, name: SlotName, signed: Signed, release: Release) -> None:
        """Lets what a slot holds serve under a newer release."""
        async with self._changing:
            self.fetching(release)
            await asyncio.to_thread(self.slots.renew, name, signed, release)
            if self._serving[0] == release.bundle and self.hosted is not None:
                self.hosted.configure(config_of(release))
                self._serving = (release.bundle, release.counter)
            else:
                self._trial = None
                await self._serve(name)
            self._stated = None
        if self.slots.state.trial is None:
            self._tell(release.bundle, release.counter, ReleaseState.SERVING, "")

    async def refuse(self, release: Release, reason: str, label: str, *, for_good: bool) -> None:
        """Notes that a release is not taken; once for the same reason. What serves goes on."""
        if self._stated == (stated := (ReleaseState.REFUSED, reason, release.counter)):
            return
        self._stated = stated
        if for_good:
            async with self._changing:
                await asyncio.to_thread(self.slots.refuse, release, reason)
        logger.warning("release %d of %s is refused: %s", release.counter, self.name, reason)
        self._around.device.rejections.labels(self.name, label).inc()
        self._tell(release.bundle, release.counter, ReleaseState.REFUSED, reason)

    def fetching(self, release: Release, reason: str = "") -> None:
        """Notes that a release is on its way, and why it is not there."""
        self._stated = ReleaseState.FETCHING, reason, release.counter

    def forget_stated(self) -> None:
        """What serves is what is asked for."""
        self._stated = None

    async def look(self) -> None:
        """Ends the trial when it is due, well or badly."""
        async with self._changing:
            trial, hosted = self._trial, self.hosted
            if trial is None or hosted is None or hosted.served is None:
                return
            if reason := await self._misconduct(trial, hosted):
                logger.warning("%s goes back to what served before: %s", self.name, reason)
                self._stated = ReleaseState.TRYING, "", self.slots.state.counter  # until it has
                try:
                    await self._give_up(ReleaseState.FELL_BACK, reason, "misbehaved")
                    await self._serve_again()
                finally:
                    self._stated = None
                return
            seconds = self._around.monotonic() - trial.began
            if hosted.usage.points >= self._around.window.points or seconds >= self._around.window.seconds:
                await asyncio.to_thread(self.slots.prove)
                self._trial = None
                bundle_hash, counter = self._serving
                self._tell(bundle_hash, counter, ReleaseState.SERVING, "")

    async def stop(self) -> None:
        """Ends scoring: the hub does not want it here any more."""
        async with self._changing:
            if (hosted := self.hosted) is not None:
                await hosted.flush()
                await hosted.shelve()
                self._around.host.remove(self.name)
                await self._around.host.settle(hosted)
            self._trial, self._serving, self._stated = None, ("", 0), None
            await asyncio.to_thread(self.slots.stop)
        logger.info("%s is stopped", self.name)

    async def close(self) -> None:
        """The process ends in order."""
        async with self._changing:
            if self._trial is not None:
                await asyncio.to_thread(self.slots.end_in_order)

    @property
    def newest(self) -> tuple[ReleaseState, str, int]:
        """Where it is with the newest release, why, and the number of that."""
        state = self.slots.state
        if self._stated is not None:
            return self._stated
        if state.given_up is not None:
            return state.given_up.state, state.given_up.reason, state.counter
        return (ReleaseState.TRYING if state.trial else ReleaseState.SERVING), "", state.counter

    def standing(self, flagged: int) -> Standing:
        """Where it is; `flagged` points since the start. Begins to count steps anew."""
        hosted = self.hosted
        where, reason, asked = self.newest
        p50, p99 = self._step_times(hosted)
        scorer = hosted.live() if hosted is not None and not hosted.problem else None
        return Standing(
            detector=self.name,
            bundle_hash=self._serving[0],
            counter=self._serving[1],
            state=where,
            reason=reason,
            asked_counter=asked,
            points=hosted.accepted if hosted is not None else 0,
            flagged=flagged,
            step_p50_seconds=p50,
            step_p99_seconds=p99,
            series=len(scorer.series) if scorer is not None else 0,
        )

    def _step_times(self, hosted: HostedDetector | None) -> tuple[float, float]:
        if hosted is None:
            return math.nan, math.nan
        known = self._steps if hosted.usage is self._usage else 0
        seconds = hosted.usage.newest(hosted.usage.steps - known)
        self._usage, self._steps = hosted.usage, hosted.usage.steps
        if not len(seconds):
            return math.nan, math.nan
        p50, p99 = np.quantile(seconds, (0.5, 0.99))
        return float(p50), float(p99)

    async def _serve(self, name: SlotName, *, counted: bool = True) -> None:
        """Loads a slot and swaps it in; a start on trial is counted before.

        Raises:
            PrunewatchError: it can not serve; what served goes on.
        """
        on_trial = name == self.slots.state.trial
        if on_trial and counted:
            await asyncio.to_thread(self.slots.count_start)
        release, bundle = await asyncio.to_thread(self.slots.read, name)
        served = await asyncio.to_thread(_loaded, bundle, release.version)
        config, around = config_of(release), self._around
        before = await self._before() if on_trial else None
        hosted = self.hosted
        is_new = hosted is None
        if hosted is None:
            shelf = SeriesFile.of(around.root, self.name)
            hosted = around.host.add(self.name, config, bundle.manifest.features, shelf)
        try:
            await hosted.serve(served, bundle.manifest.features)
        except Exception as error:
            if is_new:
                around.host.remove(self.name)
            if isinstance(error, PrunewatchError | OSError):
                raise
            raise CorruptBundleError("its step fails on the points of the live series.", field=GRAPH) from error
        hosted.configure(config)
        self._serving = (release.bundle, release.counter)
        self._trial = _Trial(around.monotonic(), before) if on_trial else None
        self._learn(hosted, bundle, config)
        self.shown = Shown(
            bundle.manifest.detector, release.device_class, release.version, bundle.hash, BundleFacts.of(bundle)
        )
        logger.info(
            "%s: bundle %s of release %d scores%s",
            self.name,
            release.bundle[:12],
            release.counter,
            ", on trial" if on_trial else "",
        )

    async def _before(self) -> Served | None:
        """What serves again if a trial ends badly; None: there is nothing, or it is damaged."""
        name = self.slots.state.active
        if name is None:
            return None
        served = self.hosted.served if self.hosted is not None else None
        if served is not None and served.bundle_hash == self.slots.state.slots[name].bundle:
            return served  # it scores at this moment
        try:
            release, bundle = await asyncio.to_thread(self.slots.read, name)
            return await asyncio.to_thread(Served.load, bundle, release.version)
        except PrunewatchError:
            logger.exception("%s: what served before can not be read", self.name)
            return None

    async def _serve_again(self) -> None:
        """What has proven itself; where nothing has, callers are told why nothing scores."""
        while (name := self.slots.state.active) is not None:
            if self._serving[0] == self.slots.state.slots[name].bundle:
                return
            try:
                await self._serve(name)
            except PrunewatchError:
                logger.exception("%s: slot %s can not serve", self.name, name)
                await asyncio.to_thread(self.slots.lose, name)
            else:
                return
        given_up = self.slots.state.given_up
        self._serving = ("", 0)
        if self.hosted is not None:
            self.hosted.problem = given_up.reason if given_up is not None else "there is no sound bundle here."

    async def _give_up(self, state: ReleaseState, reason: str, label: str) -> None:
        given_up = await asyncio.to_thread(self.slots.give_up, state, reason)
        self._trial = None
        self._around.device.rejections.labels(self.name, label).inc()
        self._tell(given_up.bundle, given_up.counter, state, given_up.reason)

    async def _misconduct(self, trial: _Trial, hosted: HostedDetector) -> str:
        """Why what is on trial must not serve; empty: it behaves."""
        usage, limits, rate = hosted.usage, self._around.window.limits, hosted.config.false_alarm_rate
        if hosted.problem:
            return hosted.problem
        if usage.failed >= FEW_BROKEN:
            return f"{usage.failed} of its steps failed"
        if trial.before is None or hosted.served is None:
            return misconduct(usage, Usage(), limits, rate)
        if trial.shadow is None or trial.race is None:
            trial.shadow = hosted.shadow(trial.before)
            trial.race = Race(hosted.served, trial.before, limits.slower)
        if trial.shadow is None:
            return misconduct(usage, Usage(), limits, rate)
        await trial.shadow.follow()
        reason = misconduct(usage, trial.shadow.usage, limits, rate)
        return reason or await asyncio.to_thread(trial.race.lost, usage, hosted.before)

    def _learn(self, hosted: HostedDetector, bundle: Bundle, config: DetectorConfig) -> None:
        """Has the points looked at for what the hub may learn from."""
        around = self._around
        if around.sends_points:
            hosted.history = FieldSink(
                self.name,
                tuple(bundle.manifest.features),
                warm_up_points=bundle.manifest.warm_up_points,
                max_gap=config.gap_nanoseconds,
                limits=around.limits,
                send=self._send_points,
                context=lambda: (hosted.threshold, self._serving[1]),
                clock=lambda: int(around.clock() * 1e9),
            )

    def _send_points(self, points: FieldPoints) -> None:
        self._around.send(points)

    def _tell(self, bundle_hash: str, counter: int, state: ReleaseState, reason: str) -> None:
        time_ns = int(self._around.clock() * 1e9)
        self._around.send(ReleaseEvent(self.name, bundle_hash, counter, state, reason, time_ns))


def _loaded(bundle: Bundle, version: int) -> Served:
    """A version that has done a step.

    Raises:
        CorruptBundleError: it can not.
    """
    served = Served.load(bundle, version)
    runtime = served.runtime
    points = () if runtime.stride == 1 else (runtime.stride,)
    try:
        runtime.step(np.zeros((1, *points, runtime.n_features), np.float32), runtime.fresh(1))
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise CorruptBundleError("its step fails.", field=GRAPH) from error
    return served


def config_of(release: Release) -> DetectorConfig:
    """How a detector alarms and judges stamps, as a release says; what it keeps is that of a device."""
    return DetectorConfig(
        **release.settings.model_dump(),
        series_memory=SERIES_MEMORY,
        history=Retention(max_rows=50_000, reservoir_rows=0, max_anomalies=0),
    )
