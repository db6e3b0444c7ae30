"""What the trainer is asked to do: one JSON object, the same from the service and from the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectors.errors import NotFoundError, PreconditionError
from server.config import DEFAULT_BATCH, HUB, Budget, DetectorConfig, check_device_class
from server.records import VersionRow
from server.spans import Said
from server.store import Store

TRAINING_THREADS = 1  # networks this small gain nothing from a second one and lose much where its core is busy


def fit_job(
    store: Store,
    name: str,
    config: DetectorConfig,
    features: Sequence[str],
    history: Sequence[Path],
    *,
    version: int,
    batch: int = DEFAULT_BATCH,
    seed: int | None = None,
    start: str | None = None,
    first: str | None = None,
    threads: int = TRAINING_THREADS,
) -> dict[str, Any]:
    """Fit a new parent on the points of `history`.

    Args:
        store: Where the bundle goes.
        name: The detector; it need not exist yet.
        config: How it learns.
        features: Columns in order.
        history: Segments, oldest first.
        version: The number that the parent gets.
        batch: Points a step when it is measured.
        seed: Instead of the configured one.
        start: Hash of the parent whose weights to begin with; None: random ones.
        first: Hash of a parent by whose golden set the new one is judged; None: it gets a golden set of its own.
        threads: For training.
    """
    return {
        "kind": "fit",
        "store": str(store.root),
        "detector": name,
        "version": version,
        "network": config.network,
        "options": {} if start else config.options,
        "start": start,
        "first": first,
        "parent_gate": config.parent_gate.model_dump(),
        "threshold": config.threshold,
        "learning": {"learning_rate": config.learning_rate, "contamination": config.contamination},
        "error": {**config.error.model_dump(), "missing": config.missing},
        "max_gap": config.gap_nanoseconds,
        "shift": config.triggers.shift,
        **said_of(store, name).to_json(),
        "features": list(features),
        "history": [str(path) for path in history],
        "batch": batch,
        "seed": config.seed if seed is None else seed,
        "threads": threads,
    }


def cycle_job(
    store: Store,
    name: str,
    config: DetectorConfig,
    device_class: str,
    *,
    budget: Budget,
    history: Sequence[Path],
    update_parent: bool = False,
    frontier_first: bool = True,
    dry_run: bool = False,
    fresh: bool = False,
    on_devices: bool = False,
    base: int | None = None,
    seed: int | None = None,
    threads: int = TRAINING_THREADS,
) -> dict[str, Any]:
    """Prune what serves on a device class until it meets a budget.

    Args:
        store: Where the bundles lie.
        name: The detector.
        config: Its gate and seed.
        device_class: The class to make a child for.
        budget: What a step may cost.
        history: Segments to fine-tune, calibrate and judge on, oldest first.
        update_parent: Train the parent on `history`.
        frontier_first: Pick from a frontier before the parent is updated; that happens where nothing was picked.
        dry_run: Only say what would be done.
        fresh: Do not pick from a frontier, even where there is one.
        on_devices: Devices of the class say what a step costs, not this machine.
        base: The version whose parent is pruned; None: that which serves on the class.
        seed: Instead of the configured one.
        threads: For training.

    Raises:
        InvalidInputError: `device_class` is not one.
        PreconditionError: nothing has been fitted yet, or there is no history.
    """
    return {
        **_from_parent(store, name, config, device_class, history, seed, threads, base),
        "kind": "cycle",
        "version": store.catalog.next_version(name),
        "budget": budget.for_trainer(),
        "update_parent": update_parent,
        "frontier_first": frontier_first,
        "dry_run": dry_run,
        "fresh": fresh,
        **_where(device_class, on_devices),
    }


def round_job(
    store: Store,
    name: str,
    config: DetectorConfig,
    budgets: Mapping[str, Budget],
    *,
    history: Sequence[Path],
    on_devices: Collection[str] = (),
    threads: int = TRAINING_THREADS,
) -> dict[str, Any]:
    """Update the parent, and make a child of it for each device class that has a budget.

    Args:
        store: Where the bundles lie.
        name: The detector.
        config: Its gates and seed.
        budgets: What a step may cost on each class; a class without a budget serves the parent.
        history: Segments to train, calibrate and judge on, oldest first.
        on_devices: Classes whose devices say what a step costs, not this machine.
        threads: For training.

    Raises:
        PreconditionError: nothing has been fitted yet, or there is no history.
    """
    base = HUB if HUB in budgets or not budgets else next(iter(budgets))
    pruned = {device_class: budget for device_class, budget in budgets.items() if budget.is_set}
    return {
        **_from_parent(store, name, config, base, history, config.seed, threads),
        "kind": "round",
        "version": store.catalog.next_version(name),
        "batch": budgets[base].batch if base in budgets else DEFAULT_BATCH,
        "classes": [
            {"device_class": it, "budget": budget.for_trainer(), **_where(it, it in on_devices)}
            for it, budget in pruned.items()
        ],
        "unpruned": [device_class for device_class in budgets if device_class not in pruned],
    }


def frontier_job(
    store: Store,
    name: str,
    config: DetectorConfig,
    device_class: str,
    *,
    batch: int,
    history: Sequence[Path],
    points: int,
    seed: int | None = None,
    threads: int = TRAINING_THREADS,
) -> dict[str, Any]:
    """Build the frontier of the parent that a device class's cycles start from.

    Args:
        store: Where it is kept.
        name: The detector.
        config: Its gate and seed.
        device_class: The class.
        batch: Points a step.
        history: Segments to fine-tune, calibrate and judge on, oldest first.
        points: Children at most.
        seed: Instead of the configured one.
        threads: For training.

    Raises:
        InvalidInputError: `device_class` is not one.
        PreconditionError: nothing has been fitted yet, or there is no history.
    """
    return {
        **_from_parent(store, name, config, device_class, history, seed, threads),
        "kind": "frontier",
        "batch": batch,
        "points": points,
    }


def probe_job(
    store: Store, name: str, device_class: str, *, batch: int, graphs: int, threads: int = TRAINING_THREADS
) -> dict[str, Any]:
    """Write the graphs that devices of a class measure for the latency table of the parent its cycles start from.

    Args:
        store: Where they are kept.
        name: The detector.
        device_class: The class.
        batch: Points a step.
        graphs: About so many at most.
        threads: For training, of which there is none.

    Raises:
        PreconditionError: nothing has been fitted yet.
    """
    parent = parent_version(store, name, device_class)
    return {
        "kind": "probe",
        "store": str(store.root),
        "detector": name,
        "device_class": device_class,
        "parent": {"hash": parent.parent_hash, "version": store.catalog.bundle(parent.parent_hash).version},
        "batch": batch,
        "graphs": graphs,
        **_where(device_class, True),
        "seed": 0,
        "threads": threads,
    }


def _where(device_class: str, on_devices: bool) -> dict[str, Any]:
    """What a table is of that is not of this machine."""
    return {"where": {"device_class": device_class}} if on_devices else {}


def _from_parent(
    store: Store,
    name: str,
    config: DetectorConfig,
    device_class: str,
    history: Sequence[Path],
    seed: int | None,
    threads: int,
    base: int | None = None,
) -> dict[str, Any]:
    """What all jobs say that prune a parent."""
    check_device_class(device_class)
    if not history:
        raise PreconditionError(
            f"there are no points of {name!r} to prune it on.",
            field="data",
            hint="Stream points to it, or give --data.",
        )
    parent = parent_version(store, name, device_class, base)
    return {
        "store": str(store.root),
        "detector": name,
        "device_class": device_class,
        "parent": {"hash": parent.parent_hash, "version": store.catalog.bundle(parent.parent_hash).version},
        "history": [str(path) for path in history],
        "gate": config.gate.model_dump(),
        "parent_gate": config.parent_gate.model_dump(),
        "threshold": config.threshold,
        "max_gap": config.gap_nanoseconds,
        "shift": config.triggers.shift,
        **said_of(store, name).to_json(),
        "seed": config.seed if seed is None else seed,
        "threads": threads,
    }


def said_of(store: Store, name: str) -> Said:
    """Labels and maintenance windows of a detector; none of one that does not exist yet."""
    try:
        return Said.of(store.catalog.labels(name)[::-1], store.catalog.windows(name))
    except NotFoundError:
        return Said()


def configured_like(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a detector takes over from the one whose weights it begins with: its network and how errors are made."""
    return {key: config[key] for key in ("network", "options", "error", "missing") if key in config}


def start_hash(store: Store, name: str) -> str:
    """Hash of the dense parent that a fit can begin with.

    Raises:
        PreconditionError: nothing has been fitted yet.
    """
    store.catalog.get_detector(name)
    return parent_version(store, name, HUB).parent_hash


def served_parent(store: Store, name: str) -> str | None:
    """Hash of the parent that the hub serves or its child comes from; None where nothing was fitted yet."""
    return parent_version(store, name, HUB).parent_hash if store.catalog.versions(name) else None


def parent_version(store: Store, name: str, device_class: str, base: int | None = None) -> VersionRow:
    """The version whose parent a cycle starts from: `base`, else the one that serves on the class, else the newest.

    Raises:
        PreconditionError: nothing has been fitted yet.
    """
    versions = store.catalog.versions(name)
    if not versions:
        raise PreconditionError(f"{name!r} has no version yet.", field="name", hint="Fit it first.")
    if base is not None:
        return next((version for version in versions if version.version == base), versions[-1])
    serving = store.catalog.serving(name, device_class)
    if serving is None:
        return versions[-1]
    return next(version for version in versions if version.version == serving.version)
