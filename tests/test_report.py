"""What a cycle reports of the child that it built, and how `prunewatch report` tells it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import SMALL, fitted, machine, untrained
from graphs import ewma_bundle
from matplotlib.text import Text
from rich.console import Console
from serving import served

from detectors.bundle import write_bundle
from detectors.training.calibrate import Scaler
from detectors.training.fit import chunks_over
from detectors.training.fitted import Fitted, calibrated
from detectors.training.networks import Network
from detectors.training.networks.autoencoder import Autoencoder
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.groups import prunable
from pruning.injection import KINDS
from pruning.report import correlations, explained, group_costs, removed, report_on
from pruning.sensors import EVENTS, MOST_SENSORS, _Asked, scores_without, sensors, trials
from pruning.structures import Structure, origins, restructured
from pruning.surgery import remove
from pruning.table import Cost, Level, NoTables, Table
from server.cli import main
from server.commands.frontier_plot import figure_of, unbeaten
from server.commands.progress import lines
from server.commands.tables import gate_table, plan_table, plan_text, stamp_text
from server.config import DetectorConfig
from server.publish import publish_fit
from server.store import Store

HELD_OUT = Stretches.of([machine(500, seed=5)])
STRANGE = "[red]b\x1b"


def halved(fitted_: Fitted, structure: Structure | None = None) -> tuple[Fitted, dict[str, list[int]], Structure]:
    """A child with every second unit of each group that may lose some, what it kept, and what was done before."""
    structure = structure or Structure()

    def chunks(member: Network) -> Lanes | Windows:
        return chunks_over(HELD_OUT, fitted_.scaler, member, 0)

    base = restructured(fitted_.network, structure, chunks)
    keep = {group.name: torch.arange(0, group.width, 2) for group in prunable(base)}
    names = origins(fitted_.network, structure)
    kept = {names[group.name]: keep.get(group.name, torch.arange(group.width)).tolist() for group in base.groups()}
    child = fitted_.with_network(
        base.with_members(
            {
                name: remove(member, {full.removeprefix(f"{name}."): it for full, it in keep.items() if full in mine})
                for name, member in base.members.items()
                for mine in [{f"{name}.{group.name}" if name else group.name for group in member.groups()}]
            }
        )
    )
    return child.recalibrated(HELD_OUT), {**kept, **{name: [] for name in structure.without}}, structure


def report(fitted_: Fitted, structure: Structure | None = None) -> dict:
    """The report of a halved child."""
    child, kept, done = halved(fitted_, structure)
    return report_on(fitted_, child, kept, done, HELD_OUT, criterion="taylor", seed=0, batch=16, tables=NoTables())


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_kind_of_network_is_reported_as_json(kind: str) -> None:
    """Units that are gone are those that were not kept, each with a share of the importance; no number is missing."""
    parent = fitted(kind)
    _, kept, _ = halved(parent)
    made = json.loads(json.dumps(report(parent), allow_nan=False))

    assert [it["group"] for it in made["removed"]] == list(parent.network.units)
    for it in made["removed"]:
        gone = sorted(set(range(it["before"])) - set(kept[it["group"]]))
        rest = it["rest"] or {"units": 0, "share": 0}
        assert (it["removed"], it["after"]) == (gone, len(kept[it["group"]]))
        assert it["how"] == ("units removed" if gone else "kept")
        assert len(it["units"]) + rest["units"] == len(gone)
        assert {unit["unit"] for unit in it["units"]} <= set(gone)
        shares = [unit["share"] for unit in it["units"]]
        assert shares == sorted(shares, reverse=True)
        assert it["share"] == pytest.approx(sum(shares) + rest["share"], abs=1e-5)
        assert 0 <= it["share"] <= 1
        for unit in it["units"]:
            assert 0 <= unit["explained"] <= 1
            assert len({each["feature"] for each in unit["responds_to"]} & set(parent.features)) == 3
    for cost in made["cost"]["groups"]:
        was, now = cost["parameters"]["before"], cost["parameters"]["after"]
        assert was >= now > 0
        assert cost["step_seconds"] is None
    assert made["sensors"]["skipped"] is None
    assert {it["feature"] for it in made["sensors"]["features"]} == set(parent.features)


def test_a_forest_is_said_to_be_untrained_and_counts_no_padding() -> None:
    """Its group has the parameters of the whole network, its criterion is its own."""
    parent = fitted("isolation_forest")
    made = report(parent)

    (trees,) = made["removed"]
    (cost,) = made["cost"]["groups"]
    assert (trees["trained"], trees["criterion"]) == (False, "agreement")
    assert cost["parameters"] == made["cost"]["parameters"]
    assert cost["parameters"]["before"] == parent.network.parameters_count
    assert report(fitted("lstm"))["removed"][0]["trained"]


def test_a_bypassed_layer_is_said_as_such() -> None:
    """All its units are gone and it costs nothing any more; the layer that it read says how much of it is left."""
    made = report(fitted("lstm"), Structure(("layer1",)))

    first, second = made["removed"]
    assert (first["how"], second["how"]) == ("units removed", "layer bypassed")
    assert (second["after"], second["removed"]) == (0, list(range(16)))
    assert second["share"] == pytest.approx(1)
    assert made["cost"]["groups"][1]["parameters"]["after"] == 0
    assert made["cost"]["groups"][0]["parameters"]["after"] > 0


def test_a_pulled_lever_is_said_as_such() -> None:
    """With its value before and after."""
    made = report(fitted("conv_autoencoder"), Structure((), (("window", 8),)))

    assert made["levers"] == [{"lever": "window", "before": 9, "after": 8}]


@cache
def constructed() -> tuple[Fitted, Stretches]:
    """An autoencoder over independent noise whose first units are known to copy features.

    Unit 0 is the newest value of `f1`, 1 the same again, 2 the newest of `f2` with its sign turned, 3 the mean of `f0`
    over the window, 4 nothing, 5 the oldest value of `f2`. A bias of 20 keeps them all in the linear part.
    """
    points = Stretches.of([np.random.default_rng(0).normal(size=(3000, 3))])
    window, n_features = 4, 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        units = {"encoder0": 6, "bottleneck": 2, "decoder0": 6}
        network = Autoencoder.build(n_features, units, {"window": window})
    weights = torch.zeros(6, window, n_features)
    weights[0, -1, 1] = weights[1, -1, 1] = 1
    weights[2, -1, 2] = -1
    weights[3, :, 0] = 1
    weights[5, 0, 2] = 1
    with torch.no_grad():
        network.layers["encoder0"].weight.copy_(weights.flatten(1))
        network.layers["encoder0"].bias.fill_(20.0)
    return calibrated(network, ("f0", "f1", "f2"), Scaler.fit(points.rows), points), points


def gone(unit: int, *others: int) -> dict:
    """What is said of a unit of `constructed` when it is removed, with others."""
    parent, points = constructed()
    kept = {
        "encoder0": [i for i in range(6) if i not in {unit, *others}],
        "bottleneck": [0, 1],
        "decoder0": list(range(6)),
    }
    (encoder, *_) = removed(parent, kept, points, "l2", 0)
    return next(it for it in encoder["units"] if it["unit"] == unit)


@pytest.mark.parametrize(
    ("unit", "feature", "of", "correlation"),
    [(0, "f1", "value", 1), (2, "f2", "value", -1), (3, "f0", "window mean", 1)],
)
def test_units_are_told_by_the_feature_that_they_copy(unit: int, feature: str, of: str, correlation: int) -> None:
    """The closest feature, its newest value or its mean, with the sign; others are far from it."""
    closest, second, _ = gone(unit)["responds_to"]

    assert (closest["feature"], closest["of"]) == (feature, of)
    assert closest["correlation"] == pytest.approx(correlation, abs=1e-3)
    assert abs(second["correlation"]) < 0.15


def test_what_kept_units_can_say_is_told_from_what_is_lost() -> None:
    """R^2 is one for a copy of a kept unit and for a constant, and next to none for what nobody else says."""
    assert gone(1)["explained"] == pytest.approx(1, abs=1e-2)
    assert gone(0, 1)["explained"] < 0.05
    assert gone(4)["explained"] == 1


def test_what_a_unit_says_is_measured_without_its_sign() -> None:
    """The mean of |output|: a bias of twenty, and what stands still follows no feature."""
    still = gone(4)

    assert still["mean_output"] == pytest.approx(20, abs=1e-4)
    assert {it["correlation"] for it in still["responds_to"]} == {0}


def test_correlations_are_pearsons() -> None:
    """As numpy has them."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    found = correlations(torch.from_numpy(values[:, 0]), torch.from_numpy(values[:, 1:]))

    np.testing.assert_allclose(found.numpy(), np.corrcoef(values.T)[0, 1:], rtol=1e-9)


