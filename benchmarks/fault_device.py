"""A device under faults: a process of `prunewatch edge --hub` on a disk of its own, behind a link of its own."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Self

import harness
from fault_bundles import DETECTOR
from fault_hub import CLASS
from faulty_link import FaultyLink, free_address

from server.edge.device import Device
from server.edge.slots import Slots

DISK = "12m"
CHECKPOINT_SECONDS = 10
"""So often a device writes the state of its series here; 5 minutes where nobody says otherwise."""
BLOCKS = (1 << 16, 1 << 12, 1 << 8, 1)
END_SECONDS = 30.0
INFO = re.compile(r"^prunewatch_detector_info\{(.*)\} 1", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


class SmallDisk:
    """A disk that can be full: a small tmpfs where that can be mounted, else a bound on what the process may write.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
        can = os.geteuid() == 0 and shutil.which("mount") is not None
        self.is_mounted = can and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, pid: int) -> None:
        """Leaves no byte to a process."""
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in BLOCKS:
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self, pid: int) -> None:
        """Makes room again."""
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Gives it back."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


class DeviceProcess:
    """The device.

    Args:
        name: What it is called.
        folder: For its disk and its log.
        hub: `HOST:PORT`.

    Attributes:
        link: Between it and the hub.
        disk: That its store lies on.
        address: Where it takes points.
        lives: How often it was started.
        deaths: Ends of the process that nobody brought about.
    """

    def __init__(self, name: str, folder: Path, hub: str) -> None:
        self.name = name
        self.link = FaultyLink(hub)
        self.disk = SmallDisk(folder / f"disk-{name}")
        self.store = self.disk.folder / "store"
        self.address, self._admin = free_address(), free_address()
        self.log = folder / f"{name}.log"
        self._token = folder / f"{name}.token"
        self._process: subprocess.Popen[bytes] | None = None
        self.lives = 0
        self.deaths = 0

    async def __aenter__(self) -> Self:
        await self.link.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self.link.__aexit__()
        self.disk.close()

    def start(self) -> None:
        """Starts it as a user does."""
        command = [*harness.CLI, "edge", "--hub", self.link.address, "--store", str(self.store)]
        command += ["--device-class", CLASS, "--device", self.name, "--token-file", str(self._token)]
        command += ["--listen", self.address, "--admin", self._admin]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "PRUNEWATCH__SERIES_CHECKPOINT_SECONDS": str(CHECKPOINT_SECONDS),
        }
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(command, cwd=harness.ROOT, stdout=file, stderr=file, env=environment)
        self.lives += 1

    def give(self, token: str) -> None:
        """The token with which it enrols, before the first start."""
        self._token.write_text(token)

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def revive(self) -> None:
        """Starts it again where it has ended by itself, which it must not."""
        if self._process is not None and self._process.poll() is not None:
            self.deaths += 1
            self.start()

    async def end(self) -> int:
        """SIGTERM; returns how it ended."""
        assert self._process is not None
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, END_SECONDS)

    async def serving(self) -> tuple[int, str] | None:
        """Version and first 12 digits of the bundle that its metrics name; None: it does not answer, or has none."""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(*self._admin.split(":"))
                try:
                    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                    text = (await reader.read()).decode()
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return None
        for found in INFO.finditer(text):
            labels = dict(LABEL.findall(found[1]))
            if labels["detector"] == DETECTOR:
                return int(labels["version"]), labels["bundle"]
        return None

    def stored(self) -> str:
        """The hash of the bundle in the slot that serves, after it has ended.

        Raises:
            PrunewatchError: it is not whole, or nobody who is trusted has signed its release.
        """
        slots = Slots(self.store / "detectors" / DETECTOR)
        slots.recover()
        assert slots.serving is not None
        release, bundle = slots.read(slots.serving)
        assert release.bundle == bundle.hash
        from detectors.archive import RELEASE
        from server.releases import Signed

        device = Device.open(self.store)
        try:
            device.trust.release(Signed.from_json((slots.folder / slots.serving / RELEASE).read_bytes()))
        finally:
            device.close()
        return bundle.hash
