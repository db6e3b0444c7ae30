"""Makes the device run what its hub wants it to: verified, fetched, tried; what breaks on the way is begun again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.archive import RELEASE
from detectors.bundle import GRAPH, MANIFEST, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, Manifest, decode_manifest, read_bundle
from detectors.errors import CorruptBundleError, PrunewatchError
from server.background import in_background
from server.edge.delivery import FULL, Delivery, DeliveryError
from server.edge.deployment import Deployment, Surroundings
from server.edge.device import Device
from server.edge.slots import Slots
from server.layout import DETECTORS
from server.releases import Release, Signed, UntrustedError, require_adoptable

LONGEST_AGAIN_SECONDS = 3600.0
"""A release that could not be had is tried again, each time in a row after twice as long up to this."""
UNKNOWN = "unknown"
"""In metrics, of statements that nobody who is trusted has signed: what they say of a detector is not looked at."""
logger = logging.getLogger("prunewatch.edge.converging")


@dataclass(frozen=True)
class Asked:
    """A verified release."""

    signed: Signed
    release: Release


class Convergence:
    """The detectors of a device.

    Args:
        device: Whose statements count.
        around: What the detectors share.
        delivery: Fetches files; None: there is no hub.
        max_detectors: More are refused.
        again_seconds: After so long a release that could not be had is tried again for the first time.
        say_again: Asks the hub to say again what is wanted, where that was not all signed by whom it trusts.
    """

    def __init__(
        self,
        device: Device,
        around: Surroundings,
        delivery: Delivery | None,
        max_detectors: int,
        again_seconds: float = 60.0,
        say_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._say_again = say_again
        self._all_read = True
        self._again_seconds = again_seconds
        self._device = device
        self._around = around
        self._delivery = delivery
        self._max_detectors = max_detectors
        self._folder = around.root / DETECTORS
        self.deployments: dict[str, Deployment] = {}
        self._wanted: list[Signed] | None = None
        self._news = asyncio.Event()
        self._refused: set[tuple[str, str]] = set()

    async def start(self) -> None:
        """Serves what the slots hold. One detector that can not be loaded does not stop others."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        for folder in sorted(self._folder.iterdir()):
            if folder.is_dir():
                try:
                    await self._deployment(folder.name).start()
                except Exception:
                    logger.exception("%s can not be started", folder.name)

    def want(self, releases: Sequence[Signed]) -> None:
        """Takes all that the device is to run from now on."""
        self._wanted = list(releases)
        self._news.set()

    async def run(self) -> None:
        """Follows what is wanted until cancelled; news end what is under way, but never between two slots."""
        again = self._again_seconds
        while True:
            await self._news.wait()
            self._news.clear()
            working = asyncio.create_task(self._converge(self._wanted or []))
            hearing = asyncio.create_task(self._news.wait())
            try:
                await asyncio.wait({working, hearing}, return_when=asyncio.FIRST_COMPLETED)
                if working.done() and (working.cancelled() or not working.result()):
                    await asyncio.wait({hearing}, timeout=again)
                    again = min(2 * again, LONGEST_AGAIN_SECONDS)
                    if not hearing.done() and not self._all_read:
                        self._say_again()
                    self._news.set()
                elif working.done():
                    again = self._again_seconds
            except Exception:
                logger.exception("what the hub wants could not be done; it will be tried again")
                await asyncio.wait({hearing}, timeout=again)
                self._news.set()
            finally:
                working.cancel()
                hearing.cancel()
                await asyncio.gather(working, hearing, return_exceptions=True)

    async def look(self) -> None:
        """Ends trials that are due until cancelled."""
        while True:
            for deployment in list(self.deployments.values()):
                try:
                    await deployment.look()
                except Exception:
                    logger.exception("the trial of %s could not be looked at; it will be tried again", deployment.name)
            await asyncio.sleep(self._around.window.look_seconds)

    async def take_files(self, folder: Path) -> None:
        """Adopts what was unpacked from a file into `folder` of the store: the same rules as for what a hub sends.

        Raises:
            UntrustedError: it is not signed, or not for this device, or too old.
            PrunewatchError: it is damaged, or can not serve.
        """
        try:
            signed = Signed.from_json((folder / RELEASE).read_bytes())
        except FileNotFoundError as error:
            raise UntrustedError(
                "holds no signed release.",
                field="--bundle",
                hint="Have the hub export it for this device class, or leave --store out to score without one.",
            ) from error
        release = self._device.trust.release(signed)
        deployment = self._deployment(release.detector)
        state = deployment.slots.state
        if state.counter == release.counter and state.given_up is None and deployment.slots.holding(release.bundle):
            return  # the same file as the last time
        require_adoptable(
            release,
            device_class=self._device.identity.device_class,
            counter=state.counter,
            now=self._around.clock(),
        )
        if state.given_up is not None and state.given_up.counter == release.counter:
            raise UntrustedError(f"was given up before: {state.given_up.reason}", field="--bundle")
        bundle = await asyncio.to_thread(read_bundle, folder, release.bundle)
        _require_whole(release, bundle.manifest)
        await _finish(deployment.adopt(signed, release, folder / MANIFEST, folder / GRAPH))
        if (given_up := deployment.slots.state.given_up) is not None:
            raise CorruptBundleError(given_up.reason, field="--bundle")

    async def close(self) -> None:
        """The process ends in order."""
        for deployment in self.deployments.values():
            await deployment.close()

    def _deployment(self, name: str) -> Deployment:
        if name not in self.deployments:
            self.deployments[name] = Deployment(name, Slots(self._folder / name), self._around)
        return self.deployments[name]

    async def _converge(self, statements: Sequence[Signed]) -> bool:
        """Brings every detector where it should be; whether all are."""
        wanted, self._all_read = self._verified(statements)
        for name, deployment in list(self.deployments.items()):
            if name not in wanted and self._all_read and not deployment.slots.state.stopped:
                await _finish(deployment.stop())
        there = self._all_read
        for name, asked in wanted.items():
            running = [it for it in self.deployments.values() if it.hosted is not None]
            if name not in self.deployments and len(running) >= self._max_detectors:
                self._complain(name, "full", f"there are {len(running)} detectors already")
                continue
            there &= await self._bring(self._deployment(name), asked)
        if there and self._delivery is not None:
            await in_background(self._delivery.sweep)
        return there

    def _verified(self, statements: Sequence[Signed]) -> tuple[dict[str, Asked], bool]:
        """The newest release of each detector. While one can not be read, nothing is known of what is missing."""
        found: dict[str, Asked] = {}
        all_read = True
        for signed in statements:
            try:
                release = self._device.trust.release(signed)
            except UntrustedError as error:
                self._complain(UNKNOWN, "untrusted", f"it {error.problem}")
                all_read = False
                continue
            known = found.get(release.detector)
            if known is None or known.release.counter < release.counter:
                found[release.detector] = Asked(signed, release)
        return found, all_read

    async def _bring(self, deployment: Deployment, asked: Asked) -> bool:
        """Brings one detector where it should be; False: not now, but it is worth trying again."""
        release, state = asked.release, deployment.slots.state
        if release.counter == state.counter:
            if state.given_up is not None and state.given_up.counter == release.counter:
                return True
            if deployment.serving == (release.bundle, release.counter):
                deployment.forget_stated()
                return True
        if not await self._is_adoptable(deployment, release):
            return True
        try:
            if (slot := deployment.slots.holding(release.bundle)) is not None:
                await _finish(deployment.renew(slot, asked.signed, release))
                return True
            return await self._fetch(deployment, asked)
        except OSError as error:
            full = error.errno in FULL
            why = (
                "the disk is full; it waits for room." if full else f"it can not be written: {error.strerror or error}"
            )
            deployment.fetching(release, why)
        except PrunewatchError as error:  # what a slot held is damaged
            logger.warning("%s: %s", deployment.name, error)
        return False

    async def _fetch(self, deployment: Deployment, asked: Asked) -> bool:
        release = asked.release
        deployment.fetching(release)
        try:
            manifest, graph = await self._files(release)
        except DeliveryError as error:
            if error.reason == "full":
                deployment.fetching(release, error.problem)
                self._complain(deployment.name, error.reason, error.problem)
            else:
                await deployment.refuse(release, error.problem, error.reason, for_good=False)
            return False
        except PrunewatchError as error:
            await deployment.refuse(release, f"its bundle {error.problem}", "content", for_good=True)
            return True
        if not await self._is_adoptable(deployment, release):  # it may have taken days
            return True
        await _finish(deployment.adopt(asked.signed, release, manifest, graph))
        return True

    async def _files(self, release: Release) -> tuple[Path, Path]:
        if self._delivery is None:
            raise DeliveryError("there is no hub to fetch it from.", "download")
        manifest_path = await self._delivery.fetch(release.bundle, limit=MAX_MANIFEST_BYTES)
        manifest = decode_manifest(await in_background(manifest_path.read_bytes), manifest_path)
        _require_whole(release, manifest)
        entry = manifest.files[GRAPH]
        graph_path = await self._delivery.fetch(entry.sha256, limit=MAX_FILE_BYTES, exact=entry.bytes)
        return manifest_path, graph_path

    async def _is_adoptable(self, deployment: Deployment, release: Release) -> bool:
        device_class = self._device.identity.device_class
        counter, now = deployment.slots.state.counter, self._around.clock()
        try:
            require_adoptable(release, device_class=device_class, counter=counter, now=now)
        except UntrustedError as error:
            label = "expired" if release.device_class == device_class and release.counter >= counter else "older"
            label = "other_class" if release.device_class != device_class else label
            await deployment.refuse(release, f"it {error.problem}", label, for_good=False)
            return False
        return True

    def _complain(self, name: str, label: str, problem: str) -> None:
        if (name, problem) not in self._refused and len(self._refused) < 1000:
            self._refused.add((name, problem))
            logger.warning("a release of %s is not taken: %s", name, problem)
        self._around.device.rejections.labels(name, label).inc()


def _require_whole(release: Release, manifest: Manifest) -> None:
    """Refuses a bundle that is not what its release says.

    Raises:
        CorruptBundleError: it is of another detector, or holds no graph.
    """
    if manifest.detector != release.detector:
        raise CorruptBundleError(f"is of {manifest.detector!r}, not {release.detector!r}.", field=MANIFEST)
    if GRAPH not in manifest.files:
        raise CorruptBundleError(f"lists no {GRAPH}.", field=MANIFEST)


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Runs to the end even where it is cancelled meanwhile: never half a change."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait({task})
