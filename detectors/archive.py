"""A bundle as one file for a device: a plain tar of its manifest and graph, without what only training needs."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from detectors.bundle import GRAPH, MANIFEST, MAX_FILE_BYTES, Bundle, read_bundle
from detectors.errors import CorruptBundleError, NotFoundError
from detectors.graph_check import check_graph
from detectors.trial import try_bundles

RELEASE = "release.json"
"""A signed release of the bundle (`server.releases.Signed`), where the hub has keys: for devices that verify it."""
KEY_SET = "keys.json"
"""The set of keys that signed it, itself signed."""
_MEMBERS = (MANIFEST, GRAPH)
MAX_RELEASE_BYTES = 1 << 20


def pack_bundle(folder: Path, bundle_hash: str, out: Path, statements: Mapping[str, bytes] | None = None) -> Bundle:
    """Writes a verified bundle into the tar file `out`; the same bundle always gives the same bytes.

    Args:
        folder: Where it lies.
        bundle_hash: Its name.
        out: The file.
        statements: What is signed, by name (`RELEASE`, `KEY_SET`); after the bundle.

    Raises:
        CorruptBundleError: the bundle is not what its hash says; nothing is written.
    """
    bundle = read_bundle(folder, bundle_hash)
    partial = out.with_name(f".{out.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        contents = {name: (folder / name).read_bytes() for name in _MEMBERS}
        for name, content in {**contents, **(statements or {})}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    partial.replace(out)
    return bundle


def unpack_bundle(archive_file: Path, folder: Path) -> None:
    """Writes the files of a packed bundle into `folder`; verify them with `detectors.bundle.read_bundle`.

    Only the names expected are taken, as regular files: nothing in an archive decides where bytes go. `release.json`
    may be missing.

    Raises:
        NotFoundError: there is no such file.
        CorruptBundleError: it is no packed bundle.
    """
    try:
        with tarfile.open(archive_file, "r:") as archive:
            for name in (*_MEMBERS, *({RELEASE} & set(archive.getnames()))):
                entry = archive.getmember(name)
                limit = MAX_RELEASE_BYTES if name == RELEASE else MAX_FILE_BYTES
                content = archive.extractfile(entry) if entry.isreg() and entry.size <= limit else None
                if content is None:
                    raise CorruptBundleError(f"its member {name} is no file of a bundle.", field=str(archive_file))
                (folder / name).write_bytes(content.read())
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file.", field=str(archive_file)) from error
    except (tarfile.TarError, KeyError, OSError) as error:
        raise CorruptBundleError(
            "is not a packed bundle.", field=str(archive_file), hint="Make one with `prunewatch export`."
        ) from error


def load_bundle(path: Path) -> Bundle:
    """Reads and verifies a bundle from the file that `prunewatch export` wrote, or from its folder.

    Who made it is not known, so its graph is stepped in a child process first.

    Raises:
        NotFoundError: there is no such file.
        CorruptBundleError: it is not a whole bundle, or its graph is none that may be loaded.
    """
    if path.is_dir() or path.name == MANIFEST:
        return _tried(path if path.is_dir() else path.parent)
    with tempfile.TemporaryDirectory() as folder:
        unpack_bundle(path, Path(folder))
        return _tried(Path(folder))


def _tried(folder: Path) -> Bundle:
    bundle = read_bundle(folder)
    check_graph(bundle.graph, bundle.manifest.network.parameters)
    try_bundles([folder])
    return bundle
