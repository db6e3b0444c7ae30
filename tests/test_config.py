"""Settings: what is read, what wins, and what is refused with the key that is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from detectors.errors import InvalidInputError, NotFoundError
from server.config import (
    Budget,
    DetectorConfig,
    Settings,
    is_loopback,
    load_detector_config,
    load_settings,
    split_address,
)
from server.loop_settings import Every
from server.quantities import format_duration, format_size, parse_duration, parse_size

WHOLE = """
listen: 127.0.0.1:9001
device_classes:
  hub: {p99: 2ms}
  pi4: {p99: 200us, batch: 64, size: 200KiB}
detectors:
  pump:
    network: autoencoder
    options: {window: 50}
    features: [flow, pressure]
    device_classes: [hub, pi4]
    false_alarm_rate: 0.01
    schedule: {refit_every: 1d, prune_every: 50000 points}
    history: {max_rows: 1000, max_bytes: 1MiB}
"""


@pytest.fixture
def settings_from(tmp_path: Path):
    """Loads settings from a YAML text."""

    def load(text: str, **overrides: object) -> Settings:
        path = tmp_path / "prunewatch.yaml"
        path.write_text(text)
        return load_settings(path, **overrides)

    return load


def test_a_file_is_read_with_units_as_people_write_them(settings_from) -> None:
    """Durations become seconds, sizes bytes, schedules either of the two."""
    settings = settings_from(WHOLE)
    pump = settings.detectors["pump"]

    assert settings.listen == "127.0.0.1:9001"
    assert settings.device_classes["hub"] == Budget(p99=0.002, batch=256)
    assert settings.device_classes["pi4"] == Budget(p99=0.0002, batch=64, size=204800)
    assert pump.schedule.refit_every == Every(seconds=86400.0)
    assert pump.schedule.prune_every == Every(points=50_000)
    assert (pump.history.max_rows, pump.history.max_bytes) == (1000, 1 << 20)


def test_nothing_given_is_a_hub_on_loopback() -> None:
    """The defaults are safe and complete."""
    settings = load_settings()

    assert is_loopback(settings.listen)
    assert is_loopback(settings.admin)
    assert settings.device_classes["hub"].batch == 256
    assert not settings.device_classes["hub"].is_set


def test_the_hub_class_is_always_there(settings_from) -> None:
    """A file that names other classes does not lose the hub."""
    assert set(settings_from("device_classes: {pi4: {batch: 64}}").device_classes) == {"hub", "pi4"}


def test_command_line_over_environment_over_file(settings_from, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer source wins, key by key; an override of None is no override."""
    monkeypatch.setenv("PRUNEWATCH__LISTEN", "127.0.0.1:9002")
    monkeypatch.setenv("PRUNEWATCH__DEVICE_CLASSES__PI4__BATCH", "32")
    settings = settings_from(WHOLE, listen="127.0.0.1:9003", admin=None)

    assert settings.listen == "127.0.0.1:9003"
    assert settings.device_classes["pi4"] == Budget(p99=0.0002, batch=32, size=204800)
    assert settings_from(WHOLE).listen == "127.0.0.1:9002"


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("listn: x", "listn", "Did you mean `listen`?"),
        ("detectors: {pump: {netwrk: lstm}}", "detectors.pump.netwrk", "Did you mean `network`?"),
        ("detectors: {pump: {schedule: {prune_evry: 1d}}}", "detectors.pump.schedule.prune_evry", "`prune_every`?"),
        ("detectors: {Pump: {}}", "detectors.Pump", "lower-case"),
        ("detectors: {pump: {network: rnn}}", "detectors.pump.network", "'isolation_forest'"),
        ("detectors: {pump: {false_alarm_rate: 1}}", "detectors.pump.false_alarm_rate", "less than 1"),
        ("detectors: {pump: {features: [a, a]}}", "detectors.pump", "twice"),
        ("detectors: {pump: {device_classes: [pi4]}}", "", "`pi4`, which is not in `device_classes`"),
        ("detectors: {pump: {schedule: {prune_every: soon}}}", "detectors.pump.schedule.prune_every", "50000 points"),
        ("detectors: {pump: {schedule: {prune_every: {}}}}", "detectors.pump.schedule.prune_every", "50000 points"),
        ("device_classes: {hub: {p99: 2 parsecs}}", "device_classes.hub.p99", "unknown unit"),
        ("device_classes: {hub: {p99: 0ms}}", "device_classes.hub.p99", "more than zero"),
        ("device_classes: {parent: {}}", "", "`parent` is not free"),
        ("listen: localhost", "listen", "HOST:PORT"),
        ("listen: 127.0.0.1:99999", "listen", "HOST:PORT"),
        ("a: [b", "prunewatch.yaml", "line 1"),
        ("- a", "prunewatch.yaml", "keys and values"),
    ],
)
def test_what_is_wrong_is_named(settings_from, text: str, field: str, says: str) -> None:
    """Every mistake is an InvalidInputError whose field is the key with dots and whose text says what to write."""
    with pytest.raises(InvalidInputError) as caught:
        settings_from(text)

    assert caught.value.field.endswith(field)
    assert says in str(caught.value)


