"""Everything that can be set: one YAML file, then `PRUNEWATCH__...` in the environment, then the command line.

Durations and sizes are written as people write them (`2ms`, `7d`, `64KiB`). A key that nothing reads is an error, so a
typo never silently means "the default".
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from detectors.bundle import NAME_PATTERN
from detectors.errors import InvalidInputError, NotFoundError
from server.complaints import as_input_error, nearest
from server.fleet_settings import FleetSettings
from server.loop_settings import ParentGate, Probation, Schedule, Section, Triggers, VersionRetention
from server.measuring_settings import Measuring
from server.quantities import Bytes, Seconds
from server.security.principals import Scope

HUB = "hub"
"""The device class of the hub itself."""
PARENT = "parent"
"""What the manifest of a dense parent says instead of a device class; no class may be called so."""
DEFAULT_BATCH = 256
ENVIRONMENT_PREFIX = "PRUNEWATCH__"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FeatureName = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ValueError: not an address; port 0 (any free one) is allowed.

    >>> split_address("[::1]:8001")
    ('::1', 8001)
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([^:\s\[\]]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:8001")
    return match[1] or match[2], int(match[3])


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `HOST:PORT`."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_detector_name(name: str) -> None:
    """Refuses what can not be the name of a detector, before it becomes part of a path or label.

    Raises:
        InvalidInputError: not a name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInputError(
            f"{name[:80]!r} is not a name.",
            field="name",
            hint="Write up to 63 lower-case letters, digits, `-` and `_`, a letter first.",
        )


def check_device_class(name: str) -> None:
    """Refuses what can not be a device class.

    Raises:
        InvalidInputError: not a name, or taken by the dense parents.
    """
    if name == PARENT or not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInputError(
            f"{name[:80]!r} is not a device class.",
            field="device_class",
            hint=f"Write lower-case letters, digits, `-` and `_`, a letter first, and not `{PARENT}`.",
        )


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]


class Budget(Section):
    """What a step may cost on a device class. Nothing set: no budget, and nothing is pruned for it by itself."""

    p99: Seconds | None = None
    """99th percentile of the time of one step of `batch` points."""
    p50: Seconds | None = None
    """Median of the same."""
    speedup: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """The parent's median in the same run divided by this is the budget for the child's."""
    size: Bytes | None = None
    """Bytes of the step graph."""
    batch: int = Field(default=DEFAULT_BATCH, ge=1, le=65536)
    """Points in a step."""

    @property
    def is_set(self) -> bool:
        """Whether anything is asked for at all."""
        return any(limit is not None for limit in (self.p99, self.p50, self.speedup, self.size))

    def for_trainer(self) -> dict[str, float | int | None]:
        """The same with units in the names, as a cycle's job states it."""
        return {
            "p99_seconds": self.p99,
            "p50_seconds": self.p50,
            "speedup": self.speedup,
            "size_bytes": self.size,
            "batch": self.batch,
        }


DeviceClass = Budget
"""A device class is known by what its devices can afford."""


class Gate(Section):
    """What a candidate must reach on held-out recent points to be adopted."""

    error_ratio: float = Field(default=1.5, gt=0)
    """The child's error is at most this many times the parent's."""
    alarm_jaccard: float = Field(default=0.6, ge=0, le=1)
    """Alarms that parent and child share, as a part of all alarms of either."""
    tail_agreement: float = Field(default=0.3, ge=-1, le=1)
    """Rank correlation of their scores over the tenth of the points that the parent scores highest."""
    injected_drop: float = Field(default=0.02, ge=0, le=1)
    """How much less average precision on injected anomalies is allowed."""
    labelled_recall: float = Field(default=0.9, ge=0, le=1)
    """Of the labelled anomalies that the parent finds, the child finds at least this part."""


class ErrorSettings(Section):
    """How what the network got wrong becomes one error. Takes effect with the next fit."""

    half_life: float = Field(default=5.0, ge=0, le=10_000)
    """Points after which an error counts half: anomalies last, noise does not. 0: no smoothing, no delay."""
    aggregate: Literal["mean", "worst"] = "worst"
    """Over the features: the mean of all, or of the worst quarter (eight at least)."""


class Retention(Section):
    """How many points are kept for training; the oldest go first, but never the newest file of them."""

    max_rows: int = Field(default=200_000, ge=1)
    max_bytes: Bytes = 256 << 20
    max_age: Seconds | None = None
    """Since they arrived, whatever their stamps; None: they do not age."""
    reservoir_rows: int = Field(default=20_000, ge=0)
    """Of stretches of points that went, an even sample of all times, kept beside for good; 0: none."""
    max_anomalies: int = Field(default=10_000, ge=0)
    """Anomalies kept for `ListAnomalies`; the oldest go first."""


