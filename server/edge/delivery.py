"""Files that a hub hands out by hash: fetched in pieces, resumed where they broke, verified before anybody reads them.

A file on its way is `downloads/SHA.partial`; it becomes `downloads/SHA` once all its bytes are there and are what the
hash says. Whoever wants it moves it from there. How long it may be is known before the first byte is written.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing, suppress
from pathlib import Path

from detectors.bundle import fsync_folder, make_folder
from detectors.errors import PrunewatchError
from detectors.failpoints import failpoint
from server.background import in_background
from server.edge.patience import Patience

DURABLE_BYTES = 1 << 20
"""After so many a file is made durable, so that a power loss costs no more."""
STALL_SECONDS = 60.0
"""Without a byte for so long a download is begun again from where it is."""
WRONG = 3
"""So many times in a row what came was not what was asked for: it is not asked for again soon."""
READ_BYTES = 1 << 16
FULL = {errno.ENOSPC, errno.EDQUOT}
"""Of a disk without room."""
Download = Callable[[str, int], AsyncGenerator[tuple[bytes, int], None]]
"""Yields bytes of a file from an offset on, each time with the length of the whole, or raises LinkBrokenError."""
logger = logging.getLogger("prunewatch.edge.delivery")


class LinkBrokenError(Exception):
    """The hub can not be reached now."""


class DeliveryError(PrunewatchError):
    """A file can not be had.

    Args:
        problem: Why, in words.
        reason: `download` or `full`.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


class _WrongBytesError(Exception):
    """What came is not the file."""


class Delivery:
    """Fetches files.

    Args:
        folder: Where they lie.
        download: Asks the hub.
        reachable: Waits until it can be asked.
        patience: Makes what says how long to wait between two tries.
        sleep: Waits for seconds.
        stall_seconds: See `STALL_SECONDS`.
    """

    def __init__(
        self,
        folder: Path,
        download: Download,
        reachable: Callable[[], Awaitable[object]],
        *,
        patience: Callable[[], Patience],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._folder = folder
        self._download = download
        self._reachable = reachable
        self._patience = patience
        self._sleep = sleep
        self._stall_seconds = stall_seconds

    async def fetch(self, sha256: str, *, limit: int, exact: int | None = None) -> Path:
        """The path of a file that is whole; waits as long as the hub is away. Cancelled, it goes on the next time.

        Args:
            sha256: Its hash.
            limit: Bytes that it may have.
            exact: Bytes that it has, where that is known.

        Raises:
            DeliveryError: what comes is another one, or the disk is full.
        """
        path = self._folder / sha256
        await in_background(make_folder, self._folder)
        if await in_background(_matches, path, sha256):
            return path
        wrong, patience = 0, self._patience()
        while True:
            await self._reachable()
            before = _size(_partial(path))
            try:
                await self._once(path, sha256, limit if exact is None else exact, exact)
            except LinkBrokenError as error:
                logger.info("the download of %s broke: %s", sha256[:12], error)
                if _size(_partial(path)) > before:
                    patience.reset()
            except _WrongBytesError as error:
                _partial(path).unlink(missing_ok=True)
                wrong += 1
                logger.warning("%s %s", sha256[:12], error)
                if wrong == WRONG:
                    raise DeliveryError(f"{sha256[:12]} {error}", "download") from error
            except OSError as error:
                _partial(path).unlink(missing_ok=True)  # what scores needs the room
                if error.errno not in FULL:
                    raise DeliveryError(f"{sha256[:12]} can not be written: {error.strerror}", "download") from error
                raise DeliveryError(f"the disk is full; {sha256[:12]} waits for room.", "full") from error
            else:
                return path
            await self._sleep(patience.next())

    async def _once(self, path: Path, sha256: str, limit: int, exact: int | None) -> None:
        partial = _partial(path)
        if _size(partial) > limit:
            partial.unlink()
        # Opened anew with each piece: what is fetched for days holds no descriptor, and a full disk shows at once.
        unsafe = 0
        async with aclosing(self._download(sha256, offset := _size(partial))) as pieces:
            while True:
                try:
                    async with asyncio.timeout(self._stall_seconds):
                        content, whole = await anext(pieces)
                except StopAsyncIteration:
                    break
                except TimeoutError as error:
                    raise LinkBrokenError("nothing came any more") from error
                if whole > limit or (exact is not None and whole != exact) or offset + len(content) > whole:
                    raise _WrongBytesError("is not as long as it should be.")
                unsafe += len(content)
                offset += len(content)
                await in_background(_append, partial, content, durable=unsafe >= DURABLE_BYTES)
                unsafe = 0 if unsafe >= DURABLE_BYTES else unsafe
                if offset == whole:
                    break
        if not await in_background(_complete, partial, path, sha256, whole := offset):
            if exact is not None and whole < exact:
                raise LinkBrokenError("it ended early")
            raise _WrongBytesError("has other bytes than its hash says.")

    def sweep(self, wanted: Collection[str] = ()) -> None:
        """Removes what nobody waits for; `wanted` are hashes."""
        for path in self._folder.glob("*"):
            if path.name.partition(".")[0] not in wanted:
                with suppress(OSError):
                    path.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _append(path: Path, content: bytes, *, durable: bool) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        failpoint("download.begun")
        if durable:
            os.fsync(file.fileno())
            failpoint("download.durable")


def _matches(path: Path, sha256: str) -> bool:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while content := file.read(READ_BYTES):
                found.update(content)
    except FileNotFoundError:
        return False
    return found.hexdigest() == sha256


def _complete(partial: Path, path: Path, sha256: str, size: int) -> bool:
    """Gives a file its name, once it is what its hash says."""
    if _size(partial) != size or not _matches(partial, sha256):
        return False
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    failpoint("download.complete")
    partial.replace(path)
    fsync_folder(path.parent)
    return True
