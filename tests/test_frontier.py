"""The frontier: children from wide to narrow that a budget picks from, how they are kept, and how they are shown."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import NOW, hub_settings, publish
from fits import FOUR, fitted, machine
from graphs import ewma_bundle
from quick_trainer import CRASH, REFUSE
from typer.testing import CliRunner

from detectors.bundle import Bundle, Lineage, write_bundle
from detectors.errors import ExhaustedError, InvalidInputError, PrunewatchError
from detectors.training.export import step_graph, to_bundle
from detectors.training.fitted import Fitted, load, save
from detectors.training.stretches import Stretches
from prunewatch.client import Client, ServiceError
from pruning.cycle import CycleOptions, run_cycle, split
from pruning.damage import Curve
from pruning.frontier import Frontier, FrontierOptions, build_frontier, descending, targets, within_seconds
from pruning.frontier_facts import FrontierFacts, FrontierPoint, marked
from pruning.gate import GateLimits, trimmed_error
from pruning.outcome import MARGIN, Budget, Latency, Sized
from pruning.table import Cost, Level, Table
from server.app import Hub
from server.cli import app
from server.config import DetectorConfig
from server.frontiers import FACTS, read_frontier, write_frontier
from server.layout import FRONTIERS
from server.publish import publish_fit
from server.store import Store

RECENT = machine(900)
BATCH = 64
LOOSE = GateLimits(error_ratio=20, alarm_jaccard=0.0, tail_agreement=-1.0, injected_drop=1.0)
GENEROUS = {"error_ratio": 20.0, "alarm_jaccard": 0.0, "tail_agreement": -1.0, "injected_drop": 1.0}
HASH = "a" * 64


def parent() -> Fitted:
    """A dense detector of two groups of 32 units."""
    return fitted("lstm", updates=150, width=32)


@cache
def built() -> Frontier:
    """Its frontier, quickly made; shared between tests."""
    options = FrontierOptions(updates=40, limits=LOOSE)
    return build_frontier(parent(), Stretches.of([RECENT]), batch=BATCH, points=3, options=options)


# The way down


def curve(*lost: float) -> Curve:
    """A curve that loses so much with 0, 1, ... units kept."""
    shares = np.array(lost)
    return Curve(shares, np.stack([shares[::-1], shares[::-1]], axis=1))


def table(*times: float) -> Table:
    """Levels of 4, 2 and 1 units in one group that cost so much."""
    costs = {width: Cost(time, time, 100 * width) for width, time in zip((4, 2, 1), times, strict=True)}
    levels = [Level({"a": width}, costs[width], {"a": costs}) for width in (4, 2, 1)]
    return Table(tuple(levels))


def test_the_widest_that_a_table_says_is_fast_enough_is_the_within_seconds() -> None:
    """By time alone; where nothing is fast enough the nearest level."""
    curves = {"a": curve(1.0, 0.8, 0.3, 0.1, 0.0)}

    found = [within_seconds(table(8.0, 4.0, 2.0), curves, seconds) for seconds in (9.0, 5.0, 3.0, 1.0)]

    assert found == [{"a": 4}, {"a": 2}, {"a": 1}, {"a": 1}]


def test_where_time_does_not_depend_on_widths_they_are_spread_for_their_bytes() -> None:
    """Geometrically on the grid, from below the dense width down to the floor; as many as are asked for, or exist."""
    width = {64: Cost(5.0, 5.0, 64), 32: Cost(5.0, 5.0, 32), 8: Cost(5.0, 5.0, 8)}
    flat = Table(tuple(Level({"a": it}, width[it], {"a": width}) for it in width))
    lost = Curve(np.linspace(1, 0, 65), np.array([[0.0, 0.0], [1.0, 1.0]]))

    assert targets(flat, {"a": lost}, 4) == [{"a": 40}, {"a": 24}, {"a": 16}, {"a": 8}]
    assert targets(flat, {"a": lost}, 1) == [{"a": 8}]
    assert len(targets(flat, {"a": lost}, 32)) == 7


def test_widths_only_ever_fall() -> None:
    """A group that would grow again stays; what is the same as before is left out."""
    wanted = [{"a": 8, "b": 8}, {"a": 4, "b": 8}, {"a": 6, "b": 8}, {"a": 6, "b": 2}]

    assert descending({"a": 8, "b": 8}, wanted) == [{"a": 4, "b": 8}, {"a": 4, "b": 2}]


def test_children_are_nested_and_end_at_the_floor() -> None:
    """Each keeps units of the one before; the parent is as it was; graphs have the widths that are said."""
    points, children = built().facts.points, built().children

    assert len(points) == len(children) <= 3
    assert points[-1].units == {"layer0": 8, "layer1": 8}
    assert [child.network.units for child in children] == [point.units for point in points]
    for wide, narrow in itertools.pairwise(points):
        assert all(set(narrow.kept[name]) <= set(wide.kept[name]) for name in narrow.kept)
        assert narrow.bytes < wide.bytes
    assert [{name: len(units) for name, units in point.kept.items()} for point in points] == [p.units for p in points]
    assert parent().network.units == {"layer0": 32, "layer1": 32}


def test_children_are_held_against_their_parent_on_the_same_points() -> None:
    """The error as the gate has it, in the parent's; every check of the gate but those of a budget; the plan."""
    _, held_out = split(parent(), Stretches.of([RECENT]))
    facts = built().facts
    for point, child in zip(facts.points, built().children, strict=True):
        assert point.error_ratio == pytest.approx(trimmed_error(child, held_out) / trimmed_error(parent(), held_out))
        assert point.speedup == pytest.approx(facts.parent.p50_seconds / point.p50_seconds)
        assert set(point.gate["checks"]) == {"error", "alarms", "alarm rate", "tail", "injected"}
        assert point.injected_bound <= point.injected_change
        assert {name: it["after"] for name, it in point.plan["groups"].items()} == point.units
        assert point.plan["stages"][-1] == point.units
    assert facts.parent.bytes == len(step_graph(parent()))
    assert [point.plan["updates"] for point in facts.points] == [40 * (i + 1) for i in range(len(facts.points))]


