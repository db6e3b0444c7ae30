"""`prunewatch doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import ConfigOption, JsonOption, StoreOption, require_hub
from server.config import load_settings
from server.findings import Finding, is_sound

MARKS = {"ok": "OK", "note": "note", "problem": "PROBLEM"}
UNSOUND = 1
"""Exit code when there is a problem."""


def doctor(
    store: StoreOption = None,
    config: ConfigOption = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Put damaged files aside, and make a new catalog where there is no sound one. Stop the server first.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, and look through the store where there is one.

    Of the installation: Python, packages, whether ONNX Runtime computes, limits of the system, the settings and their
    addresses. Of the store: catalog, bundles, histories, latency tables, and what nothing names; every byte of every
    bundle is compared with its hash. Nothing is changed, and a server may be running. Exit code 1 says that there is a
    problem; each comes with what to do.

    With --rebuild damaged files move to `quarantine/` inside the store, never away, and a catalog that is missing or
    damaged is made anew from the bundles and the file of each detector. What only the old catalog knew (cycles,
    anomalies, labels, measurements) is lost; a backup has it.

        prunewatch doctor
        prunewatch doctor --config prunewatch.yaml
        prunewatch doctor --store ./prunewatch-store --rebuild --json
    """
    from server.installation import examine_installation

    installed = examine_installation(config, store)
    root = _root(store, config, installed)
    looked_for = store is not None or rebuild or (root is not None and root.exists())
    findings = [*installed, *(_of_store(root, rebuild=rebuild) if root is not None and looked_for else [])]
    if as_json:
        shown = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"store": str(root), "sound": is_sound(findings), "findings": shown}))
    else:
        for finding in findings:
            todo = f". {finding.todo}" if finding.todo else ""
            typer.echo(f"{MARKS[finding.state]:8}{finding.part:10} {finding.told}{todo}")
        if not looked_for:
            typer.echo(f"{MARKS['note']:8}{'store':10} there is none at {root} yet")
    if not is_sound(findings):
        raise typer.Exit(UNSOUND)


def _root(store: Path | None, config: Path | None, installed: list[Finding]) -> Path | None:
    """The store; None where the settings that would name it can not be read."""
    if store is None and any(it.part == "settings" and it.state == "problem" for it in installed):
        return None
    return load_settings(config, store=store).store


def _of_store(root: Path, *, rebuild: bool) -> list[Finding]:
    require_hub("sqlalchemy", "pyarrow")
    from server.doctor import examine
    from server.rebuilding import rebuild as rebuild_store

    return [*(rebuild_store(root) if rebuild else []), *examine(root)]
