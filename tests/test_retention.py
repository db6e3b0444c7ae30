"""What a store lets go, and what it never does: versions, pages of the book, files that nothing names."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_TRAINER, eventually
from graphs import ewma_bundle

from detectors.bundle import write_bundle
from detectors.errors import CorruptBundleError
from server.app import Hub
from server.config import DetectorConfig
from server.publish import publish_cycle, publish_fit
from server.retention import PAGES_KEPT
from server.store import Store

KEEP = 3
OLD = 2 * 3600.0


@pytest.fixture
def store(tmp_path: Path):
    """A store with the detector `pump`, which keeps three versions that it does not need."""
    with Store.open(tmp_path / "store") as store:
        config = DetectorConfig(device_classes=["hub", "pi4"], versions={"keep": KEEP})
        store.catalog.create_detector("pump", config.model_dump(mode="json"))
        yield store


def made(store: Store, version: int, device_class: str = "parent") -> dict:
    """Writes a bundle and says what the trainer would say of it."""
    bundle = ewma_bundle("pump", version, device_class=device_class, gain=1.0 + version)
    write_bundle(bundle, store.bundle_folder(bundle.hash))
    sizes = {"units": {}, "parameters": 3, "bytes": bundle.size}
    return {"hash": bundle.hash, "version": version, **sizes, "p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.5}


def fitted(store: Store, version: int = 1) -> dict:
    """Publishes a fit; returns its parent."""
    parent = made(store, version)
    publish_fit(store, "pump", {"outcome": "adopted", "parent": parent, "rows": 100})
    return parent


def pruned(store: Store, parent: dict, version: int, device_class: str = "hub") -> str:
    """Publishes a cycle; returns the hash of its child."""
    child = made(store, version, device_class)
    publish_cycle(store, "pump", device_class, {"outcome": "adopted", "reason": "", "parent": parent, "child": child})
    return child["hash"]


def versions(store: Store) -> list[int]:
    """The numbers there are."""
    return [row.version for row in store.catalog.versions("pump")]


def on_disk(store: Store) -> set[str]:
    """Hashes of the bundles there are."""
    return {path.name for path in (store.root / "bundles").iterdir()}


def age(path: Path, seconds: float = OLD) -> None:
    """Makes a file or folder look as old as that."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_old_versions_go_after_a_publication_with_their_files(store: Store) -> None:
    """What serves (8, elsewhere 1), what served before (7), and the newest three of the others are left."""
    parent = fitted(store)
    children = {version: pruned(store, parent, version) for version in range(2, 9)}

    assert versions(store) == [1, 4, 5, 6, 7, 8]
    assert on_disk(store) == {parent["hash"], *(children[version] for version in (4, 5, 6, 7, 8))}
    assert store.catalog.next_version("pump") == 9


def test_a_pinned_version_stays_however_many_come(store: Store) -> None:
    """Also the one that a pinned class would go back to."""
    parent = fitted(store)
    for version in (2, 3):
        pruned(store, parent, version, "pi4")
    store.catalog.pin("pump", "pi4")
    for version in range(4, 12):
        pruned(store, parent, version)

    assert [version for version in versions(store) if version < 7] == [1, 2, 3]
    assert store.read_bundle(store.catalog.serving("pump", "pi4").bundle_hash)


def test_a_parent_in_use_stays(store: Store) -> None:
    """Its version, too: a wider child can be derived from it again, and it can serve again."""
    parent = fitted(store)
    for version in range(2, 12):
        pruned(store, parent, version, "pi4" if version % 2 else "hub")

    assert 1 in versions(store)
    store.catalog.rollback("pump", "hub", 1)
    assert store.read_bundle(store.catalog.serving("pump", "hub").bundle_hash).hash == parent["hash"]


def test_parents_of_gone_versions_go(store: Store) -> None:
    """After another fit has taken over everywhere, what the first one made is let go."""
    first = fitted(store)
    pruned(store, first, 2)
    second = fitted(store, 3)
    for version in range(4, 12):
        pruned(store, second, version, "pi4" if version % 2 else "hub")

    assert versions(store)[0] == 3
    assert first["hash"] not in on_disk(store)


def test_what_a_probation_would_come_back_to_stays(store: Store) -> None:
    """Even where the pointers have moved on meanwhile."""
    parent = fitted(store)
    pruned(store, parent, 2)
    pruned(store, parent, 3)
    insert = (
        "INSERT INTO adoptions (detector, device_class, version, previous_version, began, state, reason)"
        " VALUES ('pump', 'hub', 3, 2, 0, ?, '')"
    )
    with sqlite3.connect(store.root / "catalog.db") as book:
        book.execute(insert, ["probation"])
    for version in range(4, 12):
        pruned(store, parent, version)
    assert {2, 3} <= set(versions(store))

    with sqlite3.connect(store.root / "catalog.db") as book:
        book.execute("UPDATE adoptions SET state = 'kept', ended = 1")
    store.tidy()
    assert not {2, 3} & set(versions(store))