def test_explained_is_that_of_least_squares() -> None:
    """R^2 of a target with known noise."""
    rng = torch.Generator().manual_seed(0)
    by = torch.randn(20_000, 3, generator=rng)
    target = by @ torch.tensor([[1.0], [2.0], [-2.0]]) + 3 * torch.randn(20_000, 1, generator=rng)

    assert explained(by, target).item() == pytest.approx(0.5, abs=0.02)


def test_costs_of_groups_come_from_their_tensors_and_from_the_table() -> None:
    """By hand for one layer of an LSTM; time is that of the nearest level above the group's narrowest width."""
    parent = untrained("lstm", 4, layers=1, width=16)
    child, _, done = halved(parent)

    def level(width: int, offset: float) -> Level:
        costs = {it: Cost(offset + it * 1e-6, 1.0, 0) for it in (8, 16)}
        return Level({"layer0": width}, costs[width], {"layer0": costs})

    (cost,) = group_costs(parent.network, child.network, done, Table((level(16, 1e-3), level(8, 2e-3))))

    def numbers(width: int) -> int:  # gates read 4 features and h, two biases; the head reads h
        return 4 * width * (4 + width + 2) + 4 * width

    assert cost["parameters"] == {"before": numbers(16), "after": numbers(8)}
    assert cost["bytes"] == {"before": 4 * numbers(16), "after": 4 * numbers(8)}
    assert cost["step_seconds"]["before"] == pytest.approx(8e-6)
    assert cost["step_seconds"]["after"] == pytest.approx(0)