@pytest.mark.parametrize("points", [0, 33])
def test_a_frontier_has_one_to_thirty_two_children(points: int) -> None:
    """Anything else is refused before anything is done."""
    with pytest.raises(InvalidInputError, match="between 1 and 32"):
        build_frontier(parent(), Stretches.of([RECENT]), batch=BATCH, points=points)


@pytest.mark.slow
def test_a_forest_has_a_frontier_too() -> None:
    """Of its trees; nothing is fine-tuned."""
    forest = fitted("isolation_forest")

    found = build_frontier(forest, Stretches.of([RECENT]), batch=BATCH, points=2, options=FrontierOptions(limits=LOOSE))

    assert [point.units for point in found.facts.points][-1] == {"trees": 8}
    assert load(save(found.children[-1])).network.units == {"trees": 8}


# What is picked


def point(p50: float, error: float, size: int = 1000, agreement: float = 0.9) -> FrontierPoint:
    """A point with the facts that matter."""
    return FrontierPoint(
        {"a": 1}, "", 1, size, p50, 2 * p50, 1.0 / p50, error, agreement, 0.9, 0.0, 0.0, {}, {"a": [0]}, {}
    )


def facts(*points: FrontierPoint) -> FrontierFacts:
    """Of a parent that took a second a step."""
    return FrontierFacts(BATCH, Sized(1, None, {"a": 9}, 9, 9000, 1.0, 2.0, 0.1), points, "taylor", 0)