def test_all_mistakes_are_told_at_once(settings_from) -> None:
    """A second mistake does not wait for the first to be mended."""
    with pytest.raises(InvalidInputError, match=r"ring_points.*listn"):
        settings_from("listn: x\nring_points: 0")


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in the environment is as wrong as one in the file."""
    monkeypatch.setenv("PRUNEWATCH__LISTN", "x")

    with pytest.raises(InvalidInputError, match="PRUNEWATCH__LISTN"):
        load_settings()


@pytest.mark.parametrize("key", ["listen", "admin"])
def test_an_open_address_needs_insecure_said_out_loud(key: str) -> None:
    """Nobody serves without encryption to other machines by accident."""
    with pytest.raises(InvalidInputError, match="insecure: true"):
        load_settings(**{key: "0.0.0.0:8001"})

    assert getattr(load_settings(**{key: "0.0.0.0:8001"}, insecure=True), key) == "0.0.0.0:8001"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """No file is not the same as an empty one."""
    with pytest.raises(NotFoundError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1:1", True), ("127.8.9.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False)],
)
def test_loopback_is_what_only_this_machine_reaches(address: str, loopback: bool) -> None:
    """Names other than localhost count as open: nobody knows where they resolve."""
    assert is_loopback(address) == loopback
    assert split_address(address)[1] == 1


def test_a_detector_config_survives_json() -> None:
    """What the catalog keeps is what was configured."""
    config = DetectorConfig(features=["a"], schedule={"prune_every": "5 points"}, max_ahead=None)

    assert load_detector_config(config.model_dump(mode="json")) == config


def test_a_bad_detector_config_names_where_it_came_from() -> None:
    """The caller's prefix stands before the key."""
    with pytest.raises(InvalidInputError) as caught:
        load_detector_config({"sed": 1}, "config")

    assert caught.value.field == "config.sed"


def test_the_threshold_is_a_float32() -> None:
    """-log10 of the false alarm rate, rounded as it goes over the wire, so that everybody compares with the same."""
    for rate in (0.001, 0.003, 0.05):
        threshold = DetectorConfig(false_alarm_rate=rate).threshold

        assert threshold == float(np.float32(threshold)) == pytest.approx(-math.log10(rate))


def test_a_budget_for_the_trainer_has_units_in_its_names() -> None:
    """The job says seconds and bytes."""
    budget = Budget(p99="2ms", size="64KiB", batch=8)

    assert budget.is_set
    assert budget.for_trainer() == {
        "p99_seconds": 0.002,
        "p50_seconds": None,
        "speedup": None,
        "size_bytes": 65536,
        "batch": 8,
    }


@pytest.mark.parametrize("text", ["", "ms", "-1s", "1 lightyear", "0s", "1e999d", "1.2.3s", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """No guess is made."""
    with pytest.raises(ValueError, match=r"duration|unit|zero"):
        parse_duration(text)


def test_quantities_read_back_what_they_write() -> None:
    """What is printed can be typed in again."""
    for seconds in (2e-7, 1.9e-4, 0.002, 2.5, 90, 86400):
        assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)
    for size in (12, 1024, 65536, 3 << 20):
        assert parse_size(format_size(size)) == size


def test_every_network_is_offered() -> None:
    """The settings name them without importing torch; the two lists are one."""
    from typing import get_args

    from detectors.training.networks import KINDS
    from server.config import NetworkKind

    assert sorted(get_args(NetworkKind)) == sorted(KINDS)