# sensors


def test_trials_say_which_sensors_an_anomaly_is_on() -> None:
    """Sensors that are not named go on as they were; where nothing is labelled, all do; every kind has its turn."""
    ramp = np.arange(600.0)[:, None] + 1000 * np.arange(4)
    drawn = trials(Stretches.of([ramp]), 20, EVENTS[1], np.random.default_rng(0))
    steady = np.isclose(np.diff(drawn.points, axis=1), 1)

    assert len(drawn.points) == EVENTS[1] == 4 * len(KINDS)
    assert drawn.labels.any(axis=1).all()
    assert not drawn.labels[:, :20].any()
    assert ((drawn.disturbed.sum(axis=1) >= 1) & (drawn.disturbed.sum(axis=1) < 4)).all()
    events, features = np.nonzero(~drawn.disturbed)
    assert steady[events, :, features].all()
    events, features = np.nonzero(drawn.disturbed)
    assert not steady[events, :, features].all(axis=1).any()
    unlabelled = ~(drawn.labels[:, 1:] | drawn.labels[:, :-1])
    assert steady[unlabelled].all()


def test_trials_of_a_detector_that_scores_seldom_ask_about_all_points_since_the_last() -> None:
    """What lies between two points that have a score is in the label of the second."""
    child, normal = untrained("autoencoder", 4, stride=5), Stretches.of([machine(900)])
    drawn = trials(normal, child.warm_up_points, 36, np.random.default_rng(0))

    asked = _Asked.of(child, normal, drawn)

    last = drawn.labels.shape[1] // 5 * 5
    wanted = drawn.labels[:, :last].reshape(36, -1, 5).any(axis=2)
    assert np.array_equal(asked.drawn.labels[:, 4:last:5], wanted)
    assert not np.array_equal(drawn.labels[:, 4:last:5], wanted)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "ensemble"])
def test_without_a_sensor_nothing_of_it_is_left(kind: str) -> None:
    """Whatever it shows, the scores are the same; and they are scores where the detector has any."""
    child = fitted(kind)
    points = machine(150)[None]
    other = points.copy()
    other[:, :, 2] += np.random.default_rng(0).normal(size=other.shape[:2]) * 5
    before, after = (scores_without(child, it, [2], np.zeros(4, np.float32)) for it in (points, other))

    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(np.isfinite(before), np.isfinite(child.trace(points).score))
    assert np.nanmax(np.abs(child.trace(points).score - child.trace(other).score)) > 0.5


