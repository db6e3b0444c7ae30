"""What devices may fetch, by hash: the two files of bundles that are released to their class, and graphs to measure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from detectors.bundle import GRAPH, MANIFEST, read_bundle
from detectors.errors import CorruptBundleError, InvalidInputError, NotFoundError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """A file: its bytes, or where they lie."""

    content: bytes | Path

    @property
    def size(self) -> int:
        """In bytes; FileNotFoundError when it is gone."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes; fewer at the end."""
        if isinstance(self.content, bytes):
            return self.content[offset : offset + length]
        with self.content.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class Files:
    """Finds files by hash; a name of a file never comes from a device.

    Args:
        folder_of: Where a bundle lies.
    """

    def __init__(self, folder_of: Callable[[str], Path]) -> None:
        self._folder_of = folder_of
        self._offered: dict[str, Source] = {}
        self._of_class: dict[str, dict[str, Source]] = {}
        self._graphs: dict[str, str] = {}
        """Hash of the step graph by bundle."""

    def add(self, sha256: str, content: bytes | Path) -> None:
        """Offers a file to the devices of every class, until `remove`."""
        self._offered[sha256] = Source(content)

    def remove(self, sha256: str) -> None:
        """Offers it no more."""
        self._offered.pop(sha256, None)

    def release(self, device_class: str, bundles: Iterable[str]) -> None:
        """Offers bundles, and no others, to the devices of a class."""
        offered: dict[str, Source] = {}
        for bundle_hash in bundles:
            folder = self._folder_of(bundle_hash)
            try:
                graph = self._graphs.get(bundle_hash) or read_bundle(folder, bundle_hash).manifest.files[GRAPH].sha256
            except CorruptBundleError:
                continue  # `prunewatch doctor` tells; devices go on with what they have
            self._graphs[bundle_hash] = graph
            offered[bundle_hash] = Source(folder / MANIFEST)
            offered[graph] = Source(folder / GRAPH)
        self._of_class[device_class] = offered

    def find(self, device_class: str, sha256: str) -> Source:
        """A file for a device of a class.

        Raises:
            InvalidInputError: this is no hash.
            NotFoundError: there is no such file for this class.
        """
        if not _SHA256.fullmatch(sha256):
            raise InvalidInputError("is no SHA-256 in hex.", field="sha256", hint="Ask for what a release names.")
        found = self._offered.get(sha256) or self._of_class.get(device_class, {}).get(sha256)
        if found is None:
            raise NotFoundError(
                f"no release or probe for this class names {sha256[:12]}.",
                field="sha256",
                hint="Ask for what one names.",
            )
        return found