def test_the_front_is_what_nothing_beats() -> None:
    """Better in one of time, bytes, error and agreement is enough to stay; two alike both stay."""
    given = [point(0.5, 1.0), point(0.5, 1.1), point(0.6, 1.1, size=10), point(0.7, 1.2, agreement=0.95)]

    assert [it.on_front for it in marked([*given, given[0]])] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("budget", "places"),
    [
        (Budget(p50_seconds=0.61 / MARGIN, batch=BATCH), [0, 1, 2]),
        (Budget(p50_seconds=0.45 / MARGIN, batch=BATCH), [1, 2]),
        (Budget(p99_seconds=0.45 / MARGIN, batch=BATCH), [2]),
        (Budget(speedup=MARGIN / 0.45, batch=BATCH), [1, 2]),
        (Budget(size_bytes=1500, batch=BATCH), [2]),
        (Budget(p50_seconds=0.19 / MARGIN, batch=BATCH), []),
        (Budget(p50_seconds=9, size_bytes=999, batch=BATCH), []),
    ],
    ids=str,
)
def test_the_least_error_inside_all_limits_comes_first_then_narrower_ones(budget: Budget, places: list[int]) -> None:
    """Times must leave the margin that a search leaves."""
    known = facts(point(0.6, 1.0, 3000), point(0.4, 1.1, 2000), point(0.2, 1.3, 1000))

    assert known.meeting(budget, Latency(1.0, 2.0, BATCH)) == places


def test_errors_that_are_nearly_equal_go_by_agreement_and_then_by_width() -> None:
    """Half a per cent of error is another draw of points; a loose budget is not to get the narrowest child for it."""
    loose, now = Budget(p50_seconds=9, batch=BATCH), Latency(1.0, 2.0, BATCH)
    by_width = facts(point(0.6, 0.995), point(0.4, 0.992), point(0.2, 0.990))
    by_agreement = facts(point(0.6, 0.992, agreement=0.8), point(0.4, 0.995), point(0.2, 0.990, agreement=0.7))

    assert by_width.meeting(loose, now)[0] == 0
    assert by_agreement.meeting(loose, now)[0] == 1


def test_a_machine_that_slowed_down_is_allowed_for() -> None:
    """Where the parent takes twice as long as then, so do its children; a speed-up is still the same."""
    known, slower = facts(point(0.6, 1.0), point(0.4, 1.1), point(0.2, 1.3)), Latency(2.0, 4.0, BATCH)

    assert known.meeting(Budget(p50_seconds=0.5, batch=BATCH), slower) == [2]
    assert known.meeting(Budget(speedup=2, batch=BATCH), slower) == [1, 2]


def cycle(budget: Budget, frontier: Frontier | None = None, recent: np.ndarray = RECENT, **options):
    """A short cycle that may pick."""
    options = {"updates": 30, "limits": LOOSE} | options
    return run_cycle(
        parent(),
        Stretches.of([recent]),
        budget,
        parent_version=1,
        version=2,
        options=CycleOptions(frontier=frontier or built(), **options),
    )


def below(place: int, batch: int = BATCH) -> Budget:
    """A budget in bytes that one child meets and the wider ones do not; calibration may change a few bytes."""
    return Budget(size_bytes=built().facts.points[place].bytes + 500, batch=batch)


def test_a_budget_picks_a_child_without_any_training() -> None:
    """Adopted with its own units, kept units and criterion, calibrated and judged on present points."""
    found, last = cycle(below(-1)), built().facts.points[-1]

    assert found.outcome.outcome == "adopted", found.outcome.reason
    assert found.outcome.child.units == last.units
    assert found.outcome.child.p50_seconds > 0
    assert found.kept == last.kept
    assert (found.criterion, found.updated, found.plan) == ("taylor", False, None)
    assert {"update", "frontier", "gate"} <= set(found.outcome.stages)
    assert not {"search", "prune", "fine-tune"} & set(found.outcome.stages)
    places = {"point": len(built().facts.points), "points": len(built().facts.points), "seed": 0}
    assert found.outcome.plan["frontier"] == places
    assert found.outcome.gate.passed
    assert found.outcome.report is not None
    assert found.child is not None
    weights = {name: value.tolist() for name, value in found.child.network.state_dict().items()}
    assert weights == {name: value.tolist() for name, value in built().children[-1].network.state_dict().items()}


def test_a_dry_run_names_the_child_that_would_be_taken() -> None:
    """Measured, not judged."""
    found = cycle(below(-1), dry_run=True)

    assert found.outcome.outcome == "planned"
    assert "from the frontier" in found.outcome.reason
    assert found.outcome.child.units == built().facts.points[-1].units
    assert found.child is None


