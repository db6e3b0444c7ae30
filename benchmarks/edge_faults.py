"""Faults during deliveries: a real hub, real devices, links that break, disks that are full, and points all the while.

A driver publishes versions and rolls back; each device has its faults, drawn from a seed, most of them while something
is on its way to it. Nothing may be lost, nothing may serve that is not a whole bundle that the hub has signed, and when
the faults are over every device comes to run what its hub wants.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import harness
from fault_device import DeviceProcess
from fault_hub import FaultHub
from fault_points import Points, dealt
from scoring_report import Part, at_most, table

from detectors.errors import PrunewatchError

KINDS = {
    "cut": "all connections reset, at once or in the middle of a file",
    "stall": "no byte for 1 to 10 s",
    "half-open": "what stands swallows all, nobody is told",
    "flip": "a bit of what is under way",
    "kill": "kill -9 of the device's process, started again",
    "disk": "the device's disk is full for 3 to 15 s",
    "kill on a full disk": "kill -9 while the disk is full, started again on it",
    "hub": "the hub ends and is away for up to 4 s",
}
LOOK_SECONDS = 0.1
SIGHT_LOOKS = 10
"""The metrics of a device are read with every so many looks."""
DELIVERY_WAIT_SECONDS = 40.0
"""So long a fault waits for something to be on its way to its device."""
DELIVERY_SECONDS = 8.0
"""A delivery takes about so long without faults: a fault comes in that time."""
BETWEEN_SECONDS = (0.5, 3.0)
REST_SECONDS = (0.5, 6.0)
ENOUGH = 0.6
"""The share of the devices that run a version when the next one comes: others are overtaken."""
ROLL_BACK_SHARE = 0.3
FIRST_SECONDS = 90.0
AIM_SECONDS = 180.0
"""Until all run what is wanted: a link that only looks open is found out after a minute, a full disk is looked at again
after one."""


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        devices: That it has.
        faults: To inject.
        seed: Of all that is drawn.
        kinds: Of faults.
        download_bytes_per_second: For all devices together.
        round_seconds: The next version comes after so long, even if this one has not reached most.
        bound_seconds: In which all must converge in the end.
        lasting: Times that faults last, and pauses between them, are multiplied by it.
    """

    devices: int = 8
    faults: int = 200
    seed: int = 6
    kinds: tuple[str, ...] = tuple(KINDS)
    download_bytes_per_second: int = 160_000
    round_seconds: float = 45.0
    bound_seconds: float = AIM_SECONDS
    lasting: float = 1.0


@dataclass
class _Change:
    """A version that devices are to run, from a moment on."""

    version: int
    began: float
    is_back: bool
    reached: dict[str, float] = field(default_factory=dict)


