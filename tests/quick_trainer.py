"""Speaks the protocol of `server.trainer` and makes tiny real bundles in milliseconds.

The seed of a job says how it behaves; see the constants.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from graphs import ewma_bundle, ewma_graph

from detectors.bundle import Bundle, write_bundle
from pruning.costs import Grid, GridLevel
from server.fleet.probe_graphs import write_graphs

CRASH = 9001
REFUSE = 9002
HANG = 9003
REJECT = 9004
FLOOD = 9005
BROKEN = 9006
SLOW = 9007
HIGH = 9008
EXHAUST = 9009
MISBEHAVED = {FLOOD: {"gain": 500.0}, BROKEN: {"gain": float("nan")}, SLOW: {"wasted": 40}, HIGH: {"gain": 5.0}}
"""Children that must not serve: what is wrong with each."""


def say(**event: Any) -> None:
    """One line of JSON."""
    print(json.dumps(event), flush=True)


def facts(bundle: Bundle) -> dict[str, Any]:
    """What is said of a bundle."""
    network = bundle.manifest.network
    return {
        "hash": bundle.hash,
        "version": bundle.manifest.version,
        "units": dict(network.units),
        "parameters": network.parameters,
        "bytes": bundle.size,
        "p50_seconds": 1e-4,
        "p99_seconds": 2e-4,
        "error": 0.5,
    }


def make(job: dict[str, Any], features: int, device_class: str, gain: float) -> Bundle:
    """Writes a bundle into the store; a child of some seeds misbehaves."""
    wrong = {} if device_class == "parent" else MISBEHAVED.get(job["seed"], {})
    how = {"gain": gain, **wrong}
    bundle = ewma_bundle(job["detector"], job["version"], features, device_class=device_class, **how)
    write_bundle(bundle, Path(job["store"]) / "bundles" / bundle.hash)
    return bundle


def made_round(job: dict[str, Any]) -> dict[str, Any]:
    """The parent stays; each device class gets a child, all alike, or none."""
    manifest = json.loads((Path(job["store"]) / "bundles" / job["parent"]["hash"] / "manifest.json").read_text())
    width, rejected = len(manifest["features"]), job["seed"] == REJECT
    parent = facts(ewma_bundle(job["detector"], job["parent"]["version"], width))
    children = [
        {
            "device_class": it["device_class"],
            "batch": it["budget"]["batch"],
            "outcome": "rejected" if rejected else "adopted",
            "reason": "nothing is fast enough" if rejected else "",
            "parent": parent,
            "child": None if rejected else facts(make(job, width, it["device_class"], gain=2.0)),
            "version": None if rejected else job["version"],
        }
        for it in job["classes"]
    ]
    return {
        "outcome": "rejected" if rejected else "adopted",
        "reason": "nothing is fast enough" if rejected else "",
        "parent": parent,
        "updated": False,
        "parent_gate": None,
        "children": children,
        "unpruned": job["unpruned"],
        "version": job["version"],
    }


def drawn(job: dict[str, Any]) -> dict[str, Any]:
    """A grid of three widths, whose graphs take longer the wider they are; each parent's scale is in them."""
    scale = 1.0 + int(job["parent"]["hash"][:4], 16) / 65536
    graphs = {width: ewma_graph(2, wasted=width, gain=scale) for width in (4, 2, 1)}
    names = {width: hashlib.sha256(graph).hexdigest() for width, graph in graphs.items()}
    write_graphs(Path(job["store"]), {names[width]: graph for width, graph in graphs.items()})
    levels = tuple(GridLevel({"lstm0": width}, names[width], {"lstm0": {width: names[width]}}) for width in graphs)
    sizes = {names[width]: len(graph) for width, graph in graphs.items()}
    grid = Grid("a" * 32, job["batch"], levels, sizes)
    return {"outcome": "made", "grid": grid.to_json(), "parent": job["parent"]}


def main() -> None:
    """One job."""
    job = json.loads(sys.stdin.readline())
    say(event="progress", stage="train", done=0.5, message="half way")
    print("not an event", flush=True)
    if job["seed"] == CRASH:
        os.kill(os.getpid(), signal.SIGKILL)
    if job["seed"] == REFUSE:
        say(event="error", type="InvalidInputError", problem="too few points.", field="data", hint="Send more.")
        sys.exit(1)
    if job["seed"] == EXHAUST:
        bytearray(1 << 30)
    if job["seed"] == HANG:
        time.sleep(600)
    if job["kind"] == "fit":
        parent = make(job, len(job["features"]), "parent", gain=1.0)
        say(event="result", outcome="adopted", parent=facts(parent), rows=100)
        return
    if job["kind"] == "probe":
        say(event="result", **drawn(job))
        return
    if job["kind"] == "round":
        say(event="result", **made_round(job))
        return
    manifest = json.loads((Path(job["store"]) / "bundles" / job["parent"]["hash"] / "manifest.json").read_text())
    width = len(manifest["features"])
    parent = ewma_bundle(job["detector"], job["parent"]["version"], width)
    rejected = job["seed"] == REJECT
    child = None if rejected else make(job, width, job["device_class"], gain=2.0)
    say(
        event="result",
        outcome="rejected" if rejected else "adopted",
        reason="nothing is fast enough" if rejected else "",
        best_reachable={"p50_seconds": 1e-3, "units": {"lstm0": 1}, "hint": "Ask for more."} if rejected else None,
        parent=facts(parent),
        child=None if child is None else facts(child),
        gate=None if rejected else {"passed": True, "error_ratio": 1.01},
        version=None if child is None else job["version"],
    )


if __name__ == "__main__":
    main()