NetworkKind = Literal[
    "ensemble",
    "lstm",
    "gru",
    "autoencoder",
    "conv_autoencoder",
    "lstm_autoencoder",
    "variational_autoencoder",
    "isolation_forest",
]
"""What `detectors.training.networks.KINDS` offers, without importing torch."""


class DetectorConfig(Section):
    """How one detector learns, alarms and is kept inside its budgets."""

    network: NetworkKind = "lstm"
    """What learns: see `docs/networks.md`."""
    options: dict[str, int | float | str | bool] = Field(default={})
    """Sizes of the parent that differ from the network's defaults (`window`, `layers`, ...)."""
    features: list[FeatureName] | None = Field(default=None, min_length=1, max_length=4096)
    """Column names in order; None: whatever the first points bring."""
    device_classes: list[Name] = Field(default=[HUB], min_length=1)
    """The classes a child is made for."""
    false_alarm_rate: float = Field(default=0.001, gt=0, lt=1)
    """Part of normal points that may be flagged; sets the threshold and needs no new version."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    fit_after: int | None = Field(default=None, ge=1)
    """Fit by itself once so many points have been seen; None: wait to be asked."""
    learning_rate: float = Field(default=3e-3, gt=0, lt=1)
    """Of a fit, at its beginning."""
    contamination: float = Field(default=0.0, ge=0, lt=0.5)
    """Part of the points of a fit that may be anomalies: the worst are neither learned from nor called normal."""
    error: ErrorSettings = ErrorSettings()
    schedule: Schedule = Schedule()
    triggers: Triggers = Triggers()
    gate: Gate = Gate()
    parent_gate: ParentGate = ParentGate()
    probation: Probation = Probation()
    versions: VersionRetention = VersionRetention()
    time: Literal["stamp", "index"] = "stamp"
    """Stamps are nanoseconds since the epoch, or row numbers."""
    duplicate: Literal["reject", "score"] = "reject"
    """What to do with a stamp equal to the last one of its series."""
    missing: Literal["reject", "carry"] = "reject"
    """Points that lack values (NaN): not taken, or the last value is carried on and contributes nothing to the error.
    Takes effect with the next fit."""
    max_ahead: Seconds | None = 3600.0
    """How far a stamp may lie beyond the clock; None: any distance. Has no effect with `time: index`."""
    max_gap: Seconds | None = None
    """A series that was silent for longer begins anew; None: it goes on where it was. No effect with `time: index`."""
    max_series: int = Field(default=100_000, ge=1)
    """Series with a state of their own; more are refused."""
    series_memory: Bytes = Field(default=256 << 20, ge=1 << 10)
    """State and last points of series in memory; the others wait on disk until they are heard of again."""
    series_expire_after: Seconds | None = 30 * 86400.0
    """A series that was silent for so long is forgotten; None: never."""
    history: Retention = Retention()

    @property
    def threshold(self) -> float:
        """The score from which a point (`score >= threshold`) is an anomaly; exactly a float32, as on the wire."""
        return float(np.float32(-math.log10(self.false_alarm_rate)))

    @property
    def gap_nanoseconds(self) -> int | None:
        """`max_gap` in the units of stamps."""
        return None if self.max_gap is None or self.time == "index" else int(self.max_gap * 1e9)

    @model_validator(mode="after")
    def _features_differ(self) -> Self:
        if self.features is not None and len(set(self.features)) < len(self.features):
            raise ValueError("`features` names a column twice")
        return self


class Log(Section):
    """What the process writes of itself, on standard error."""

    format: Literal["console", "json"] = "console"
    """One line an event: for people, or a JSON object for collectors."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level on."""


class Tls(Section):
    """Encrypts both addresses. The files may be replaced while the process runs."""

    certificate: Path
    """PEM: the certificate of this process, then those between it and its authority."""
    key: Path
    """PEM: its private key."""
    client_ca: Path | None = None
    """PEM: authorities whose certificates gRPC callers must show; None: they show none."""


class Auth(Section):
    """Whoever calls must say who it is. Everything but health needs a token or a certificate with the right scope."""

    tokens: Path | None = None
    """The file of `prunewatch tokens`; None: `tokens.json` in the store."""
    identities: dict[str, list[Scope]] = Field(default={})
    """Scopes by a name of a caller's certificate; needs `tls.client_ca`."""
    max_calls: int = Field(default=1000, ge=1)
    """Calls that one principal may have running."""
    max_streams: int = Field(default=10_000, ge=1)
    """Streams that one principal may have open."""