class Faults:
    """One run.

    Args:
        folder: For everything.
        plan: What to do.

    Attributes:
        complaints: What must not be, in words.
        injected: Faults by kind.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._hub = FaultHub(folder, plan.devices, plan.download_bytes_per_second)
        self._devices = [DeviceProcess(f"d{i + 1}", folder, self._hub.address) for i in range(plan.devices)]
        self._points = {it.name: Points(it, self._hub.published, plan.seed) for it in self._devices}
        self._changes: list[_Change] = []
        self._restarting = asyncio.Lock()
        self._quiet = False
        self._is_killed: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._during: Counter[str] = Counter()
        self._sights: Counter[str] = Counter()
        self.complaints: list[str] = []

    async def run(self) -> dict[str, Any]:
        """Injects all faults; returns the figures."""
        async with AsyncExitStack() as stack:
            await self._hub.start()
            stack.push_async_callback(self._hub.stop)
            for device in self._devices:
                await stack.enter_async_context(device)
                device.give(await self._hub.token(device.name))
            senders = [asyncio.create_task(it.run()) for it in self._points.values()]
            watchers = [asyncio.create_task(self._watch(it)) for it in self._devices]
            tasks = [*senders, *watchers]
            stack.callback(lambda: [task.cancel() for task in tasks])
            for device in self._devices:
                device.start()
            await self._publish()
            await self._converged(FIRST_SECONDS)
            driver = asyncio.create_task(self._drive())
            tasks.append(driver)
            await self._inject_all()
            self._quiet = True
            await driver
            converging = await self._converged(self._plan.bound_seconds)
            await self._compare()
            for points in self._points.values():
                points.end()
            await asyncio.gather(*senders)
            for watcher in watchers:
                watcher.cancel()
            stopped = await self._hub.stopped_rollouts()
            await self._end()
        return self._figures(converging, stopped)

    # what devices are to run

    async def _publish(self) -> None:
        version = await self._hub.publish()
        self._changes.append(_Change(version, time.monotonic(), is_back=False))

    async def _roll_back(self) -> None:
        version = await self._hub.roll_back()
        self._changes.append(_Change(version, time.monotonic(), is_back=True))

    async def _drive(self) -> None:
        """One change after the other; the next one comes when most have this one, or after a while."""
        most = (1 - ENOUGH) * len(self._devices)
        while not self._quiet:
            back = len(self._hub.published) > 2 and self._rng.random() < ROLL_BACK_SHARE
            await (self._roll_back() if back else self._publish())
            end = time.monotonic() + self._plan.round_seconds
            while not self._quiet and time.monotonic() < end and len(await self._waiting()) > most:  # noqa: ASYNC110  (the hub tells nobody)
                await asyncio.sleep(LOOK_SECONDS)
            # Sometimes what is on trial has proven itself by then, and the roll-out has ended; sometimes not.
            await asyncio.sleep(0 if self._quiet else self._plan.lasting * self._rng.uniform(*REST_SECONDS))

    async def _waiting(self) -> list[str]:
        """Devices that do not run what the hub wants."""
        return [it.name for it in self._devices if not await self._is_there(it)]

    async def _is_there(self, device: DeviceProcess) -> bool:
        wanted = await self._hub.wanted(device.name)
        return wanted is not None and self._points[device.name].version == wanted.version

    async def _converged(self, seconds: float) -> dict[str, float]:
        """Seconds until each runs what is wanted, and its points and its metrics say so."""
        began, found = time.monotonic(), {}
        while len(found) < len(self._devices) and time.monotonic() - began < seconds:
            for device in self._devices:
                there = await self._is_there(device)
                if there and device.name not in found:
                    found[device.name] = time.monotonic() - began
                elif not there:
                    found.pop(device.name, None)
            await asyncio.sleep(LOOK_SECONDS)
        return found

    # what goes wrong

    async def _inject_all(self) -> None:
        kinds = dealt(self._plan.kinds, self._plan.faults, self._rng)
        hands = [kinds[i :: len(self._devices)] for i in range(len(self._devices))]
        await asyncio.gather(
            *(
                self._inject(device, hand, random.Random(f"{self._plan.seed}/{device.name}"))
                for device, hand in zip(self._devices, hands, strict=True)
            )
        )
        for device in self._devices:
            device.link.heal()

    async def _inject(self, device: DeviceProcess, kinds: list[str], rng: random.Random) -> None:
        lasting = self._plan.lasting
        for kind in kinds:
            end = time.monotonic() + lasting * DELIVERY_WAIT_SECONDS
            while time.monotonic() < end and await self._is_there(device):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
            await asyncio.sleep(lasting * rng.uniform(0, DELIVERY_SECONDS / 2))
            self._during[kind] += not await self._is_there(device)
            self.injected[kind] += 1
            harness.say(f"fault {self.injected.total()} of {self._plan.faults}: {kind} at {device.name}")
            await self._harm(device, kind, rng)
            await asyncio.sleep(lasting * rng.uniform(*BETWEEN_SECONDS))

    async def _harm(self, device: DeviceProcess, kind: str, rng: random.Random) -> None:
        link, lasting = device.link, self._plan.lasting
        match kind:
            case "cut":
                link.cut(in_bytes=rng.choice([0, rng.randrange(1, 150_000)]))
            case "stall":
                link.stall()
                await asyncio.sleep(lasting * rng.uniform(1, 10))
                link.heal()
            case "half-open":
                link.half_open()
            case "flip":
                link.flip(rng)
            case "kill":
                await self._kill(device, rng)
            case "disk" | "kill on a full disk":
                device.disk.fill(device.pid)
                if kind != "disk":
                    await self._kill(device, rng)
                await asyncio.sleep(lasting * rng.uniform(3, 15))
                device.disk.free(device.pid)
            case _:
                async with self._restarting:
                    await self._hub.restart(lasting * rng.uniform(0, 4))

    async def _kill(self, device: DeviceProcess, rng: random.Random) -> None:
        self._is_killed[device.name] = 1
        device.kill()
        await asyncio.sleep(rng.uniform(0, 1))
        device.start()
        self._is_killed[device.name] = 0

    # what is seen

    async def _watch(self, device: DeviceProcess) -> None:
        """Looks at what serves, by its metrics; and whether the process is there."""
        points, looks = self._points[device.name], 0
        while True:
            if not self._is_killed[device.name]:
                device.revive()
            for change in self._changes[-1:]:
                if points.version == change.version:
                    change.reached.setdefault(device.name, time.monotonic() - change.began)
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            if looks % SIGHT_LOOKS == 0 and (found := await device.serving()) is not None:
                version, bundle = found
                self._sights["seen"] += 1
                if not bundle or self._hub.published.get(version, "")[: len(bundle)] != bundle:
                    self._sights["foreign"] += 1
                    self.complaints.append(f"{device.name} serves {bundle} as version {version}")

    async def _compare(self) -> None:
        """What scores, what metrics name and what the hub wants are the same."""
        for device in self._devices:
            wanted, found = await self._hub.wanted(device.name), await device.serving()
            if wanted is None or found is None or not wanted.bundle.startswith(found[1]):
                self.complaints.append(f"the metrics of {device.name} name {found}, the hub wants {wanted}")

    async def _end(self) -> None:
        """All devices end in order; what lies in their stores is whole and signed."""
        for device in self._devices:
            if (code := await device.end()) != 0:
                self.complaints.append(f"{device.name} ended with {code}")
            self._sights["stored"] += 1
            try:
                stored = device.stored()
            except (PrunewatchError, OSError) as error:
                self._sights["foreign"] += 1
                self.complaints.append(f"what {device.name} has stored can not be: {error!r}")
            else:
                self._sights["foreign"] += stored not in self._hub.published.values()

    def _figures(self, converging: dict[str, float], stopped: int) -> dict[str, Any]:
        counts: Counter[str] = sum((it.counts for it in self._points.values()), Counter())
        self.complaints += [words for it in self._points.values() for words in it.complaints]
        took = [seconds for change in self._changes for seconds in change.reached.values()]
        tried = len(self._changes) * len(self._devices)
        return {
            "seed": self._plan.seed,
            "devices": len(self._devices),
            "disks": "tmpfs" if self._devices[0].disk.is_mounted else "RLIMIT_FSIZE",
            "faults": dict(self.injected),
            "faults_during_a_delivery": self._during.total(),
            "published": sum(not it.is_back for it in self._changes),
            "rolled_back": sum(it.is_back for it in self._changes),
            "rollouts_stopped_by_devices": stopped,
            "deliveries_tried": tried,
            "deliveries_completed": len(took),
            "delivery_seconds": {"median": median(took), "max": max(took)},
            "converged_devices": len(converging),
            "converging_seconds": {"median": median(converging.values()), "max": max(converging.values())}
            if converging
            else {},
            "points": {key: counts[key] for key in ("sent", "scored", "warming_up", "answered_before", "lost")},
            "scores": {key: counts[key] for key in ("checked", "wrong", "unchecked")},
            "tries_without_answer": counts["tries"],
            "sights": dict(self._sights),
            "starts": sum(it.lives for it in self._devices),
            "died_by_themselves": sum(it.deaths for it in self._devices),
            "bits_flipped": sum(it.link.flipped for it in self._devices),
            "hub_restarts": self._hub.restarts,
            "complaints": self.complaints[:50],
        }


def run(folder: Path, *, quick: bool) -> Part:
    """Two hundred faults, or a few.

    Raises:
        harness.Skip: this is no Linux.
    """
    if sys.platform != "linux":
        raise harness.Skip("full disks need Linux")
    plan = Plan(devices=3, faults=14, round_seconds=20) if quick else Plan()
    return faults(folder, plan)


def faults(folder: Path, plan: Plan) -> Part:
    """A run, and its table."""
    harness.say(f"seed {plan.seed}, {plan.devices} devices, {plan.faults} faults")
    logging.basicConfig(filename=folder / "hub.log", level=logging.INFO)
    figures = asyncio.run(Faults(folder, plan).run())
    for words in figures["complaints"]:
        harness.say(f"COMPLAINT {words}")
    heads = ["", "measured", "aim"]
    title = f"{plan.faults} faults during deliveries to {plan.devices} devices, seed {plan.seed}"
    return Part(title, figures, {}, table(heads, _rows(figures, plan)))


def _rows(figures: dict[str, Any], plan: Plan) -> list[list[str]]:
    points, scores, sights = figures["points"], figures["scores"], figures["sights"]
    took, last = figures["delivery_seconds"], figures["converging_seconds"]

    def none(count: int) -> str:
        return f"0: {harness.verdict(count == 0)}"

    kinds = [[f"fault: {KINDS[kind]}", f"{figures['faults'].get(kind, 0)}", ""] for kind in plan.kinds]
    there = f"{figures['converged_devices']} of {figures['devices']}"
    slowest = f"{last['max']:.1f} s" if last else "none"
    return [
        *kinds,
        ["of them while a delivery was under way", f"{figures['faults_during_a_delivery']}", ""],
        ["versions published, roll backs", f"{figures['published']}, {figures['rolled_back']}", ""],
        ["roll-outs that devices gave up, so that the hub went back", f"{figures['rollouts_stopped_by_devices']}", ""],
        [
            "deliveries: asked for, completed before the next",
            f"{figures['deliveries_tried']}, {figures['deliveries_completed']}",
            "",
        ],
        ["from publication to the first score, median, max", f"{took['median']:.1f} s, {took['max']:.1f} s", ""],
        [
            "devices that run what the hub wants when faults are over",
            there,
            f"all: {harness.verdict(figures['converged_devices'] == figures['devices'])}",
        ],
        ["the last of them after", slowest, at_most(round(last["max"]), AIM_SECONDS, " s") if last else ""],
        ["points sent", f"{points['sent']:,}", ""],
        ["scored", f"{points['scored']:,}", ""],
        ["warming up, at the start and where a kill came before a checkpoint", f"{points['warming_up']:,}", ""],
        ["sent again after a kill, taken before it", f"{points['answered_before']:,}", ""],
        ["lost", f"{points['lost']:,}", none(points["lost"])],
        ["scores other than those of the version that the answer names", f"{scores['wrong']:,}", none(scores["wrong"])],
        ["of checked ones", f"{scores['checked']:,}", ""],
        ["looks at what serves", f"{sights['seen'] + sights['stored']:,}", ""],
        ["that found something else than a whole, signed bundle", f"{sights['foreign']}", none(sights["foreign"])],
        ["processes that ended by themselves", f"{figures['died_by_themselves']}", none(figures["died_by_themselves"])],
        ["anything else that must not be", f"{len(figures['complaints'])}", none(len(figures["complaints"]))],
    ]