def test_the_frontier_comes_before_the_parents_update() -> None:
    """Points that the parent has not seen are no reason not to pick: it stays as it is, the child is judged on them."""
    moved = RECENT * np.float32(1.05) + np.float32([0.5, 10, 0.3, 0.3])

    found = cycle(below(-1), recent=moved, update_parent=True, updates=200)

    assert found.outcome.plan["frontier"]["point"] == len(built().facts.points)
    assert not found.updated
    assert "search" not in found.outcome.stages
    assert found.outcome.gate is not None


@pytest.mark.slow
@pytest.mark.parametrize("why", ["another batch", "no point meets it", "the parent has moved"])
def test_where_nothing_can_be_picked_a_whole_cycle_is_planned(why: str) -> None:
    """For points of another batch, a budget below every child, and a parent that was updated first.

    That one is carried out: a plan would not train it.
    """
    frontier, budget, recent, options = built(), below(-1), RECENT, {}
    if why == "another batch":
        budget = below(-1, batch=16)
    elif why == "no point meets it":
        large = tuple(replace(it, bytes=1 << 40) for it in built().facts.points)
        frontier = replace(built(), facts=replace(built().facts, points=large))
    else:
        recent = RECENT * np.float32(1.05) + np.float32([0.5, 10, 0.3, 0.3])
        options = {"update_parent": True, "updates": 200, "frontier_first": False, "dry_run": False}

    found = cycle(budget, frontier, recent, **{"dry_run": True} | options)

    assert found.updated == (why == "the parent has moved")
    assert (found.outcome.outcome == "planned") == (why != "the parent has moved")
    assert "search" in found.outcome.stages
    assert "frontier" not in found.outcome.plan
    assert ("frontier" in found.outcome.stages) == (why == "no point meets it")


@pytest.mark.slow
def test_where_the_gate_refuses_what_was_picked_a_whole_cycle_runs() -> None:
    """A child that knows nothing is not proposed; the cycle makes one of its own."""
    untrained = tuple(child.with_network(child.network.resized(child.network.units)) for child in built().children)

    found = cycle(below(-1), replace(built(), children=untrained), limits=replace(LOOSE, error_ratio=2.0))

    assert {"frontier", "search", "prune"} <= set(found.outcome.stages)
    assert "frontier" not in found.outcome.plan


# How it is kept


def kept(root: Path, created: float = 5.0) -> Path:
    """Writes the frontier into a folder; gives its own."""
    write_frontier(root, HASH, built().facts, [save(child) for child in built().children], created)
    return root / FRONTIERS / HASH / str(BATCH)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    """Facts and weights to the bit; another batch or parent has none; a newer one takes its place."""
    kept(tmp_path)
    kept(tmp_path, 6.0)

    read = read_frontier(tmp_path, HASH, BATCH)

    assert read is not None
    assert (read.facts, read.created_seconds) == (built().facts, 6.0)
    assert [step_graph(load(weights)) for weights in read.weights] == [step_graph(it) for it in built().children]
    assert read_frontier(tmp_path, HASH, 1) is None
    assert read_frontier(tmp_path, "b" * 64, BATCH) is None
    assert [path.name for path in (tmp_path / FRONTIERS / HASH).iterdir()] == [str(BATCH)]
    assert len(list((tmp_path / FRONTIERS / HASH / str(BATCH)).iterdir())) == 2


