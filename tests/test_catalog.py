"""The catalog: versions appear whole, pointers move in one transaction, and a restart leaves nothing half-done."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from detectors.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NewerStoreError,
    NotFoundError,
    PreconditionError,
)
from server.catalog import Catalog
from server.records import BundleRow, Ended, Measurement, VersionRow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database lies."""
    return tmp_path / "catalog.db"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    """A catalog with the detector `pump`, made at second 100."""
    catalog = Catalog(path, clock=lambda: 100.0)
    catalog.create_detector("pump", {"network": "lstm"}, ["flow"])
    yield catalog
    catalog.close()


def facts(version: int, device_class: str = "hub") -> BundleRow:
    """A bundle of a version."""
    return BundleRow(f"{device_class}-{version}", version, device_class, {"lstm0": 8}, 100, 2000, 0.5)


def publish(catalog: Catalog, *classes: str, adopt: tuple[str, ...] = ("hub",), **options) -> VersionRow:
    """Publishes the next version of `pump` with a parent and a bundle for each class."""
    number = catalog.next_version("pump")
    bundles = {device_class: facts(number, device_class) for device_class in classes or ("hub",)}
    parent = facts(number, "parent")
    version = VersionRow(
        "pump", number, parent.hash, "prune", 100.0, {name: bundle.hash for name, bundle in bundles.items()}
    )
    catalog.publish(version, [parent, *bundles.values()], adopt=adopt, **options)
    return version


def test_a_detector_begins_to_learn(catalog: Catalog) -> None:
    """A new detector has its configuration, no version, and serves nothing."""
    pump = catalog.get_detector("pump")

    assert (pump.state, pump.config, pump.features, pump.created) == ("learning", {"network": "lstm"}, ["flow"], 100.0)
    assert catalog.versions("pump") == []
    assert catalog.serving("pump", "hub") is None
    assert catalog.next_version("pump") == 1


def test_names_are_unique_and_safe(catalog: Catalog) -> None:
    """A taken name and one that is no file or label name are refused."""
    with pytest.raises(AlreadyExistsError):
        catalog.create_detector("pump", {})
    for name in ("", "Pump", "../pump", "a" * 64, "pump\n"):
        with pytest.raises(InvalidInputError):
            catalog.create_detector(name, {})


def test_detectors_are_paged_by_name(catalog: Catalog) -> None:
    """`after` the last name of a page begins the next."""
    for name in ("valve", "boiler"):
        catalog.create_detector(name, {})

    assert [row.name for row in catalog.list_detectors()] == ["boiler", "pump", "valve"]
    assert [row.name for row in catalog.list_detectors(after="boiler", limit=1)] == ["pump"]


def test_unknown_detectors_are_refused_everywhere(catalog: Catalog) -> None:
    """The error names what there is."""
    for call in (
        lambda: catalog.get_detector("pum"),
        lambda: catalog.set_state("pum", "ready"),
        lambda: catalog.delete_detector("pum"),
        lambda: catalog.next_version("pum"),
        lambda: catalog.versions("pum"),
        lambda: catalog.adopt("pum", "hub", 1),
        lambda: catalog.rollback("pum", "hub"),
        lambda: catalog.pin("pum", "hub"),
    ):
        with pytest.raises(NotFoundError, match="There are: pump"):
            call()


def test_what_is_published_is_there_and_serves(catalog: Catalog) -> None:
    """One call: version, bundles, measurements, features, pointers and state."""
    measured = Measurement("hub-1", "hub", 256, 0.001, 0.002, 100.0)
    version = publish(catalog, "hub", "pi4", adopt=("hub",), measurements=[measured], features=["pressure"])

    assert catalog.versions("pump") == [version]
    assert catalog.bundle("pi4-1") == facts(1, "pi4")
    assert catalog.measurements("hub-1") == [measured]
    assert [(it.device_class, it.version, it.bundle_hash) for it in catalog.all_serving("pump")] == [
        ("hub", 1, "hub-1")
    ]
    assert (catalog.get_detector("pump").state, catalog.get_detector("pump").features) == ("ready", ["pressure"])


def test_a_publication_that_fails_leaves_no_trace(catalog: Catalog) -> None:
    """A pinned class or a bundle nobody described: not one row of the version is there."""
    publish(catalog)
    catalog.pin("pump", "hub")
    with pytest.raises(PreconditionError, match="pinned"):
        publish(catalog)
    with pytest.raises(NotFoundError, match="for 'pi4'"):
        publish(catalog, "hub", adopt=("pi4",))

    assert [row.version for row in catalog.versions("pump")] == [1]
    with pytest.raises(NotFoundError):
        catalog.bundle("hub-2")


