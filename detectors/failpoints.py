"""Named steps at which a process can be made to die, so that tests see what a crash leaves behind.

`PRUNEWATCH_FAILPOINT=bundle.before_rename:2` has a process send itself SIGKILL when it comes to that step for the
second time; `:2` may be left out. Processes that it starts do the same, each with a count of its own. Unset, a step
costs a comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "PRUNEWATCH_FAILPOINT"

STEPS = {
    "file.before_fsync": "a file is written, but not durable",
    "folder.before_fsync": "names in a folder have changed, but are not durable",
    "bundle.begun": "the folder that a bundle is written into was made",
    "bundle.file_written": "one file of a bundle is durable",
    "bundle.before_rename": "all files of a bundle are durable beside its place",
    "bundle.renamed": "a bundle is in its place, which is not durable",
    "bundle.durable": "a bundle is in its place",
    "history.before_fsync": "a segment is written, but not durable",
    "history.before_rename": "a segment is durable beside its place",
    "history.renamed": "a segment is in its place, which is not durable",
    "history.durable": "a segment is in its place; those that it replaces are still there",
    "catalog.begun": "a transaction has begun",
    "catalog.before_commit": "a transaction has written all that it will",
    "catalog.committed": "a transaction is durable, nobody knows yet",
    "publish.begun": "a version is about to be published",
    "publish.before_commit": "a version is written into the catalog, but not committed",
    "publish.committed": "a version is published and serves, nobody follows yet",
    "change.before_commit": "what a person changes (roll back, pin, freeze) is written, but not committed",
    "change.committed": "what a person changes is in the catalog, nobody follows yet",
    "versions.let_go": "old versions are out of the catalog, their files are still there",
    "detector_file.before_rename": "the file of a detector is durable beside its place",
    "detector_file.renamed": "the file of a detector is in its place",
    "golden.before_rename": "the golden set of a parent is durable beside its place",
    "store.opened": "a store is locked and its catalog read",
    "store.swept": "what an earlier process left half-done is gone",
    "cycle.begun": "a fit or cycle is in the book and about to be trained",
    "cycle.trained": "the trainer has given its result, nothing is published",
    "cycle.published": "the result is published, the host still scores what it scored",
    "cycle.followed": "the host scores the new version, the operation still runs",
    "cycle.ended": "the operation has ended",
    "swap.replayed": "the live series are replayed in the new version, the old one scores",
    "swap.flipped": "the new version scores",
    "probation.taken_back": "a version that misbehaved is rolled back, the host still scores it",
    "reports.kept": "what a device has reported is durable, the device does not know yet",
    "field.kept": "points of devices are in the history, and still in the inbox",
    "frontier.written": "all files of a frontier are durable beside its place",
    "frontier.renamed": "a frontier is in its place, which is not durable",
    "backup.before_rename": "a backup is written beside its place",
    "restore.before_catalog": "all of a backup but its catalog is in its place",
    "rebuild.before_rename": "the damaged catalog is put aside, the new one is not in its place",
    "candidate.asked": "devices are asked to measure a child that waits, and the book knows what they were asked",
    "candidate.adopted": "devices have measured a child inside its budget and it serves, nobody follows yet",
    "table.before_rename": "a latency table is written beside its place",
    "trust.renamed": "a device has written whose statements count, and does not heed them yet",
    "download.begun": "the first bytes of a file have come to a device, nothing is durable",
    "download.durable": "some bytes of a file are durable on a device",
    "download.complete": "all bytes of a file are on a device and verified, under its partial name",
    "slot.freed": "a device has emptied the slot that a bundle is to go into",
    "slot.before_rename": "all files of a bundle are durable beside its slot",
    "slot.written": "a bundle is in its slot, which nothing names",
    "slot.chosen": "a slot is named as on trial, what served still scores",
    "slot.renewed": "the release of a slot is a newer one, its counter is not noted",
    "slot.started": "a start on trial is counted, nothing is loaded",
    "slot.proven": "a trial has ended well",
    "slot.given_up": "a trial has ended badly, the bundle still scores",
    "trainer.begun": "the trainer has read its job",
    "trainer.trained": "the trainer has a detector in memory",
    "trainer.before_result": "the trainer has written all bundles and not said so",
}
"""What has just happened at each step."""


def failpoint(step: str) -> None:
    """Kills the process without any warning if it was asked to die at this pass of this step."""
    if step == _STEP:
        _count_down()


def _asked(text: str) -> tuple[str, int]:
    step, _, passes = text.partition(":")
    if step and step not in STEPS:
        raise ValueError(f"{VARIABLE} names {step!r}, which is no step of detectors.failpoints")
    return step, int(passes or 1)


def _count_down() -> None:
    global _left  # noqa: PLW0603 -- the one thing that this module knows
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


_STEP, _left = _asked(os.environ.get(VARIABLE, ""))