def cut(path: Path) -> None:
    """Half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", [FACTS, "0.safetensors"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"{}" + path.read_bytes()[2:])])
def test_a_damaged_frontier_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage) -> None:
    """A file that was cut, is gone or has changed: none is given, and the log says where."""
    damage(next(kept(tmp_path).rglob(name)))

    with caplog.at_level(logging.WARNING):
        assert read_frontier(tmp_path, HASH, BATCH) is None

    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("machine", {"node": "another"}, "another machine"),
        ("parent", "b" * 64, "not the one"),
        ("schema_version", 2, "not the one"),
        ("weights", [], "lacks weights"),
    ],
)
def test_a_frontier_of_something_else_is_left_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: object, said: str
) -> None:
    """Times of another machine or runtime mean nothing here; nor does a newer form."""
    path = kept(tmp_path) / FACTS
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))

    with caplog.at_level(logging.WARNING):
        assert read_frontier(tmp_path, HASH, BATCH) is None

    assert said in caplog.text


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_kill_between_two_files_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """The frontier before stays whole, the half one is never seen, and the next opening of the store removes it."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.bundle_folder(HASH).mkdir()
        kept(root)
    made = 0

    def killed(_file: int) -> None:
        nonlocal made
        made += 1
        if made > files:
            raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        kept(root, 6.0)
    monkeypatch.undo()

    read = read_frontier(root, HASH, BATCH)
    assert read is not None
    assert read.created_seconds == 5.0
    Store.open(root).close()
    assert [path.name for path in (root / FRONTIERS / HASH).iterdir()] == [str(BATCH)]
    assert len(list((root / FRONTIERS / HASH / str(BATCH)).iterdir())) == 2
    assert read_frontier(root, HASH, BATCH) == read


def test_a_kill_before_there_is_any_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next opening of the store removes what has no facts."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.bundle_folder(HASH).mkdir()

    def killed(_file: int) -> None:
        raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        kept(root)
    monkeypatch.undo()
    Store.open(root).close()

    assert list((root / FRONTIERS / HASH).iterdir()) == []


def test_whoever_reads_while_one_is_replaced_finds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one until the new one is whole; never none."""
    kept(tmp_path)
    seen: list[float] = []
    durable = os.fsync

    def looked(file: int) -> None:
        durable(file)
        if (read := read_frontier(tmp_path, HASH, BATCH)) is None:
            raise KilledError
        seen.append(read.created_seconds)

    monkeypatch.setattr(os, "fsync", looked)
    kept(tmp_path, 6.0)

    assert seen == sorted(seen)
    assert set(seen) == {5.0, 6.0}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With what to do; nothing half-done is left, and the frontier before is still there."""

    def refused(_file: int) -> None:
        raise OSError(number, os.strerror(number))

    for created in (None, 5.0):
        if created is not None:
            kept(tmp_path, created)
        monkeypatch.setattr(os, "fsync", refused)
        with pytest.raises(ExhaustedError if number == errno.ENOSPC else PrunewatchError, match=r"full|denied") as told:
            kept(tmp_path, 6.0)
        monkeypatch.undo()

        read = read_frontier(tmp_path, HASH, BATCH)
        assert told.value.hint
        assert (read and read.created_seconds) == created
        assert len(list((tmp_path / FRONTIERS / HASH).rglob("*"))) == (0 if created is None else 6)


# In a store


