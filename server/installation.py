"""Looks at what prunewatch runs on: Python, packages, the runtime, limits of the system, settings. Changes nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from detectors.errors import PrunewatchError
from server.config import Settings, load_settings, split_address
from server.findings import Finding
from server.tls_check import examine_tls

DISTRIBUTION = "prunewatch"
HUB_EXTRA = "hub"
ENOUGH_FILES = 4096
"""Open files that a thousand streams, with room for everything else, can not exhaust."""
LITTLE_DISK, NO_DISK = 1 << 30, 100 << 20
EARLIEST = 1_750_000_000.0
"""A clock before this was never set: seconds since the epoch, before the first release."""
TANH = bytes.fromhex(  # the smallest graph that does some work: y = tanh(x) of one float32
    "08083a330a0c0a0178120179220454616e681201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142"
    "040a001011"
)


def examine_installation(
    config: Path | None = None, store: Path | None = None, *, now: float | None = None
) -> list[Finding]:
    """Looks at all of it.

    Args:
        config: The settings that a server would be started with; None: the defaults and the environment.
        store: The folder of the store; None: as the settings say.
        now: Seconds since the epoch; None: by the clock.
    """
    settings, told = _settings(config)
    root = store or (settings.store if settings else Path())
    return [
        _python(),
        *_packages(),
        _runtime(),
        *_system(root, time.time() if now is None else now),
        told,
        *(_addresses(settings) if settings else ()),
        *(examine_tls(settings.tls, time.time() if now is None else now) if settings and settings.tls else ()),
    ]


def _python() -> Finding:
    told = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("python", "note", f"{told}: only Linux is tested")
    return Finding("python", "ok", told)


def _packages() -> Iterator[Finding]:
    """Those that the installed distribution asks for: the base must be whole, the extra `hub` whole or not there."""
    try:
        asked = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        todo = "Install it: pip install prunewatch, or pip install -e . in the sources."
        yield Finding("packages", "problem", "prunewatch is not installed, only its files are here", todo)
        return
    yield _group([it for it in asked if it.marker is None], "the base install", "pip install prunewatch", needed=True)
    extra = [it for it in asked if it.marker is not None and it.marker.evaluate({"extra": HUB_EXTRA})]
    extra = [it for it in extra if it.marker is not None and not it.marker.evaluate({"extra": ""})]
    yield _group(extra, f"the extra `{HUB_EXTRA}`", f"pip install 'prunewatch[{HUB_EXTRA}]'", needed=False)


def _group(asked: list[Requirement], what: str, install: str, *, needed: bool) -> Finding:
    missing, wrong = [], []
    for it in asked:
        try:
            version = importlib.metadata.version(it.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(it.name)
            continue
        if not it.specifier.contains(version, prereleases=True):
            wrong.append(f"{it.name} {version} (wants {it.specifier})")
    if not needed and len(missing) == len(asked):
        told = f"{what} is not here: this machine can score, not fit or prune"
        return Finding("packages", "note", told, f"Where it should: {install}.")
    if missing or wrong:
        faults = [*(f"{name} is missing" for name in missing), *wrong]
        return Finding("packages", "problem", f"{what}: {', '.join(faults)}", f"Run {install}.")
    return Finding("packages", "ok", f"{what}: {len(asked)} packages, each of a version that fits")


def _runtime() -> Finding:
    """ONNX Runtime really computes something."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as detectors.runtime does; before the import
    try:
        np, ort = importlib.import_module("numpy"), importlib.import_module("onnxruntime")
        session = ort.InferenceSession(TANH, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": np.ones(1, np.float32)})
        right = bool(abs(float(found[0]) - 0.76159416) < 1e-6)
    except Exception as error:  # noqa: BLE001  (whatever a broken installation raises is what was looked for)
        told = f"ONNX Runtime does not work here: {type(error).__name__}"
        return Finding("runtime", "problem", told, "Install it again: pip install --force-reinstall onnxruntime.")
    if not right:
        told = f"ONNX Runtime {ort.__version__} computes tanh(1) as {found[0]}"
        return Finding("runtime", "problem", told, "Its build does not fit this processor; install another version.")
    if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
        todo = "Set ORT_DISABLE_TELEMETRY=1, or leave it unset: prunewatch sets it."
        return Finding("runtime", "note", "ONNX Runtime may report its use to its makers", todo)
    return Finding("runtime", "ok", f"ONNX Runtime {ort.__version__} computes, and reports nothing to anybody")


def _system(root: Path, now: float) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2 and find_spec("torch") is not None:
        yield Finding("system", "note", "one core: fits and cycles take time from scoring, at a lower priority")
    else:
        yield Finding("system", "ok", f"{cores} cores")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < ENOUGH_FILES:
        told = f"{files} files may be open at once; each stream is one"
        yield Finding("system", "note", told, f"For many streams raise it: ulimit -n {ENOUGH_FILES}.")
    yield _disk(root)
    if now < EARLIEST:
        told = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}"
        yield Finding("system", "problem", told, "Set it: stamps are judged by it, and releases expire.")


def _disk(root: Path) -> Finding:
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("system", "problem", f"{there} can not be written", "Choose another store, or change its owner.")
    free = shutil.disk_usage(there).free
    told = f"{free / (1 << 30):.1f} GiB are free where the store is"
    if free < LITTLE_DISK:
        todo = "Free some space: while the disk is full points are scored, but not kept, and cycles stop."
        return Finding("system", "problem" if free < NO_DISK else "note", told, todo)
    return Finding("system", "ok", told)


def _settings(config: Path | None) -> tuple[Settings | None, Finding]:
    try:
        settings = load_settings(config)
    except PrunewatchError as error:
        told = f"{error.field}: {error.problem}" if error.field else error.problem
        return None, Finding("settings", "problem", told.rstrip("."), error.hint or "See docs/configuration.md.")
    if settings.insecure:
        told = "`insecure: true`: whoever reaches these addresses can do everything, and can read along"
        return settings, Finding("settings", "note", told, "Publish them to addresses that you trust only.")
    return settings, Finding("settings", "ok", f"valid; {len(settings.detectors)} detectors are defined in them")


def _addresses(settings: Settings) -> Iterator[Finding]:
    for key in ("listen", "admin"):
        host, port = split_address(getattr(settings, key))
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                told = f"something uses {key} {host}:{port} already"
                yield Finding("settings", "note", told, "A running prunewatch does; else choose another address.")
