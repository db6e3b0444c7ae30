"""Backup and restore: a whole store out of a running server, and the same scores from it elsewhere."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import NOW, QUICK_TRAINER, hub_settings, publish
from graphs import ewma_bundle
from typer.testing import CliRunner

from detectors.bundle import write_bundle
from detectors.errors import (
    AlreadyExistsError,
    CorruptBundleError,
    NotFoundError,
    PreconditionError,
    PrunewatchError,
)
from prunewatch.client import Client
from server.app import Hub
from server.backup import CONTENTS, back_up
from server.cli import app
from server.config import DetectorConfig
from server.doctor import examine
from server.findings import is_sound
from server.publish import publish_fit
from server.restoring import restore
from server.store import Store

VALUES = np.random.default_rng(3).normal(size=(200, 2)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a fitted detector and thirty points."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", DetectorConfig().model_dump(mode="json"))
        bundle = ewma_bundle("pump")
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        sizes = {"p50_seconds": None, "p99_seconds": None, "error": 0.5}
        publish_fit(store, "pump", {"parent": {"hash": bundle.hash, "version": 1, **sizes}})
        store.history("pump").add_points(np.arange(30), np.zeros((30, 2), np.float32))
    return root


def files(root: Path) -> dict[str, bytes]:
    """Everything in a store that a backup has, but the catalog."""
    parts = ("bundles", "history", "golden", "detectors")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in parts
        for path in (root / part).rglob("*")
        if path.is_file()
    }


def test_a_restored_store_is_the_store(root: Path, tmp_path: Path) -> None:
    """Every file and every row; nothing is left beside the backup."""
    path = root / "golden" / "pump" / f"{next((root / 'bundles').iterdir()).name}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors.numpy.save({"points0": VALUES}))
    back_up(root, tmp_path / "backup.tar")

    named = restore(tmp_path / "backup.tar", tmp_path / "again")

    assert set(named.features) == {"pump"}
    assert files(tmp_path / "again") == files(root)
    with Store.open(root) as old, Store.open(tmp_path / "again") as new:
        assert new.catalog.facts("pump") == old.catalog.facts("pump")
        assert new.history("pump").rows == 30
    assert is_sound(examine(tmp_path / "again"))
    assert {path.name for path in tmp_path.iterdir()} == {"store", "again", "backup.tar"}


@pytest.mark.slow
async def test_a_running_server_is_backed_up_and_goes_on_elsewhere(hub: Hub, client: Client, tmp_path: Path) -> None:
    """While points are scored and cycles publish: each backup is whole and gives the scores of its version."""
    bundle = ewma_bundle("pump")
    await publish(hub, bundle, versions={"keep": 1})
    done = asyncio.Event()
    expected: dict[int, bytes] = {}

    async def scores(of: Client) -> tuple[int, bytes]:
        stamps = NOW + np.arange(len(VALUES))
        reply = await of.score("pump", series=["a"], stamps=stamps, values=VALUES, ephemeral=True)
        return reply.version, reply.scores.tobytes()

    async def live(start: int) -> None:
        await client.score("pump", series=["live"], stamps=NOW + np.arange(start, start + 50), values=VALUES[:50])

    async def stream() -> None:
        sent = 50
        while not done.is_set():
            await live(sent)
            await hub.host.flush()
            version, found = await scores(client)
            assert expected.setdefault(version, found) == found
            sent += 50
            await asyncio.sleep(0)

    async def cycle() -> None:
        for _ in range(4):
            await client.wait_operation(await client.prune("pump", speedup=2))

    await live(0)
    await hub.host.flush()
    streaming = asyncio.create_task(stream())
    cycling = asyncio.create_task(cycle())
    backups = 0
    while not cycling.done() or backups < 3:
        await asyncio.to_thread(back_up, hub.store.root, tmp_path / f"{backups}.tar")
        backups += 1
    await cycling
    await scores(client)
    done.set()
    await streaming

    for place in {0, backups // 2, backups - 1}:
        root = tmp_path / f"restored-{place}" / "store"
        restore(tmp_path / f"{place}.tar", root)
        assert is_sound(examine(root))
        other = Hub(hub_settings(root.parent), trainer=QUICK_TRAINER)
        await other.start()
        async with Client(f"127.0.0.1:{other.listener.port}") as elsewhere:
            version, found = await scores(elsewhere)
            assert other.store.catalog.serving("pump", "hub").version == version
            assert expected[version] == found
        await other.stop()


def packed(path: Path, *members: tarfile.TarInfo, contents: dict | None = None) -> Path:
    """A tar of members with three bytes each, and the list of them."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            member.size = 3 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"abc"))
        told = json.dumps(contents or {"schema_version": 1, "created_seconds": 0, "files": {}}).encode()
        last = tarfile.TarInfo(CONTENTS)
        last.size = len(told)
        archive.addfile(last, io.BytesIO(told))
    return path