def bundle_of(detector: Fitted) -> Bundle:
    """The parent as version 1 of `pump`."""
    lineage = Lineage(cause="fit", seed=0, data_rows=len(RECENT), data_first_stamp=0, data_last_stamp=len(RECENT) - 1)
    return to_bundle(detector, detector="pump", version=1, device_class="parent", lineage=lineage)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with the parent as the detector `pump`, its history, and its frontier at a batch of 64."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        config = DetectorConfig(features=list(FOUR), device_classes=["hub", "pi4"], gate=GENEROUS)
        store.catalog.create_detector("pump", config.model_dump(mode="json"), list(FOUR))
        bundle = bundle_of(parent())
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        sizes = {"p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.1, "version": 1, "hash": bundle.hash}
        publish_fit(store, "pump", {"parent": sizes})
        store.history("pump").add_points(np.arange(len(RECENT)), RECENT)
        known = replace(built().facts, parent=replace(built().facts.parent, version=1, hash=bundle.hash))
        write_frontier(root, bundle.hash, known, [save(child) for child in built().children], 5.0)
    return root


def prunewatch(*arguments: object) -> str:
    """Runs a command line that must end well; gives what it printed."""
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(it) for it in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def prune(root: Path, place: int, device_class: str, *more: object) -> dict:
    """Prunes to what a child of the frontier needs."""
    size = below(place).size_bytes
    limits = ("--size", f"{size}B", "--batch", BATCH, "--device-class", device_class)
    return json.loads(prunewatch("prune", "pump", *limits, "--store", root, "--json", *more))


@pytest.mark.slow
def test_one_parent_serves_two_device_classes_and_a_looser_budget_gets_a_wider_child(root: Path) -> None:
    """All picked from one frontier, all with the same parent in their lineage, and with the units that they keep."""
    points = built().facts.points

    made = [prune(root, place, it) for place, it in ((0, "hub"), (-1, "pi4"), (0, "pi4"))]

    with Store.open(root) as store:
        manifests = [store.read_bundle(it["child"]["hash"]).manifest for it in made]
        serving = {it.device_class: it.version for it in store.catalog.all_serving("pump")}
        parents = {version.parent_hash for version in store.catalog.versions("pump")}
    assert [it["child"]["units"] for it in made] == [points[0].units, points[-1].units, points[0].units]
    assert {it.lineage.parent for it in manifests} == parents == {bundle_of(parent()).hash}
    assert [it.lineage.kept for it in manifests] == [points[0].kept, points[-1].kept, points[0].kept]
    assert {(it.lineage.criterion, it.lineage.cause, it.lineage.seed) for it in manifests} == {("taylor", "prune", 0)}
    assert serving == {"hub": 2, "pi4": 4}
    assert all("frontier" in it["stages"] and "fine-tune" not in it["stages"] for it in made)


@pytest.mark.slow
def test_a_fresh_cycle_does_not_pick(root: Path) -> None:
    """`--fresh` runs a whole one."""
    made = prune(root, -1, "hub", "--fresh")

    assert "frontier" not in made["stages"]
    assert "fine-tune" in made["stages"]


def test_a_child_that_was_picked_is_told_as_such(root: Path) -> None:
    """With its place on the frontier."""
    told = prunewatch("prune", "pump", "--size", f"{below(-1).size_bytes}B", "--batch", BATCH, "--store", root)

    assert f"Picked from the frontier: child {len(built().facts.points)} of {len(built().facts.points)}." in told


def test_a_frontier_goes_with_its_detector(root: Path) -> None:
    """Deleting the detector deletes it; one whose parent is not there is swept when the store is opened."""
    kept(root)
    Store.open(root).close()

    assert [path.name for path in (root / FRONTIERS).iterdir()] == [bundle_of(parent()).hash]
    prunewatch("delete", "pump", "--yes", "--store", root)
    assert list((root / FRONTIERS).iterdir()) == []


def test_a_kept_frontier_is_shown_at_once(root: Path, tmp_path: Path) -> None:
    """As a table with a row for each child, as JSON, and as a picture whose text can be searched."""
    asked = ("frontier", "pump", "--batch", BATCH, "--store", root)
    out = tmp_path / "pump.svg"

    told, shown = prunewatch(*asked), json.loads(prunewatch(*asked, "--json"))
    prunewatch(*asked, "--plot", out)

    points = built().facts.points
    assert [it["units"] for it in shown["points"]] == [it.units for it in points]
    assert (shown["name"], shown["device_class"], shown["batch"], shown["created_seconds"]) == ("pump", "hub", 64, 5.0)
    assert shown["parent"]["hash"] == bundle_of(parent()).hash
    assert told.count("layer0") == len(points) + 1
    assert "children of version 1" in told
    picture = out.read_text()
    assert all(text in picture for text in ("pump on hub", "parent", "error, times the parent's", "alarms shared"))


@pytest.mark.slow
def test_a_frontier_is_built_where_there_is_none_and_kept(root: Path) -> None:
    """Also in the place of a damaged one and with `--rebuild`; the next call shows what was built."""
    asked = ("frontier", "pump", "--batch", 1, "--points", 1, "--store", root, "--json")

    first = json.loads(prunewatch(*asked))
    again = json.loads(prunewatch("frontier", "pump", "--batch", 1, "--store", root, "--json"))
    rebuilt = json.loads(prunewatch(*asked, "--rebuild"))

    assert [it["units"] for it in first["points"]] == [{"layer0": 8, "layer1": 8}]
    assert again == first
    assert rebuilt["created_seconds"] > first["created_seconds"]
    assert rebuilt["points"][0]["units"] == first["points"][0]["units"]
    assert first["parent"]["version"] == 1


@pytest.mark.parametrize("option", ["--data", "--points", "--seed"])
def test_how_a_kept_frontier_should_be_built_is_not_ignored(root: Path, option: str) -> None:
    """Refused, with what to do: what would be shown may have been built otherwise."""
    done = CliRunner().invoke(app, ["frontier", "pump", "--batch", str(BATCH), "--store", str(root), option, "3"])

    assert isinstance(done.exception, InvalidInputError)
    assert done.exception.field == option
    assert "--rebuild" in done.exception.hint


@pytest.mark.parametrize("command", [["frontier", "pump"], ["prune", "pump", "--speedup", "2"]])
def test_the_batch_of_another_class_is_not_guessed(root: Path, command: list[str]) -> None:
    """Only a server knows it: without one it must be said."""
    done = CliRunner().invoke(app, [*command, "--device-class", "pi4", "--store", str(root)])

    assert isinstance(done.exception, InvalidInputError)
    assert (done.exception.field, "--batch 1" in done.exception.hint) == ("--batch", True)


def test_a_server_builds_from_its_own_points(root: Path, tmp_path: Path) -> None:
    """A file can not be sent along: refused, with the reason."""
    done = CliRunner().invoke(app, ["frontier", "pump", "--data", "x.csv", "--server", "127.0.0.1:1"])

    assert isinstance(done.exception, InvalidInputError)
    assert "points that it has kept" in str(done.exception)


@pytest.mark.slow
async def test_a_server_builds_a_frontier_and_picks_from_it(tmp_path: Path) -> None:
    """None at first, with what to do; then as an operation, over the command line and in a cycle; not where fresh."""
    hub = Hub(hub_settings(tmp_path))
    await hub.start()
    await publish(hub, bundle_of(parent()), gate=GENEROUS)
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.score("pump", values=RECENT, stamps=NOW + np.arange(len(RECENT)) * 10**9)
        with pytest.raises(ServiceError, match="prunewatch frontier") as none:
            await client.frontier("pump", batch=BATCH)
        with pytest.raises(ServiceError, match="between 1 and 32"):
            await client.build_frontier("pump", points=33)
        asked = ("frontier", "pump", "--batch", BATCH, "--points", 1, "--server", f"127.0.0.1:{hub.listener.port}")
        told = json.loads(await asyncio.to_thread(prunewatch, *asked, "--json"))
        shown = await client.frontier("pump", batch=BATCH)
        limits = {"size_bytes": shown["points"][-1]["bytes"] + 500, "batch": BATCH}
        known = {"features": FOUR, "stamps": np.arange(len(RECENT)), "values": RECENT}  # its parent has learned these
        picked, fresh = [
            await client.wait_operation(await client.prune("pump", **limits, **known, dry_run=True, fresh=fresh))
            for fresh in (False, True)
        ]
    served = hub.host.get("pump").served
    await hub.stop()

    assert none.value.code == "NOT_FOUND"
    assert told == shown
    assert [it["units"] for it in shown["points"]] == [{"layer0": 8, "layer1": 8}]
    assert "from the frontier" in picked["reason"]
    assert "from the frontier" not in fresh["reason"]
    assert served is not None
    assert served.version == 1


async def test_a_frontier_that_can_not_be_built_changes_nothing(hub: Hub, client: Client) -> None:
    """The operation says why; the detector goes on, no cycle is in the book, and the next job is taken."""
    await publish(hub, ewma_bundle("pump"))
    with pytest.raises(ServiceError, match="has seen no points"):
        await client.build_frontier("pump")
    await client.score("pump", values=np.zeros((50, 2)), stamps=NOW + np.arange(50) * 10**9)
    with pytest.raises(ServiceError, match="too few points"):
        await client.wait_operation(await client.build_frontier("pump", seed=REFUSE))
    with pytest.raises(ServiceError, match="without a result"):
        await client.wait_operation(await client.build_frontier("pump", seed=CRASH))

    assert (await client.get("pump"))["state"] == "ready"
    assert await client.cycles("pump") == []
    assert not hub.maintenance.is_busy("pump")
    assert (await client.wait_operation(await client.prune("pump", speedup=2)))["outcome"] == "adopted"