class Settings(BaseSettings):
    """All settings of a hub."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    listen: Address = "127.0.0.1:8001"
    """gRPC. An address that other machines can reach needs `tls` and `auth`, or `insecure: true` said out loud."""
    admin: Address = "127.0.0.1:8002"
    """HTTP: the page, /metrics, /healthz, /readyz. The same rule."""
    page: bool = True
    """Show what is hosted to whoever can reach `admin`; false: only metrics and health are there."""
    store: Path = Path("prunewatch-store")
    """The folder with everything that must survive a restart."""
    insecure: bool = False
    """Allow addresses that other machines can reach, without encryption or without asking who calls."""
    tls: Tls | None = None
    """Encryption; None: plain text."""
    auth: Auth | None = None
    """Who may call; None: whoever reaches the addresses."""
    device_classes: dict[Name, DeviceClass] = {HUB: DeviceClass()}
    """Budgets by device class; `hub` always exists."""
    detectors: dict[Name, DetectorConfig] = {}
    """Detectors that this file owns; the API refuses to change them."""
    log: Log = Log()
    max_detectors: int = Field(default=100, ge=1)
    """Also bounds the label values of the metrics."""
    ring_points: int = Field(default=256, ge=1, le=1 << 20)
    """Raw points kept of each series, to start a new version from."""
    max_message_bytes: Bytes = 4 << 20
    """Largest gRPC message."""
    max_calls: int = Field(default=1000, ge=1)
    """Calls that may run at once; more are refused, with a time to come again."""
    max_streams: int = Field(default=10_000, ge=1)
    """Streams that may be open at once; the same."""
    slow_reader_seconds: Seconds = 10.0
    """A scoring stream whose answer nobody has read for so long is ended."""
    drain_seconds: Seconds = 10.0
    """How long calls may take to end after SIGTERM."""
    trainers: int = Field(default=1, ge=1, le=64)
    """Fits and cycles that may run at once, never two of one detector. Each keeps a core busy."""
    trainer_memory: Bytes | None = Field(default=None, ge=64 << 20)
    """Data that one of them may hold; None: no limit. One that needs more fails, and nothing else does."""
    fleet: FleetSettings = FleetSettings()
    """Devices: how many, how new versions reach them, what they may send."""
    measuring: Measuring = Measuring()
    """What devices measure for their class, and how long is waited for them."""
    history_flush_seconds: Seconds = 5.0
    """How often points seen are made durable; a crash loses at most so much history."""
    series_checkpoint_seconds: Seconds = 60.0
    """How often the state of series that have moved on is written, too. After a crash those go on from the history."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file; no `.env`, no secrets folder."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _hub_exists(cls, fields: dict[str, Any]) -> dict[str, Any]:
        classes = fields.get("device_classes")
        return {**fields, "device_classes": {HUB: {}, **classes}} if isinstance(classes, dict) else fields

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("listen", "admin"):
            address = getattr(self, key)
            if not self.insecure and (self.tls is None or self.auth is None) and not is_loopback(address):
                raise ValueError(
                    f"`{key}: {address}` can be reached by other machines without encryption or authentication; "
                    "set `tls` and `auth`, use 127.0.0.1, or say `insecure: true`"
                )
        if self.auth is not None and self.auth.identities and (self.tls is None or self.tls.client_ca is None):
            raise ValueError("`auth.identities` are names in certificates: set `tls.client_ca`, too")
        if PARENT in self.device_classes:
            raise ValueError(f"`{PARENT}` is not free as a name of a device class")
        for name, detector in self.detectors.items():
            if unknown := sorted(set(detector.device_classes) - set(self.device_classes)):
                raise ValueError(
                    f"detector `{name}` names the device class `{unknown[0]}`, which is not in `device_classes`"
                )
        return self


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings: defaults, then the file, then the environment, then `overrides` that are not None.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: a key is unknown or a value can not be; `field` is the key with dots.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    _refuse_unknown_variables()
    if path is None:
        return _validated(Settings, given)
    if not path.is_file():
        raise NotFoundError("there is no such file.", field=str(path))

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=path, yaml_file_encoding="utf-8")

    try:
        return _validated(FromFile, given)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidInputError(f"is not YAML: {error.problem} (line {line}).", field=str(path)) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InvalidInputError("is not a YAML file with keys and values.", field=str(path)) from error


def load_detector_config(fields: dict[str, Any], where: str = "") -> DetectorConfig:
    """Checks the configuration of one detector, from the API or the catalog; `where` goes before the keys in errors."""
    try:
        return DetectorConfig.model_validate(fields)
    except ValidationError as error:
        raise as_input_error(error, DetectorConfig, where) from error


def _validated(kind: type[Settings], given: dict[str, Any]) -> Settings:
    try:
        return kind(**given)
    except ValidationError as error:
        raise as_input_error(error, Settings) from error


def _refuse_unknown_variables() -> None:
    for variable in sorted(os.environ):
        key = variable.upper().removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and key not in Settings.model_fields:
            raise InvalidInputError("is not a setting.", field=variable, hint=nearest(key, Settings.model_fields))
