"""Images of hub and edge where podman or docker has them: how large above their base, and the edge locked down."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import edge_device as device
import harness
import numpy as np
from scoring_client import free_ports

IMAGES = {"edge": "prunewatch:edge", "hub": "prunewatch:hub"}
BASE = re.compile(r"^ARG BASE=(\S+)", re.MULTILINE)
LOCKED_DOWN = (
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--cpus",
    "1",
    "--memory",
    "256m",
)
STARTS = 3


def engine() -> str | None:
    """The container engine that works here."""
    for name in ("podman", "docker"):
        if shutil.which(name) and not _run(name, "image", "ls", "-q", check=False).returncode:
            return name
    return None


def image_facts(bundle: Path, values: np.ndarray) -> dict[str, Any]:
    """Figures of the images that are there; `images_absent` says why one is not.

    Args:
        bundle: The packed bundle that the edge serves.
        values: [T, S, F], the points of S series.
    """
    tool = engine()
    if tool is None:
        return {"images_absent": "no podman or docker"}
    base = _size(tool, BASE.findall((harness.ROOT / "Dockerfile").read_text("utf-8"))[0])
    facts: dict[str, Any] = {"images_absent": "`docker build` it first"}
    for target, image in IMAGES.items():
        size = _size(tool, image)
        if base is not None and size is not None:
            facts |= {f"{target}_image_bytes": size, f"{target}_image_above_base_bytes": size - base}
    if "edge_image_bytes" in facts:
        harness.say("== the edge image, locked down")
        runs = [_locked_down(tool, bundle, values) for _ in range(STARTS)]
        facts |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return facts


def _locked_down(tool: str, bundle: Path, values: np.ndarray) -> dict[str, float]:
    """The image with 256 MB, one core, no rights and a read-only root."""
    port, admin = free_ports(2)
    name = f"prunewatch-bench-{os.getpid()}-{port}"
    bundle.chmod(0o644)
    addresses = [f"PRUNEWATCH__LISTEN=127.0.0.1:{port}", f"PRUNEWATCH__ADMIN=127.0.0.1:{admin}"]
    settings = [part for it in addresses for part in ("-e", it)]
    mounted = ["-v", f"{bundle.resolve()}:/data/bundle.tar:ro"]
    began = time.monotonic()
    _run(tool, "run", "-d", "--name", name, "--network", "host", *LOCKED_DOWN, *settings, *mounted, IMAGES["edge"])
    try:
        log = bundle.with_name("container.log")
        log.write_text(f"see `{tool} logs {name}`", "utf-8")
        wall = device.seconds_to_first_score(port, began, values[:, 0], log)
        pid = int(_run(tool, "inspect", "--format", "{{.State.Pid}}", name).stdout)
        first = wall - device.waiting_seconds(pid)
        names = [f"series-{i}" for i in range(values.shape[1])]
        for points in values:
            device.score(port, points, names)
        peak = device.memory(pid)["peak"]
    finally:
        _run(tool, "rm", "-f", "-v", name, check=False)
    return {
        "first_score_in_container_wall_seconds": wall,
        "first_score_in_container_seconds": first,
        "peak_in_container_bytes": float(peak),
    }


def _size(tool: str, image: str) -> int | None:
    done = _run(tool, "image", "inspect", image, check=False)
    return None if done.returncode else int(json.loads(done.stdout)[0]["Size"])


def image_architecture(tool: str, image: str) -> str | None:
    """`amd64`, `arm64`...; None: there is no such image."""
    done = _run(tool, "image", "inspect", image, check=False)
    return None if done.returncode else str(json.loads(done.stdout)[0]["Architecture"])


def command_output(*command: str, seconds: float = 900) -> str:
    """What a command prints.

    Raises:
        harness.Skip: it fails.
    """
    return _run(*command, seconds=seconds).stdout


def _run(*command: str, check: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds
    )
    if check and done.returncode:
        raise harness.Skip(f"`{' '.join(command[:2])}` failed: {done.stderr.strip()[-300:]}")
    return done