def link(kind: bytes) -> tarfile.TarInfo:
    """A member that points out of the folder."""
    member = tarfile.TarInfo("bundles")
    member.type, member.linkname = kind, "/etc"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("/tmp/outside"),
        tarfile.TarInfo("bundles/../../outside"),
        tarfile.TarInfo(".hidden"),
        tarfile.TarInfo("bundles//x"),
        tarfile.TarInfo("./catalog.db"),
        tarfile.TarInfo("lock"),
        tarfile.TarInfo("a" * 201),
        tarfile.TarInfo("a\nb"),
        link(tarfile.SYMTYPE),
        link(tarfile.LNKTYPE),
        link(tarfile.DIRTYPE),
        link(tarfile.FIFOTYPE),
        link(tarfile.CHRTYPE),
        link(tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda member: f"{member.name[:20]!r}-{member.type.decode()}",
)
def test_an_archive_decides_nothing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    """Paths out of the folder, links, devices and hidden names are refused, and nothing is written anywhere."""
    archive = packed(tmp_path / "evil.tar", member)

    with pytest.raises(PreconditionError, match="is no whole backup"):
        restore(archive, tmp_path / "inside" / "store")

    assert not (tmp_path / "inside" / "store").exists()
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "inside" / "outside").exists()


def test_members_come_once_and_before_their_list(tmp_path: Path) -> None:
    """Two files of one name, or one after the list, are no backup."""
    with pytest.raises(PreconditionError, match="out of turn"):
        restore(packed(tmp_path / "a.tar", tarfile.TarInfo("x"), tarfile.TarInfo("x")), tmp_path / "store")
    with tarfile.open(packed(tmp_path / "b.tar"), "a") as archive:
        archive.addfile(tarfile.TarInfo("late"))
    with pytest.raises(PreconditionError, match="out of turn"):
        restore(tmp_path / "b.tar", tmp_path / "store")


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Copies a tar; `change` gives the new content of a member, None to leave it out."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = change(member.name, old.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["catalog.db", "step.onnx", ".parquet", "pump.json", CONTENTS])
def test_a_backup_that_lacks_something_or_was_changed_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    """Any member that is missing or has another byte; nothing is left behind."""
    back_up(root, tmp_path / "good.tar")

    def flipped(member: str, content: bytes) -> bytes:
        return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:] if member.endswith(name) else content

    rewritten(tmp_path / "good.tar", tmp_path / "lacking.tar", lambda it, old: None if it.endswith(name) else old)
    rewritten(tmp_path / "good.tar", tmp_path / "flipped.tar", flipped)

    for archive in ("lacking.tar", "flipped.tar"):
        with pytest.raises(PreconditionError, match="is no whole backup"):
            restore(tmp_path / archive, tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_a_backup_that_ends_early_is_refused(root: Path, tmp_path: Path) -> None:
    """Wherever it ends: a full disk or a broken line leaves such."""
    back_up(root, tmp_path / "good.tar")
    whole = (tmp_path / "good.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    torn = tmp_path / "torn.tar"

    for length in (*range(0, end, max(1, end // 60)), end - 1):
        torn.write_bytes(whole[:length])
        with pytest.raises(PreconditionError, match="is no whole backup"):
            restore(torn, tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_bundles_swapped_inside_a_backup_are_refused(root: Path, tmp_path: Path) -> None:
    """Also by somebody who has made the list fit: the hash of a bundle covers its bytes."""
    with Store.open(root) as store:
        bundle = ewma_bundle("pump", 2, gain=7.0)
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        sizes = {"p50_seconds": None, "p99_seconds": None, "error": 0.5}
        publish_fit(store, "pump", {"parent": {"hash": bundle.hash, "version": 2, **sizes}})
        one, two = (store.bundle_folder(row.parent_hash) for row in store.catalog.versions("pump"))
    back_up(root, tmp_path / "good.tar")
    shutil.copy(two / "step.onnx", one / "step.onnx")
    with pytest.raises(CorruptBundleError):
        back_up(root, tmp_path / "bad.tar")
    assert not (tmp_path / "bad.tar").exists()

    with tarfile.open(tmp_path / "good.tar") as archive:
        listed = json.loads(archive.extractfile(CONTENTS).read())
    names = [f"bundles/{folder.name}/step.onnx" for folder in (one, two)]
    listed["files"][names[0]] = listed["files"][names[1]]
    swapped = (two / "step.onnx").read_bytes()
    rewritten(
        tmp_path / "good.tar",
        tmp_path / "swapped.tar",
        lambda it, old: json.dumps(listed).encode() if it == CONTENTS else swapped if it == names[0] else old,
    )
    with pytest.raises(CorruptBundleError):
        restore(tmp_path / "swapped.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    """Neither a file by a backup nor a folder by a restore; what is there stays as it is."""
    backup = tmp_path / "backup.tar"
    back_up(root, backup)
    before = backup.read_bytes()

    with pytest.raises(AlreadyExistsError, match="is there already"):
        back_up(root, backup)
    with pytest.raises(PreconditionError, match="not an empty folder"):
        restore(backup, root)
    with pytest.raises(PreconditionError, match="not an empty folder"):
        restore(backup, backup)
    assert backup.read_bytes() == before
    empty = tmp_path / "empty"
    empty.mkdir()
    restore(backup, empty)
    assert is_sound(examine(empty))


def test_an_empty_folder_is_empty_again_after_a_failure(root: Path, tmp_path: Path) -> None:
    """A mount point stays, without half a store in it."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "torn.tar").write_bytes(b"no tar")

    with pytest.raises(PreconditionError):
        restore(tmp_path / "torn.tar", empty)

    assert list(empty.iterdir()) == []


def test_what_is_being_restored_is_no_store(root: Path, tmp_path: Path) -> None:
    """A process that is killed in the middle leaves a folder that no server opens as a store."""
    shutil.copytree(root, tmp_path / "half")
    (tmp_path / "half" / "catalog.db").unlink()
    (tmp_path / "half" / ".restoring").mkdir()

    with pytest.raises(PrunewatchError):
        Store.open(tmp_path / "half")
    assert not (tmp_path / "half" / "catalog.db").exists()


def test_where_there_is_nothing_to_copy(tmp_path: Path) -> None:
    """A wrong folder or file is named."""
    with pytest.raises(NotFoundError, match="no store here"):
        back_up(tmp_path, tmp_path / "backup.tar")
    with pytest.raises(NotFoundError, match="no such file"):
        restore(tmp_path / "backup.tar", tmp_path / "again")


def test_the_commands(root: Path, tmp_path: Path) -> None:
    """Out of one folder, into another, each with a line that says how much."""
    run = CliRunner().invoke
    archive, again = str(tmp_path / "backup.tar"), str(tmp_path / "again")

    made = run(app, ["backup", "--store", str(root), "--to", archive])
    put = run(app, ["restore", archive, "--store", again])

    assert (made.exit_code, put.exit_code) == (0, 0)
    assert "files" in made.stdout
    assert "1 detectors, 1 bundles" in put.stdout
    assert run(app, ["doctor", "--store", again]).exit_code == 0
