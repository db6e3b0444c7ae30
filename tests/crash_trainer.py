"""A quick trainer whose bundles give scores that no other version gives, so that a mix of two would show.

Speaks the protocol of `server.trainer` and passes its failpoints. Score of a version = GAIN(version) * error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from graphs import ewma_bundle
from quick_trainer import facts, say

from detectors.bundle import Bundle, write_bundle
from detectors.failpoints import failpoint
from pruning.frontier_facts import FrontierFacts
from pruning.outcome import Sized
from server.frontiers import write_frontier

MISBEHAVE = 9101
"""Seed of a job whose child scores many times as high as it should."""


def gain_of(version: int, device_class: str) -> float:
    """Unlike that of any other version or class."""
    return 0.01 * (1 + version / 4096 + (0.1 / 4096 if device_class == "parent" else 0.0))


def make(job: dict[str, Any], width: int, device_class: str) -> Bundle:
    """Writes the bundle of a job's version into the store."""
    version = job["version"]
    gain = gain_of(version, device_class) * (1000 if job["seed"] == MISBEHAVE and device_class != "parent" else 1)
    bundle = ewma_bundle(job["detector"], version, width, gain=gain, device_class=device_class)
    write_bundle(bundle, Path(job["store"]) / "bundles" / bundle.hash)
    return bundle


def parent_of(job: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What is said of the parent that a job begins with, and its width."""
    manifest = json.loads((Path(job["store"]) / "bundles" / job["parent"]["hash"] / "manifest.json").read_text())
    width = len(manifest["features"])
    known = ewma_bundle(job["detector"], job["parent"]["version"], width)
    return {**facts(known), "hash": job["parent"]["hash"]}, width


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a job."""
    if job["kind"] == "fit":
        return {"outcome": "adopted", "parent": facts(make(job, len(job["features"]), "parent")), "rows": 100}
    parent, width = parent_of(job)
    if job["kind"] == "frontier":
        found = FrontierFacts(job["batch"], Sized(**parent), (), "l2", job["seed"])
        stored = write_frontier(Path(job["store"]), job["parent"]["hash"], found, [], time.time())
        return stored.shown(job["detector"], job["device_class"])
    if job["kind"] == "round":
        children = [
            {
                "device_class": it["device_class"],
                "batch": it["budget"]["batch"],
                "outcome": "adopted",
                "reason": "",
                "parent": parent,
                "child": facts(make(job, width, it["device_class"])),
                "version": job["version"],
            }
            for it in job["classes"]
        ]
        same = {"parent": parent, "updated": False, "parent_gate": None, "unpruned": job["unpruned"]}
        return {"outcome": "adopted", "reason": "", "children": children, "version": job["version"], **same}
    child = facts(make(job, width, job["device_class"]))
    gate = {"passed": True, "error_ratio": 1.01}
    return {
        "outcome": "adopted",
        "reason": "",
        "parent": parent,
        "child": child,
        "gate": gate,
        "version": job["version"],
    }


def main() -> None:
    """One job."""
    job = json.loads(sys.stdin.readline())
    failpoint("trainer.begun")
    say(event="progress", stage="train", done=0.5, message="half way")
    failpoint("trainer.trained")
    result = work(job)
    failpoint("trainer.before_result")
    say(event="result", **result)


if __name__ == "__main__":
    main()