def test_the_only_sensor_that_shows_something_is_not_suggested() -> None:
    """Of two that tell the same and one that tells of its own, the third is missed most."""
    rng = np.random.default_rng(0)
    t = np.arange(1500)
    wave, own = np.sin(t / 6), np.sin(t / 11)
    rows = np.stack([wave, wave, own], axis=1) + 0.02 * rng.normal(size=(1500, 3))
    child = fitted_on(rows)
    table = sensors(child, Stretches.of([rows]), 0)

    assert 0 < table["average_precision"] <= 1
    changes = {it["feature"]: it["change"] for it in table["features"]}
    assert list(changes.values()) == sorted(changes.values(), reverse=True)
    assert changes["f2"] < 0
    assert not next(it for it in table["features"] if it["feature"] == "f2")["suggested"]


def test_sensors_are_suggested_that_could_go_together() -> None:
    """Of many that tell the same each alone is not missed, but all of them at once are."""
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(1500) / 6)[:, None] + 0.02 * rng.normal(size=(1500, 12))
    child = fitted_on(rows)
    table = sensors(child, Stretches.of([rows]), 0)
    spare = [it for it in table["features"] if it["suggested"]]

    assert all(it["change"] >= -0.01 for it in spare)
    assert table["features"][: len(spare)] == spare
    assert len(spare) < 12


def fitted_on(rows: np.ndarray) -> Fitted:
    """A small forecaster of these rows."""
    from detectors.training.fit import FitOptions, fit

    names = tuple(f"f{i}" for i in range(rows.shape[1]))
    options = {"layers": 1, "width": 16}
    return fit("lstm", Stretches.of([rows]), names, seed=0, options=options, how=FitOptions(updates=150))


@pytest.mark.parametrize(
    ("n_features", "says"), [(1, "only one sensor"), (MOST_SENSORS + 1, f"more than {MOST_SENSORS}")]
)
def test_sensors_are_left_out_where_there_is_nothing_to_choose_or_too_much(n_features: int, says: str) -> None:
    """And it is said."""
    child = untrained("lstm", n_features, layers=1)
    table = sensors(child, Stretches.of([np.zeros((400, n_features))]), 0)

    assert says in table["skipped"]
    assert table["features"] == []
    assert "never automatic" in table["note"]


def test_the_same_seed_gives_the_same_table() -> None:
    """Another seed gives other anomalies."""
    child = fitted("gru")

    assert sensors(child, HELD_OUT, 1) == sensors(child, HELD_OUT, 1)
    assert sensors(child, HELD_OUT, 1) != sensors(child, HELD_OUT, 2)


# the command


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        return (code_of(*arguments), *capsys.readouterr())

    return run


