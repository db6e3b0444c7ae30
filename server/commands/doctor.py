"""`prunewatch doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from server.commands.options import JsonOption, StoreOption, require_hub, store_path

MARKS = {"ok": "OK", "note": "note", "problem": "PROBLEM"}
UNSOUND = 1
"""Exit code when there is a problem."""


def doctor(
    store: StoreOption = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Put damaged files aside, and make a new catalog where there is no sound one. Stop the server first.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look through a store: catalog, bundles, histories, latency tables, and what nothing names.

    Every byte of every bundle is compared with its hash. Nothing is changed, and a server may be running. Exit code 1
    says that there is a problem; each comes with what to do.

    With --rebuild damaged files move to `quarantine/` inside the store, never away, and a catalog that is missing or
    damaged is made anew from the bundles and the file of each detector. What only the old catalog knew (cycles,
    anomalies, labels, measurements) is lost; a backup has it.

        prunewatch doctor --store ./prunewatch-store
        prunewatch doctor --rebuild --json
    """
    require_hub("sqlalchemy", "pyarrow")
    from server.doctor import examine, is_sound
    from server.rebuilding import rebuild as rebuild_store

    root = store_path(store)
    done = rebuild_store(root) if rebuild else []
    findings = [*done, *examine(root)]
    if as_json:
        shown = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"store": str(root), "sound": is_sound(findings), "findings": shown}))
    else:
        for finding in findings:
            todo = f". {finding.todo}" if finding.todo else ""
            typer.echo(f"{MARKS[finding.state]:8}{finding.part:10} {finding.told}{todo}")
    if not is_sound(findings):
        raise typer.Exit(UNSOUND)
