"""`prunewatch doctor`: finds every kind of damage, says what to do, and makes a catalog anew; it deletes nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import ewma_bundle
from typer.testing import CliRunner

from detectors.bundle import make_bundle, write_bundle
from detectors.errors import NewerStoreError, NotFoundError, PreconditionError, StoreInUseError
from server.cli import app
from server.config import DetectorConfig
from server.detector_files import path_of
from server.doctor import examine
from server.findings import is_sound
from server.publish import publish_cycle, publish_fit
from server.rebuilding import rebuild
from server.store import Store

CONFIG = DetectorConfig(network="gru", false_alarm_rate=0.01, device_classes=["hub", "pi4"])


def made(store: Store, version: int, device_class: str = "parent", parent: str | None = None) -> dict:
    """Writes a bundle and says what the trainer would say of it."""
    bundle = ewma_bundle("pump", version, device_class=device_class, gain=1.0 + version)
    if parent is not None:
        lineage = bundle.manifest.lineage.model_copy(update={"cause": "prune", "parent": parent})
        manifest = bundle.manifest.model_copy(update={"lineage": lineage})
        fields = {key: getattr(manifest, key) for key in type(manifest).model_fields if key != "files"}
        bundle = make_bundle(bundle.files, **fields)
    write_bundle(bundle, store.bundle_folder(bundle.hash))
    sizes = {"units": {}, "parameters": 3, "bytes": bundle.size}
    return {"hash": bundle.hash, "version": version, **sizes, "p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`pump` was fitted (1) and pruned twice (2, 3); version 2 serves on the hub again, pinned. `new` learns."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", CONFIG.model_dump(mode="json"))
        store.catalog.create_detector("new", DetectorConfig().model_dump(mode="json"))
        parent = made(store, 1)
        publish_fit(store, "pump", {"outcome": "adopted", "parent": parent, "rows": 100})
        for version in (2, 3):
            child = made(store, version, "hub", parent["hash"])
            publish_cycle(store, "pump", "hub", {"outcome": "adopted", "reason": "", "parent": parent, "child": child})
        store.catalog.rollback("pump", "hub")
        store.catalog.pin("pump", "hub")
        store.catalog.set_frozen("pump", frozen=True)
        store.history("pump").add_points(np.arange(30), np.zeros((30, 2), np.float32))
    return root


def states(root: Path) -> dict[str, str]:
    """The worst state of each part."""
    order = ["ok", "note", "problem"]
    worst: dict[str, str] = {}
    for finding in examine(root):
        worst[finding.part] = max(worst.get(finding.part, "ok"), finding.state, key=order.index)
    return worst


def bundle_folder(root: Path, version: int, device_class: str = "hub") -> Path:
    """Where the bundle of a version lies."""
    with Store.open(root) as store:
        (row,) = (row for row in store.catalog.versions("pump") if row.version == version)
        return store.bundle_folder(row.bundles[device_class])


def test_a_sound_store_is_sound(root: Path) -> None:
    """Every part is looked at and fine, also while a server uses the store; nothing in it has changed."""
    with Store.open(root) as store:
        parts = states(root)
        assert store.catalog.serving("pump", "hub").version == 2

    assert set(parts.values()) == {"ok"}
    assert set(parts) == {"catalog", "bundles", "orphans", "history", "golden", "tables", "frontiers", "files"}


def damage_graph(root: Path) -> None:
    """One byte of a graph is another."""
    path = bundle_folder(root, 2) / "step.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def swap_versions(root: Path) -> None:
    """A graph is that of another version."""
    two, three = bundle_folder(root, 2), bundle_folder(root, 3)
    shutil.copy(three / "step.onnx", two / "step.onnx")


def remove_bundle(root: Path) -> None:
    """A bundle is gone."""
    shutil.rmtree(bundle_folder(root, 3))


def damage_history(root: Path) -> None:
    """A segment ends early."""
    (path,) = (root / "history" / "pump").glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])


def damage_golden(root: Path) -> None:
    """A golden set ends early."""
    path = root / "golden" / "pump" / f"{bundle_folder(root, 1, 'pi4').name}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")


def damage_catalog(root: Path) -> None:
    """The catalog is no database."""
    (root / "catalog.db").write_bytes(b"SQLite format 3\0" + bytes(4096))


def damage_page(root: Path) -> None:
    """A page of the catalog is overwritten."""
    content = bytearray((root / "catalog.db").read_bytes())
    content[4096:8192] = b"\xff" * 4096
    (root / "catalog.db").write_bytes(content)


def remove_catalog(root: Path) -> None:
    """The catalog is gone."""
    (root / "catalog.db").unlink()


def dangle(root: Path) -> None:
    """Rows belong to a detector that is gone."""
    book = sqlite3.connect(root / "catalog.db")
    book.execute("DELETE FROM detectors WHERE name = 'pump'")
    book.commit()
    book.close()


def drop_column(root: Path) -> None:
    """A table lacks a column."""
    book = sqlite3.connect(root / "catalog.db")
    book.execute("ALTER TABLE adoptions DROP COLUMN reason")
    book.commit()
    book.close()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (damage_graph, "bundles"),
        (swap_versions, "bundles"),
        (remove_bundle, "bundles"),
        (damage_history, "history"),
        (damage_golden, "golden"),
        (damage_catalog, "catalog"),
        (damage_page, "catalog"),
        (remove_catalog, "catalog"),
        (dangle, "catalog"),
        (drop_column, "catalog"),
    ],
)
def test_damage_is_found_and_something_can_be_done(root: Path, damage: Callable[[Path], None], part: str) -> None:
    """Each kind is a problem of its part, with what to do about it."""
    damage(root)

    problems = [finding for finding in examine(root) if finding.state == "problem"]

    assert [finding.part for finding in problems] == [part]
    assert "`prunewatch" in problems[0].todo
    assert not is_sound(problems)


def test_what_mends_itself_is_a_note(root: Path) -> None:
    """Tables and frontiers are made again, orphans are collected, the files of detectors are written again."""
    for name in (
        "tables/key.json",
        f"frontiers/{bundle_folder(root, 1).name}/256/frontier.json",
        "detectors/pump.json",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    (root / "bundles" / ("0" * 64)).mkdir()

    parts = states(root)

    assert {part for part, state in parts.items() if state == "note"} == {"tables", "frontiers", "orphans", "files"}
    assert is_sound(examine(root))
    with Store.open(root):
        pass
    assert states(root)["files"] == "ok"


def test_where_there_is_no_store_nothing_is_examined(tmp_path: Path) -> None:
    """A wrong folder is not called a damaged store."""
    with pytest.raises(NotFoundError, match="no store here"):
        examine(tmp_path)


@pytest.mark.parametrize("damage", [remove_catalog, damage_catalog, damage_page, dangle])
def test_a_catalog_is_rebuilt_as_it_was(root: Path, damage: Callable[[Path], None]) -> None:
    """Configuration, features, freeze, versions, what serves and pins come back; the damaged file is kept."""
    with Store.open(root) as store:
        before = {name: store.catalog.facts(name) for name in ("new", "pump")}
    old = (root / "catalog.db").read_bytes()
    damage(root)
    damaged = (root / "catalog.db").read_bytes() if (root / "catalog.db").exists() else None

    done = rebuild(root)

    assert is_sound([*done, *examine(root)])
    with Store.open(root) as store:
        assert {name: store.catalog.facts(name) for name in ("new", "pump")} == before
        assert store.catalog.next_version("pump") == 4
        assert store.history("pump").rows == 30
    kept = root / "quarantine" / "catalog.db"
    assert (kept.read_bytes() if kept.exists() else None) == damaged
    assert old != damaged
    assert any("cycles, operations, anomalies" in finding.told for finding in done)


def test_without_files_of_detectors_bundles_are_enough(root: Path) -> None:
    """The newest child serves on its class; what can not be known is said."""
    remove_catalog(root)
    shutil.rmtree(root / "detectors")

    done = rebuild(root)

    with Store.open(root) as store:
        pump = store.catalog.facts("pump")
        assert [(row.version, row.cause) for row in pump.versions] == [(1, "fit"), (2, "prune"), (3, "prune")]
        assert [(it.device_class, it.version, it.previous_version) for it in pump.serving] == [("hub", 3, 2)]
        assert (pump.detector.state, pump.detector.features, pump.detector.frozen) == ("ready", ["f1", "f2"], False)
        assert DetectorConfig.model_validate(pump.detector.config).network == "lstm"
    assert any("its configuration, pins and freeze are the defaults again" in finding.told for finding in done)
    assert is_sound(examine(root))


def test_a_version_that_is_lost_is_replaced_by_the_newest_sound_one(root: Path) -> None:
    """And said; the damaged bundle is put aside, never deleted."""
    folder = bundle_folder(root, 2)
    damage_graph(root)
    damaged = (folder / "step.onnx").read_bytes()
    remove_catalog(root)

    done = rebuild(root)

    with Store.open(root) as store:
        assert [row.version for row in store.catalog.versions("pump")] == [1, 3]
        serving = store.catalog.serving("pump", "hub")
        assert (serving.version, serving.pinned) == (3, False)
    assert any("version 2, which served on hub, is lost: version 3 serves instead" in it.told for it in done)
    assert (root / "quarantine" / "bundles" / folder.name / "step.onnx").read_bytes() == damaged


def test_a_lost_parent_takes_no_child_with_it(root: Path) -> None:
    """Children serve on; cycles go on from the widest of them."""
    parent = bundle_folder(root, 1)
    (parent / "step.onnx").unlink()
    remove_catalog(root)

    done = rebuild(root)

    with Store.open(root) as store:
        assert [row.version for row in store.catalog.versions("pump")] == [2, 3]
        (second, _) = store.catalog.versions("pump")
        assert second.parent_hash == second.bundles["hub"]
        assert store.catalog.serving("pump", "hub").version == 2
        assert store.catalog.serving("pump", "pi4") is None
    assert any("has lost its parent" in finding.told for finding in done)


def test_what_was_never_published_does_not_serve_after_a_rebuild(root: Path) -> None:
    """A candidate that waited for its proof is put aside, however new it is."""
    with Store.open(root) as store:
        candidate = made(store, 4, "hub", bundle_folder_hash(store, 1))["hash"]
    remove_catalog(root)

    rebuild(root)

    with Store.open(root) as store:
        assert store.catalog.next_version("pump") == 4
    assert (root / "quarantine" / "bundles" / candidate).is_dir()


def bundle_folder_hash(store: Store, version: int) -> str:
    """Hash of the parent of a version."""
    return next(row.parent_hash for row in store.catalog.versions("pump") if row.version == version)


def test_damaged_files_are_put_aside_under_a_sound_catalog(root: Path) -> None:
    """The history can be read again; the catalog stays as it was, with its pins."""
    damage_history(root)
    (segment,) = (root / "history" / "pump").glob("*.parquet")

    rebuild(root)

    assert is_sound(examine(root))
    assert (root / "quarantine" / "history" / "pump" / segment.name).is_file()
    with Store.open(root) as store:
        assert store.catalog.serving("pump", "hub").pinned


def test_nothing_is_rebuilt_under_a_server(root: Path) -> None:
    """Nor from a newer store, nor out of nothing."""
    with Store.open(root), pytest.raises(StoreInUseError):
        rebuild(root)
    book = sqlite3.connect(root / "catalog.db")
    book.execute("UPDATE meta SET value = '99'")
    book.commit()
    book.close()
    with pytest.raises(NewerStoreError):
        rebuild(root)
    shutil.rmtree(root)
    (root / "bundles").mkdir(parents=True)
    with pytest.raises(PreconditionError, match="nothing that a catalog could be made of"):
        rebuild(root)


def test_the_file_of_a_detector_follows_every_change(root: Path) -> None:
    """Written after each change, and gone with the detector."""
    with Store.open(root) as store:
        catalog = store.catalog
        for change in (
            lambda: catalog.unpin("pump", "hub"),
            lambda: catalog.rollback("pump", "hub", 1),
            lambda: catalog.set_frozen("pump", frozen=False),
            lambda: catalog.set_config("pump", DetectorConfig().model_dump(mode="json")),
        ):
            before = path_of(root, "pump").read_bytes()
            change()
            assert path_of(root, "pump").read_bytes() != before
        store.delete_detector("pump")
        assert [path.name for path in (root / "detectors").iterdir()] == ["new.json"]


def test_the_command_says_what_to_do(root: Path) -> None:
    """A line for each finding, exit code 1 on a problem, one JSON object when asked for, and it mends what it can."""
    run = CliRunner().invoke
    sound = run(app, ["doctor", "--store", str(root)])
    damage_catalog(root)
    damaged = run(app, ["doctor", "--store", str(root)])
    mended = run(app, ["doctor", "--rebuild", "--json", "--store", str(root)])

    assert (sound.exit_code, damaged.exit_code, mended.exit_code) == (0, 1, 0)
    assert "OK      catalog" in sound.stdout
    assert "PROBLEM catalog" in damaged.stdout
    assert "prunewatch doctor --rebuild" in damaged.stdout
    told = json.loads(mended.stdout)
    assert (told["sound"], told["store"]) == (True, str(root))
    assert {finding["part"] for finding in told["findings"]} >= {"rebuild", "catalog", "bundles"}


def test_a_store_that_lost_its_catalog_is_not_taken_for_a_new_one(root: Path) -> None:
    """Also where nothing but the file of a detector that learns is left; the error names the way out."""
    remove_catalog(root)
    shutil.rmtree(root / "bundles")

    for create in (True, False):
        with pytest.raises(PreconditionError, match="prunewatch doctor --rebuild"):
            Store.open(root, create=create)

    rebuild(root)
    with Store.open(root, create=False) as store:
        assert store.catalog.get_detector("new").state == "learning"