def code_of(*arguments: object) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `wave`: cycle 1 adopted a child, cycle 2 was below the floor."""
    folder = tmp_path_factory.mktemp("report")
    rng, t = np.random.default_rng(0), np.arange(800)
    values = np.column_stack([np.sin(t / 9), np.cos(t / 15), np.sin(t / 9) * np.cos(t / 15)])
    values += rng.normal(scale=0.1, size=values.shape)
    rows = [f"{i}," + ",".join(f"{value:.5f}" for value in row) for i, row in enumerate(values)]
    (folder / "waves.csv").write_text("\n".join([f"t,a,{STRANGE},c", *rows]) + "\n")
    (folder / "small.yaml").write_text(
        "detectors: {wave: {options: {width: 16, layers: 1}, "
        "gate: {error_ratio: 100, alarm_jaccard: 0, tail_agreement: -1, injected_drop: 1}}}"
    )
    where = ("--store", folder / "store")
    assert code_of("fit", "wave", "--data", folder / "waves.csv", "--config", folder / "small.yaml", *where) == 0
    assert code_of("prune", "wave", "--size", "6KiB", *where) == 0
    assert code_of("prune", "wave", "--speedup", 500, *where) == 3
    return folder / "store"


KEYS = {
    *("detector", "time", "cycle", "device_class", "trigger", "cause", "started_seconds", "ended_seconds"),
    *("outcome", "reason", "adoption", "adoption_reason"),
    *("lineage", "parent", "child", "best_reachable", "plan", "gate", "removed", "levers", "cost", "sensors", "stages"),
}


@pytest.mark.slow
def test_the_newest_child_is_reported(prunewatch, pruned: Path) -> None:
    """As JSON with keys that stay: lineage, plan, what was removed, costs, gate, sensors and stages."""
    code, out, err = prunewatch("report", "wave", "--json", "--store", pruned)
    made = json.loads(out)
    shown = json.loads(prunewatch("show", "wave", "--json", "--store", pruned)[1])["versions"][1]

    assert code == 0, err
    assert made.keys() == KEYS
    assert (made["cycle"], made["outcome"], made["device_class"]) == (1, "adopted", "hub")
    lineage = made["lineage"]
    assert (lineage["parent_hash"], lineage["parent_version"]) == (shown["parent"]["hash"], 1)
    assert (lineage["child_hash"], lineage["child_version"]) == (shown["children"]["hub"]["hash"], 2)
    assert (lineage["criterion"], lineage["seed"]) == ("taylor", 0)
    assert (lineage["data_rows"], lineage["data_first_stamp"]) == (800, 0)
    assert lineage["data_last_stamp"] > 0
    (layer,) = made["removed"]
    assert made["plan"]["groups"]["layer0"]["after"] == layer["after"] < layer["before"] == 16
    assert made["child"]["units"] == {"layer0": layer["after"]}
    assert made["cost"]["groups"][0]["step_seconds"]["before"] >= 0
    assert made["cost"]["parameters"]["after"] == made["child"]["parameters"]
    assert made["gate"]["checks"]["size"]["limit"] == 6 << 10
    assert {it["feature"] for it in made["sensors"]["features"]} == {"a", STRANGE, "c"}
    assert made["stages"]["report"] > 0


@pytest.mark.slow
def test_the_report_can_be_read(prunewatch, pruned: Path) -> None:
    """All of it as tables; names that others chose are shown as they are, without what a terminal would obey."""
    code, out, err = prunewatch("report", "wave", "--store", pruned)

    assert code == 0, err
    for word in (
        "wave, hub: cycle 1 of",
        "(manual): adopted as version 2",
        "units chosen by taylor, seed 0, 800 points from",
        "units before -> after",
        "Stages: layer0",
        "units removed, by taylor",
        "others",
        "time of a step",
        "injected",
        "never automatic",
        "fine-tune",
        "[red]b\ufffd",
    ):
        assert word in out, word
    assert "\x1b" not in out


@pytest.mark.slow
def test_a_cycle_can_be_named(prunewatch, pruned: Path) -> None:
    """A rejected one too: what could be reached is told, what was not built is not known."""
    code, out, _ = prunewatch("report", "wave", "--cycle", 2, "--json", "--store", pruned)
    made = json.loads(out)

    assert (code, made["outcome"], made.keys()) == (0, "rejected", KEYS)
    assert made["best_reachable"]["units"]
    assert (made["removed"], made["gate"], made["lineage"]["child_hash"]) == (None, None, None)
    assert "500 times as fast" in prunewatch("report", "wave", "--cycle", 2, "--store", pruned)[1]
    code, _, err = prunewatch("report", "wave", "--cycle", 9, "--store", pruned)
    assert (code, "The newest are: 2, 1" in err) == (2, True)
    code, _, err = prunewatch("report", "wave", "--device-class", "pi4", "--store", pruned)
    assert (code, "not been pruned for 'pi4'" in err) == (2, True)


@pytest.fixture
def server(pruned: Path, tmp_path: Path):
    """The address of `prunewatch serve` on a copy of the store, in a process of its own."""
    with served(shutil.copytree(pruned, tmp_path / "store"), tmp_path / "server.log") as address:
        yield address


@pytest.mark.slow
def test_a_server_reports_as_the_store_does(prunewatch, pruned: Path, server: str) -> None:
    """The same object, stages and data included; and a dry run there has the keys and the plan of one here."""
    local = json.loads(prunewatch("report", "wave", "--json", "--store", pruned)[1])
    code, out, err = prunewatch("report", "wave", "--json", "--server", server)
    assert code == 0, err
    far = json.loads(out)
    stamps = ("started_seconds", "ended_seconds")
    assert [far.pop(key) for key in stamps] == pytest.approx([local.pop(key) for key in stamps])
    assert far == local
    code, out, _ = prunewatch("report", "wave", "--cycle", 2, "--server", server)
    assert (code, "500 times as fast" in out) == (0, True)

    dry = ("prune", "wave", "--size", "6KiB", "--dry-run", "--json")
    there, here = (json.loads(prunewatch(*dry, *at)[1]) for at in (("--server", server), ("--store", pruned)))
    assert there.keys() == here.keys()
    assert there["plan"]["groups"] == here["plan"]["groups"]


@pytest.mark.slow
def test_a_dry_run_shows_the_plan(prunewatch, pruned: Path) -> None:
    """As a table: group, units before and after, the rise of the loss, stages and time; nothing has changed."""
    code, out, err = prunewatch("prune", "wave", "--size", "6KiB", "--dry-run", "--store", pruned)

    assert code == 0, err
    for word in ("units before -> after", "rise of the loss before training", "16 -> 8", "Stages: layer0 8;", "p50"):
        assert word in out, word


def older(root: Path, result: Mapping[str, object], outcome: str = "adopted") -> None:
    """A store with `pump` and one cycle that ended so."""
    with Store.open(root) as store:
        store.catalog.create_detector("pump", DetectorConfig().model_dump(mode="json"))
        bundle = ewma_bundle("pump", 1, device_class="parent")
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        facts = {"hash": bundle.hash, "version": 1, "units": {"lstm0": 2}, "parameters": 3, "bytes": bundle.size}
        parent = {**facts, "p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.5}
        publish_fit(store, "pump", {"parent": parent, "rows": 10})
        cycle = store.catalog.begin_cycle("pump", "hub", "manual")
        store.catalog.end_cycle(cycle, outcome, "", {"parent": parent, **result})


def test_cycles_of_older_versions_say_what_is_known(prunewatch, tmp_path: Path) -> None:
    """Sizes and gate; and that what was removed is not known."""
    child = {"hash": "0" * 64, "version": 2, "units": {"lstm0": 1}, "parameters": 2, "bytes": 9, "error": 0.5}
    check = {"value": 1.1, "limit": 1.5, "passed": True, "detail": "the error is fine"}
    result = {
        "child": {**child, "p50_seconds": 1e-4, "p99_seconds": 2e-4},
        "gate": {"passed": True, "checks": {"error": check}},
    }
    older(tmp_path / "store", result)
    code, out, err = prunewatch("report", "pump", "--store", tmp_path / "store")

    assert code == 0, err
    for word in ("adopted as version 2", "100us", "an older version ran this cycle", "the error is fine"):
        assert word in out, word
    made = json.loads(prunewatch("report", "pump", "--json", "--store", tmp_path / "store")[1])
    assert made.keys() == KEYS
    assert (made["plan"], made["lineage"]["seed"]) == (None, None)


def test_a_detector_without_a_child_says_what_to_do(prunewatch, tmp_path: Path) -> None:
    """No cycle at all, or none that built anything; and a detector that is not there."""
    older(tmp_path / "store", {}, "failed")
    code, _, err = prunewatch("report", "pump", "--store", tmp_path / "store")
    assert (code, "no cycle has built a child" in err, "--cycle 1" in err) == (2, True, True)
    assert "the newest, 1, failed." in err
    assert "(manual): failed" in prunewatch("report", "pump", "--cycle", 1, "--store", tmp_path / "store")[1]
    with Store.open(tmp_path / "store") as store:
        store.catalog.end_cycle(store.catalog.begin_cycle("pump", "hub", "manual"), "failed", "it was interrupted")
    code, out, err = prunewatch("report", "pump", "--cycle", 2, "--store", tmp_path / "store")
    assert (code, err) == (0, "")
    assert "(manual): failed: it was interrupted" in out
    assert "nothing else is known" in out
    code, _, err = prunewatch("report", "pum", "--store", tmp_path / "store")
    assert (code, "There are: pump" in err) == (2, True)

    with Store.open(tmp_path / "store") as store:
        store.catalog.create_detector("valve", DetectorConfig().model_dump(mode="json"))
    code, _, err = prunewatch("report", "valve", "--store", tmp_path / "store")
    assert (code, "prunewatch prune valve --speedup 4" in err) == (2, True)


# the tables


def test_groups_stand_in_the_order_of_the_parent() -> None:
    """A server sends objects sorted by key; levers and layers of the plan stay as they are."""
    result = planned({"decoder0": 8, "encoder0": 4}, order=("encoder0", "decoder0"))

    shown = list(plan_table(result["plan"], result["parent"]["units"]).columns[0].cells)

    assert shown == ["encoder0", "decoder0"]
    assert plan_text(result).startswith("Stages: encoder0 4, decoder0 8; 10 updates.")


def test_a_child_of_a_frontier_has_its_number_for_stages() -> None:
    """It was not made by this cycle."""
    result = planned({"layer0": 8})
    result["plan"]["frontier"] = {"point": 3, "points": 8, "seed": 0}

    assert plan_text(result).startswith("Child 3 of 8 of the frontier. p50 2ms -> 1ms.")


def test_what_is_not_trained_loses_importance() -> None:
    """Trees alone, and trees beside a network."""
    result = planned({"trees": 8})

    table = plan_table(result["plan"], untrained=["trees"])
    both = plan_table(planned({"a.layer0": 8, "b.trees": 8})["plan"], untrained=["b.trees"])

    assert (table.columns[2].header, list(table.columns[2].cells)) == ("importance lost", ["50.0%"])
    assert plan_text(result, ["trees"]) == (
        "Stages: trees 8; nothing is trained. p50 2ms -> 1ms. Importance lost 50.0%."
    )
    assert list(both.columns[2].cells) == ["+50.0%", "50.0% of its importance"]


def planned(after: Mapping[str, int], order: tuple[str, ...] = ()) -> dict:
    """A result of a cycle that leaves these widths of sixteen units, at half the time."""
    return {
        "parent": {"units": dict.fromkeys(order or after, 16), "p50_seconds": 2e-3},
        "child": {"units": dict(after), "p50_seconds": 1e-3},
        "plan": {
            "groups": {name: {"before": 16, "after": width, "damage": 0.5} for name, width in after.items()},
            "without": [],
            "levers": {},
            "damage": 0.5,
            "stages": [dict(after)],
            "updates": 10,
        },
    }


def test_the_gate_shows_both_limits_of_a_range_and_what_a_value_is() -> None:
    """In the order of the gate, whatever order they come in."""
    checks = {
        "alarm rate": {"value": 0.98, "limit": 0.5, "passed": True, "detail": "0.98 times as many (limits 0.5 to 2)"},
        "injected": {"value": -0.01, "limit": -0.02, "passed": True, "detail": "changes by -0.003 (limit -0.02)"},
        "error": {"value": 1.2, "limit": 1.5, "passed": True, "detail": "1.20 times the parent's (limit 1.5)"},
        "latency p50": {"value": 1e-4, "limit": 2e-4, "passed": True, "detail": "p50 is 100 us"},
    }

    table = gate_table({"passed": True, "checks": checks})

    assert list(table.columns[0].cells) == ["latency p50", "error", "alarm rate", "injected, lower bound"]
    assert list(table.columns[2].cells) == ["200us", "1.5", "0.5 to 2", "-0.02"]


def test_small_stamps_are_integers_of_a_file() -> None:
    """Seconds since the epoch, counts; nanoseconds since the epoch are dates."""
    assert [stamp_text(it) for it in (0, 1_700_000_000, -5)] == ["0", "1700000000", "-5"]
    assert stamp_text(1_700_000_000 * 10**9 + 5) == "2023-11-14T22:13:20.000000005Z"


def test_progress_says_nothing_twice() -> None:
    """In a pipe: neither a line again that has nothing new, nor that all is done."""
    written, now = io.StringIO(), [0.0]
    report_ = lines(Console(file=written), clock=lambda: now[0])
    for stage, done in (("queued", 0.0), ("queued", 0.0), ("fit", 0.5), ("done", 1.0)):
        report_(stage, done, "")
        now[0] += 10

    assert written.getvalue().splitlines() == ["queued   0%", "fit  50%"]


def test_the_line_of_a_picture_joins_what_nothing_faster_beats() -> None:
    """By time; of two equally good ones the faster, of two equally fast ones the better."""
    assert unbeaten([(3.0, 0.9), (2.0, 0.9), (1.0, 0.5), (4.0, 1.0), (1.0, 0.6)]) == [4, 1, 3]


def test_labels_of_a_picture_do_not_overlap() -> None:
    """Eight children at nearly the same place, each told by number and bytes; noise does not fill the axis."""
    points = [
        {"p50_seconds": 1e-4 * (1 + i / 200), "bytes": 90_000 - i, "error_ratio": 1 + i * 1e-4, "agreement": 1.0,
         "on_front": i % 2 == 0}
        for i in range(8)
    ]  # fmt: skip
    parent = {"p50_seconds": 1.1e-4, "bytes": 100_000, "version": 1}
    shown = {"name": "pump", "device_class": "hub", "batch": 1, "parent": parent, "points": points}

    figure = figure_of(shown)
    figure.draw_without_rendering()

    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them
        assert len(boxes) == 9
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        assert axes.get_ylim()[1] - axes.get_ylim()[0] >= 0.05
    assert [text.get_text()[:2] for text in figure.axes[0].texts[1:]] == [f"{i}:" for i in range(1, 9)]