def test_version_numbers_have_no_gaps_and_no_doubles(catalog: Catalog) -> None:
    """Whoever publishes second with the same number loses."""
    version = publish(catalog)

    for number in (1, 3):
        with pytest.raises(ConflictError, match="2 is next"):
            catalog.publish(VersionRow("pump", number, version.parent_hash, "fit", 100.0, {}), [])


def test_adopting_remembers_what_served_before(catalog: Catalog) -> None:
    """Rolling back goes there, and rolling back again comes back."""
    publish(catalog)
    publish(catalog)

    assert catalog.serving("pump", "hub").previous_version == 1
    assert catalog.rollback("pump", "hub").version == 1
    assert catalog.rollback("pump", "hub").version == 2
    assert catalog.rollback("pump", "hub", to=1).bundle_hash == "hub-1"


def test_rolling_back_needs_somewhere_to_go(catalog: Catalog) -> None:
    """Before the first fit, before the second version, to an unknown version, on a class without bundles."""
    with pytest.raises(PreconditionError, match="no version of 'pump' serves"):
        catalog.rollback("pump", "hub")
    publish(catalog)
    with pytest.raises(PreconditionError, match="nothing served before"):
        catalog.rollback("pump", "hub")
    with pytest.raises(NotFoundError, match="no version 7"):
        catalog.rollback("pump", "hub", to=7)
    publish(catalog, "pi4", adopt=("pi4",))
    with pytest.raises(NotFoundError, match="no version 2 for 'hub'"):
        catalog.adopt("pump", "hub", 2)


def test_adopting_can_expect_what_serves(catalog: Catalog) -> None:
    """A pointer that moved meanwhile is not moved again."""
    publish(catalog)
    publish(catalog)

    with pytest.raises(ConflictError, match="version 2 of 'pump'"):
        catalog.adopt("pump", "hub", 1, expected_version=1)
    assert catalog.adopt("pump", "hub", 1, expected_version=2).version == 1


def test_a_pinned_version_stays(catalog: Catalog) -> None:
    """Neither adopting nor rolling back moves it; pinning can choose the version; unpinning frees it."""
    publish(catalog)
    publish(catalog)
    assert catalog.pin("pump", "hub", version=1).version == 1

    for move in (lambda: catalog.adopt("pump", "hub", 2), lambda: catalog.rollback("pump", "hub")):
        with pytest.raises(PreconditionError, match="Unpin it first"):
            move()
    assert catalog.adopt("pump", "hub", 1).pinned  # what serves already is no move

    assert not catalog.unpin("pump", "hub").pinned
    assert catalog.adopt("pump", "hub", 2).version == 2


def test_deleting_forgets_everything_but_operations(catalog: Catalog) -> None:
    """The hashes of its bundles come back, so that their files can go; the name is free again."""
    publish(catalog, measurements=[Measurement("hub-1", "hub", 1, 1.0, 1.0, 1.0)])
    catalog.begin_cycle("pump", "hub", "asked")
    operation = catalog.create_operation("fit", "pump")

    assert sorted(catalog.delete_detector("pump")) == ["hub-1", "parent-1"]
    assert catalog.list_detectors() == []
    assert catalog.cycles("pump") == []
    assert catalog.measurements("hub-1") == []
    assert catalog.get_operation(operation.name) == operation
    assert catalog.create_detector("pump", {}).state == "learning"
    assert catalog.next_version("pump") == 1


def test_the_newest_measurement_counts(catalog: Catalog) -> None:
    """One row for each bundle, class and batch."""
    publish(catalog)
    for seconds in (1.0, 2.0):
        catalog.record_measurement(Measurement("hub-1", "hub", 256, seconds, seconds, seconds))
    catalog.record_measurement(Measurement("hub-1", "hub", 1, 3.0, 3.0, 3.0))

    assert [(it.batch, it.p50_seconds) for it in catalog.measurements("hub-1")] == [(1, 3.0), (256, 2.0)]


def test_cycles_are_kept_with_their_outcome(catalog: Catalog) -> None:
    """Newest first; a running one says so."""
    first = catalog.begin_cycle("pump", "hub", "asked")
    catalog.end_cycle(first, "rejected", "too slow", {"outcome": "rejected"})
    catalog.begin_cycle("pump", "hub", "prune_every")

    newest, oldest = catalog.cycles("pump")

    assert (newest.trigger, newest.outcome, newest.ended) == ("prune_every", "running", None)
    assert (oldest.outcome, oldest.reason, oldest.result) == ("rejected", "too slow", {"outcome": "rejected"})


