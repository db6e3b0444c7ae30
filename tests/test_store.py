"""The store: one owner at a time, nothing but a store is opened as one, and what is published is read back verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import ewma_bundle

from detectors.archive import pack_bundle, unpack_bundle
from detectors.bundle import GRAPH, WEIGHTS, make_bundle, read_bundle, write_bundle
from detectors.errors import (
    ConflictError,
    CorruptBundleError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    StoreInUseError,
)
from server.config import Budget, DetectorConfig
from server.describe import describe
from server.jobs import cycle_job, fit_job
from server.publish import publish_cycle, publish_fit, require_unpinned
from server.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path):
    """A store with the detector `pump` for the classes hub and pi4."""
    with Store.open(root) as store:
        config = DetectorConfig(device_classes=["hub", "pi4"]).model_dump(mode="json")
        store.catalog.create_detector("pump", config)
        yield store


def made(store: Store, version: int, device_class: str = "parent", **changes) -> dict:
    """Writes a bundle and says what the trainer would say of it."""
    bundle = ewma_bundle("pump", version, device_class=device_class, gain=1.0 + version, **changes)
    write_bundle(bundle, store.bundle_folder(bundle.hash))
    network = bundle.manifest.network
    sizes = {"units": network.units, "parameters": network.parameters, "bytes": bundle.size}
    return {"hash": bundle.hash, "version": version, **sizes, "p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.5}


def fitted(store: Store, version: int = 1) -> dict:
    """Publishes a fit; returns its parent."""
    parent = made(store, version)
    publish_fit(store, "pump", {"outcome": "adopted", "parent": parent, "rows": 100})
    return parent


def test_a_store_has_one_owner(store: Store, root: Path) -> None:
    """A second process is told who holds it and to ask the server; after closing, it gets in."""
    program = f"from pathlib import Path; from server.store import Store; Store.open(Path({str(root)!r}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert "StoreInUseError" in run.stderr
    with pytest.raises(StoreInUseError, match=r"\(pid \d+\) uses this store.*--server"):
        Store.open(root)

    store.close()
    with Store.open(root) as again:
        assert again.catalog.get_detector("pump").name == "pump"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written into a folder that is no store."""
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(PreconditionError, match="not a store"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(PreconditionError, match="not a folder"):
        Store.open(tmp_path / "thesis.txt")


def test_no_store_is_made_unasked(root: Path) -> None:
    """Reading commands do not leave an empty store behind."""
    with pytest.raises(NotFoundError, match="no store here"):
        Store.open(root, create=False)
    assert not root.exists()


def test_a_lost_catalog_is_not_replaced_by_an_empty_one(store: Store, root: Path) -> None:
    """Bundles without a catalog are somebody's detectors."""
    fitted(store)
    store.close()
    for path in root.glob("catalog.db*"):
        path.unlink()

    with pytest.raises(PreconditionError, match=r"no catalog\.db"):
        Store.open(root)


def test_opening_sweeps_what_a_killed_process_left(store: Store, root: Path) -> None:
    """Staging, half-written bundles and tables go; what is whole stays."""
    parent = fitted(store)
    store.close()
    (root / "staging" / "upload").mkdir()
    (root / "bundles" / f".{'0' * 64}.77.partial").mkdir()
    (root / "tables").mkdir()
    for name in ("key.77.partial", "key.json"):
        (root / "tables" / name).touch()

    with Store.open(root) as again:
        assert list(again.staging.iterdir()) == []
        assert [path.name for path in (root / "bundles").iterdir()] == [parent["hash"]]
        assert [path.name for path in (root / "tables").iterdir()] == ["key.json"]


def test_a_fit_serves_on_every_class(store: Store) -> None:
    """The parent serves as it is until a cycle prunes it; features come from the bundle."""
    parent = fitted(store)

    assert {it.device_class: it.bundle_hash for it in store.catalog.all_serving("pump")} == dict.fromkeys(
        ["hub", "pi4"], parent["hash"]
    )
    assert store.catalog.get_detector("pump").features == ["f1", "f2"]
    assert store.catalog.measurements(parent["hash"])[0].batch == 256


def test_a_cycle_serves_on_its_class_only(store: Store) -> None:
    """Other classes keep what they have."""
    parent = fitted(store)
    child = made(store, 2, "pi4")
    result = {"outcome": "adopted", "reason": "", "parent": parent, "child": child}
    version = publish_cycle(store, "pump", "pi4", result, batch=64)

    assert version.version == 2
    assert {it.device_class: it.version for it in store.catalog.all_serving("pump")} == {"hub": 1, "pi4": 2}
    assert store.catalog.measurements(child["hash"])[0].batch == 64


def test_a_cycle_is_in_the_book_as_adopted_when_its_child_serves(store: Store) -> None:
    """With the whole result, in the transaction that publishes."""
    parent = fitted(store)
    cycle = store.catalog.begin_cycle("pump", "pi4", "manual")
    result = {"outcome": "adopted", "reason": "", "parent": parent, "child": made(store, 2, "pi4")}

    publish_cycle(store, "pump", "pi4", result, cycle=cycle)

    (row,) = store.catalog.cycles("pump")
    assert (row.outcome, row.result) == ("adopted", result)


def test_a_rejected_cycle_publishes_nothing(store: Store) -> None:
    """Nor does a dry run."""
    parent = fitted(store)

    for outcome in ("rejected", "planned"):
        assert publish_cycle(store, "pump", "hub", {"outcome": outcome, "parent": parent, "child": None}) is None
    assert len(store.catalog.versions("pump")) == 1


def test_a_bundle_that_is_not_whole_is_never_published(store: Store) -> None:
    """Files are read back before the catalog names them."""
    parent = made(store, 1)
    (store.bundle_folder(parent["hash"]) / GRAPH).write_bytes(b"torn")

    with pytest.raises(CorruptBundleError):
        publish_fit(store, "pump", {"outcome": "adopted", "parent": parent, "rows": 100})
    assert store.catalog.get_detector("pump").state == "learning"
    assert store.catalog.versions("pump") == []


def test_a_pinned_class_keeps_what_it_serves(store: Store) -> None:
    """A new fit is published beside it; a cycle is refused before it begins and when it ends."""
    parent = fitted(store)
    store.catalog.pin("pump", "hub")
    fitted(store, 2)

    assert {it.device_class: it.version for it in store.catalog.all_serving("pump")} == {"hub": 1, "pi4": 2}
    with pytest.raises(PreconditionError, match="dry run"):
        require_unpinned(store.catalog, "pump", "hub")
    result = {"outcome": "adopted", "reason": "", "parent": parent, "child": made(store, 3, "hub")}
    with pytest.raises(PreconditionError, match="pinned"):
        publish_cycle(store, "pump", "hub", result)


def test_a_result_that_comes_too_late_is_refused(store: Store) -> None:
    """Its version number has been taken."""
    fitted(store)

    with pytest.raises(ConflictError):
        fitted(store, 1)


def test_deleting_removes_the_files(store: Store, root: Path) -> None:
    """Bundles and history go with the detector."""
    fitted(store)
    store.history("pump").add_points(np.arange(3), np.zeros((3, 2), np.float32))
    store.delete_detector("pump")

    assert list((root / "bundles").iterdir()) == []
    assert list((root / "history").iterdir()) == []


def test_a_history_needs_features(store: Store) -> None:
    """Before the first points nobody knows its columns."""
    with pytest.raises(PreconditionError, match="features of 'pump' are not known"):
        store.history("pump")


def test_a_fit_job_says_all_that_the_trainer_needs(store: Store, root: Path) -> None:
    """Configuration, columns, points and the number it will have."""
    config = DetectorConfig(network="autoencoder", options={"window": 9}, seed=4)
    job = fit_job(store, "pump", config, ["a"], [root / "x.parquet"], version=1, threads=2)

    assert job == {
        "kind": "fit",
        "store": str(root),
        "detector": "pump",
        "version": 1,
        "network": "autoencoder",
        "options": {"window": 9},
        "start": None,
        "first": None,
        "parent_gate": {"golden_quality": 0.95, "golden_recall": 0.8, "movement": 1.0},
        "threshold": 3.0,
        "learning": {"learning_rate": 0.003, "contamination": 0.0},
        "error": {"half_life": 5.0, "aggregate": "worst", "missing": "reject"},
        "max_gap": None,
        "shift": None,
        "labels": [],
        "windows": [],
        "features": ["a"],
        "history": [str(root / "x.parquet")],
        "batch": 256,
        "seed": 4,
        "threads": 2,
    }


def test_a_cycle_starts_from_the_parent_of_what_serves(store: Store, root: Path) -> None:
    """After a rollback from the older parent; for a class without a version from the newest; never from nothing."""
    options = {"budget": Budget(speedup=4), "history": [root / "x.parquet"]}
    with pytest.raises(PreconditionError, match="no version yet"):
        cycle_job(store, "pump", DetectorConfig(), "hub", **options)
    first, second = fitted(store), fitted(store, 2)
    store.catalog.rollback("pump", "hub")

    job = cycle_job(store, "pump", DetectorConfig(), "hub", **options, seed=7)

    assert (job["parent"], job["version"], job["seed"]) == ({"hash": first["hash"], "version": 1}, 3, 7)
    assert job["budget"]["speedup"] == 4
    assert cycle_job(store, "pump", DetectorConfig(), "m7", **options)["parent"]["hash"] == second["hash"]
    with pytest.raises(PreconditionError, match="no points"):
        cycle_job(store, "pump", DetectorConfig(), "hub", budget=Budget(speedup=4), history=[])
    for name in ("parent", "../pi4", ""):
        with pytest.raises(InvalidInputError, match="is not a device class"):
            cycle_job(store, "pump", DetectorConfig(), name, **options)


def test_a_description_has_parents_children_and_what_serves(store: Store) -> None:
    """A version that serves its parent has no child."""
    parent = fitted(store)
    child = made(store, 2, "hub")
    publish_cycle(store, "pump", "hub", {"outcome": "adopted", "reason": "", "parent": parent, "child": child})

    described = describe(store, "pump")

    first, second = described["versions"]
    assert (first["serving"], first["children"]) == (["pi4"], {})
    assert second["parent"]["hash"] == parent["hash"]
    assert second["children"]["hub"]["measurements"][0]["p99_seconds"] == 2e-3
    assert [it["device_class"] for it in described["served"]] == ["hub", "pi4"]


def test_a_packed_bundle_is_the_same_bundle_without_weights(tmp_path: Path) -> None:
    """Packing twice gives the same bytes, and what is unpacked has the same hash."""
    plain = ewma_bundle("pump")
    fields = {key: getattr(plain.manifest, key) for key in type(plain.manifest).model_fields if key != "files"}
    bundle = make_bundle({GRAPH: plain.graph, WEIGHTS: b"weights"}, **fields)
    folder, unpacked = tmp_path / "bundle", tmp_path / "unpacked"
    write_bundle(bundle, folder)
    unpacked.mkdir()
    for name in ("a.tar", "b.tar"):
        pack_bundle(folder, bundle.hash, tmp_path / name)
    unpack_bundle(tmp_path / "a.tar", unpacked)

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert b"weights" not in (unpacked / GRAPH).read_bytes()
    assert read_bundle(unpacked, bundle.hash).graph == plain.graph
    assert sorted(path.name for path in unpacked.iterdir()) == ["manifest.json", "step.onnx"]


def test_an_archive_decides_nothing(tmp_path: Path) -> None:
    """Links, other names, torn files and other formats are refused or passed over; nothing is written elsewhere."""
    import tarfile

    link = tmp_path / "link.tar"
    with tarfile.open(link, "w") as archive:
        entry = tarfile.TarInfo("manifest.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    (tmp_path / "torn.tar").write_bytes(link.read_bytes()[:100])
    target = tmp_path / "target"
    target.mkdir()

    for name in ("link.tar", "torn.tar"):
        with pytest.raises(CorruptBundleError, match=name):
            unpack_bundle(tmp_path / name, target)
    with pytest.raises(NotFoundError):
        unpack_bundle(tmp_path / "none.tar", target)
    assert list(target.iterdir()) == []


def test_names_from_outside_never_become_paths(store: Store) -> None:
    """A name that is no name is refused before it is used."""
    with pytest.raises(NotFoundError):
        store.history("../../etc")
    with pytest.raises(InvalidInputError):
        store.catalog.create_detector("../../etc", {})


def test_an_empty_catalog_beside_bundles_is_no_new_store(tmp_path: Path) -> None:
    """A catalog of zero bytes, as a damaged disk leaves it, is refused like a missing one."""
    with Store.open(tmp_path / "store"):
        pass
    (tmp_path / "store" / "bundles" / ("0" * 64)).mkdir()
    for file in (tmp_path / "store").glob("catalog.db*"):
        file.unlink()
    (tmp_path / "store" / "catalog.db").touch()

    with pytest.raises(PreconditionError, match=r"has bundles but no catalog\.db"):
        Store.open(tmp_path / "store")