def test_files_that_were_left_by_a_crash_between_catalog_and_disk_go(store: Store) -> None:
    """The catalog lets a version go first; what is on disk then is an orphan, which goes after an hour."""
    parent = fitted(store)
    gone = pruned(store, parent, 2)
    for version in range(3, 9):
        pruned(store, parent, version)
    bundle = ewma_bundle("pump", 2, device_class="hub", gain=3.0)
    write_bundle(bundle, store.bundle_folder(gone))

    store.collect()
    assert gone in on_disk(store)
    age(store.bundle_folder(gone))
    store.collect()
    assert gone not in on_disk(store)


def test_a_bundle_that_is_being_made_never_goes(store: Store) -> None:
    """Young ones stay, those of a detector that is being trained stay, and one that is made again is young again."""
    fitted(store)
    bundle = ewma_bundle("pump", 2, device_class="hub", gain=9.0)
    folder = store.bundle_folder(bundle.hash)
    write_bundle(bundle, folder)
    store.tidy()
    assert folder.is_dir()

    age(folder)
    store.tidy(spared=["pump"])
    assert folder.is_dir()

    write_bundle(bundle, folder)
    store.tidy()
    assert folder.is_dir()

    age(folder)
    store.tidy()
    assert not folder.exists()


def test_golden_sets_go_with_their_parents(store: Store) -> None:
    """Not before, and not while a trainer is at work on the detector: an heir is as old as what it inherits."""
    parent = fitted(store)
    kept, heir = (store.root / "golden" / "pump" / f"{key}.safetensors" for key in (parent["hash"], "0" * 64))
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"points")
    age(kept)
    os.link(kept, heir)

    store.tidy(spared=["pump"])
    assert heir.exists()
    store.tidy()
    assert not heir.exists()
    assert kept.exists()


def test_a_publication_whose_files_are_gone_changes_nothing(store: Store) -> None:
    """It reads them back under the lock that the collector takes."""
    parent = fitted(store)
    child = made(store, 2, "hub")
    age(store.bundle_folder(child["hash"]))
    store.tidy()

    with pytest.raises(CorruptBundleError):
        publish_cycle(store, "pump", "hub", {"outcome": "adopted", "reason": "", "parent": parent, "child": child})
    assert versions(store) == [1]


def test_opening_collects_what_gone_detectors_left(store: Store) -> None:
    """Histories, frontiers, golden sets and files of a detector that the catalog does not name; others stay."""
    parent = fitted(store)
    store.history("pump").add_points(np.arange(3), np.zeros((3, 2), np.float32))
    left = [
        store.root / part for part in ("history/gone", "golden/gone", f"frontiers/{'0' * 64}", f"bundles/{'1' * 64}")
    ]
    for folder in left:
        folder.mkdir(parents=True)
    file = store.root / "detectors" / "gone.json"
    file.write_text("{}")
    for path in (*left, file, store.root / "history/pump", store.root / "detectors/pump.json"):
        age(path)
    store.close()

    with Store.open(store.root) as again:
        assert not [path for path in (*left, file) if path.exists()]
        assert on_disk(again) == {parent["hash"]}
        assert again.history("pump").rows == 3
        assert (again.root / "detectors/pump.json").is_file()


def test_the_book_is_bounded(store: Store) -> None:
    """The newest thousand cycles of each detector, and operations of the last thirty days; what runs stays."""
    catalog = store.catalog
    catalog.create_detector("valve", {})
    running = catalog.begin_cycle("pump", "hub", "manual")
    ended = catalog.begin_cycle("valve", "hub", "manual")
    catalog.end_cycle(ended, "rejected")
    with sqlite3.connect(store.root / "catalog.db") as book:
        book.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= ?)"
            " INSERT INTO cycles (detector, device_class, trigger, started, ended, outcome, reason, result)"
            " SELECT 'pump', 'hub', 'manual', i, i, 'rejected', '', '{}' FROM n",
            [PAGES_KEPT],
        )
    old, young, waiting = (catalog.create_operation("prune", "pump").name for _ in range(3))
    for name in (old, young):
        catalog.fail_operation(name, CorruptBundleError("torn."))
    with sqlite3.connect(store.root / "catalog.db") as book:
        book.execute("UPDATE operations SET ended = ended - 31 * 86400 WHERE name = ?", [old])

    store.tidy()

    cycles = catalog.cycles("pump", limit=2 * PAGES_KEPT)
    assert len(cycles) == PAGES_KEPT + 1
    assert cycles[-1].id == running
    assert [row.id for row in catalog.cycles("valve")] == [ended]
    assert {row.name for row in catalog.list_operations()} == {young, waiting}


async def test_a_hub_tidies_by_itself(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hour, without being asked."""
    monkeypatch.setattr("server.app.TIDY_SECONDS", 0.02)
    await hub.stop()
    again = Hub(hub.settings, trainer=QUICK_TRAINER)
    await again.start()
    orphan = again.store.bundle_folder("0" * 64)
    orphan.mkdir()
    age(orphan)

    async def is_gone() -> bool:
        return not orphan.exists()

    await eventually(is_gone)
    await again.stop()