def test_a_cycle_ends_with_what_it_published(catalog: Catalog) -> None:
    """In one transaction: adopted when its child serves, still running where that failed; the end is never changed."""
    cycle = catalog.begin_cycle("pump", "hub", "asked")
    with pytest.raises(NotFoundError):
        publish(catalog, adopt=("elsewhere",), ended=[Ended(cycle, "hub", "adopted")])
    assert catalog.cycles("pump")[0].outcome == "running"
    assert catalog.versions("pump") == []

    publish(catalog, ended=[Ended(cycle, "hub", "adopted", "good", {"outcome": "adopted", "reason": "good"})])
    catalog.end_cycle(cycle, "failed", "too late")

    (ended,) = catalog.cycles("pump")
    assert (ended.outcome, ended.reason, ended.ended) == ("adopted", "good", 100.0)
    assert ended.result == {"outcome": "adopted", "reason": "good"}


def test_a_first_version_may_bring_its_detector(catalog: Catalog) -> None:
    """In one transaction: it is there with its version, or not at all."""
    parent = facts(1, "parent")
    version = VersionRow("fan", 1, parent.hash, "fit", 100.0, {"hub": parent.hash})
    with pytest.raises(NotFoundError):
        catalog.publish(version, [parent], adopt=["hub"])
    with pytest.raises(NotFoundError):
        catalog.publish(version, [parent], adopt=["elsewhere"], config={"network": "gru"}, features=["flow"])
    assert [it.name for it in catalog.list_detectors()] == ["pump"]

    catalog.publish(version, [parent], adopt=["hub"], config={"network": "gru"}, features=["flow"])

    fan = catalog.get_detector("fan")
    assert (fan.state, fan.config, fan.features) == ("ready", {"network": "gru"}, ["flow"])


def test_an_operation_ends_once(catalog: Catalog) -> None:
    """Progress and other ends that come too late change nothing."""
    name = catalog.create_operation("fit", "pump").name
    catalog.update_operation(name, stage="training", done=0.5, message="epoch 3")
    assert (catalog.get_operation(name).stage, catalog.get_operation(name).done) == ("training", 0.5)

    catalog.succeed_operation(name, {"version": 1})
    catalog.cancel_operation(name)
    catalog.update_operation(name, stage="late", done=0.1)

    ended = catalog.get_operation(name)
    assert (ended.state, ended.stage, ended.result, ended.ended) == ("succeeded", "training", {"version": 1}, 100.0)


def test_a_failed_operation_keeps_the_error(catalog: Catalog) -> None:
    """With its class, so that the service answers with the same status as a direct call."""
    name = catalog.create_operation("fit", "pump").name
    catalog.fail_operation(name, InvalidInputError("too short.", field="data", hint="More."))

    assert catalog.get_operation(name).error == {
        "type": "InvalidInputError",
        "problem": "too short.",
        "field": "data",
        "hint": "More.",
    }
    assert [it.name for it in catalog.list_operations("pump")] == [name]
    assert catalog.list_operations("valve") == []
    with pytest.raises(NotFoundError):
        catalog.get_operation("operations/none")


def test_a_restart_ends_what_was_running(catalog: Catalog, path: Path) -> None:
    """Operations and cycles have failed; detectors stand where their versions say."""
    operation = catalog.create_operation("fit", "pump").name
    catalog.begin_cycle("pump", "hub", "asked")
    catalog.create_detector("valve", {})
    publish(catalog)
    for name in ("pump", "valve"):
        catalog.set_state(name, "fitting")
    catalog.close()

    again = Catalog(path)

    assert again.get_operation(operation).state == "failed"
    assert "interrupted" in again.get_operation(operation).error["problem"]
    assert again.cycles("pump")[0].outcome == "failed"
    assert (again.get_detector("pump").state, again.get_detector("valve").state) == ("ready", "learning")
    assert again.serving("pump", "hub").version == 1
    again.close()


def test_a_newer_catalog_is_left_alone(catalog: Catalog, path: Path) -> None:
    """It is refused before anything is written into it."""
    catalog.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(NewerStoreError, match="schema 99"):
        Catalog(path)
    assert path.read_bytes() == before


def test_a_damaged_catalog_is_named(path: Path) -> None:
    """No stack trace of a database library."""
    path.write_bytes(b"not a database" * 1000)

    with pytest.raises(PreconditionError, match=r"catalog\.db: is not a readable catalog"):
        Catalog(path)


def test_threads_wait_for_each_other(catalog: Catalog) -> None:
    """Writers from several threads all succeed, and readers see whole versions meanwhile."""
    publish(catalog)
    failures: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            for i in range(10):
                catalog.record_measurement(Measurement("hub-1", "hub", 1 + 100 * thread + i, 1.0, 1.0, 1.0))
                assert catalog.serving("pump", "hub") is not None
        except BaseException as error:  # noqa: BLE001  (told to the main thread)
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(catalog.measurements("hub-1")) == 40
