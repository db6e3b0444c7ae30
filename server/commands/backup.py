"""`prunewatch backup` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import StoreOption, require_hub, store_path


def backup(
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="The file to write, which must not exist.", show_default=False)
    ],
    store: StoreOption = None,
) -> None:
    """Write a store into one tar file, also while a server works on it.

    Everything is in it that a server needs to go on as it was: detectors, versions, what serves, cycles, anomalies,
    labels, devices, and the points that were kept, up to the last few seconds. The bytes of each bundle are verified on
    the way. The keys that sign what devices run are in it too: then only its owner can read the file. Keep it so.

        prunewatch backup --store ./prunewatch-store --to pump-2026-05-01.tar
    """
    require_hub("sqlalchemy", "pyarrow")
    from server.backup import back_up

    contents = back_up(store_path(store), to)
    typer.echo(f"{to}: {len(contents.files)} files, {to.stat().st_size:,} bytes")


def restore(
    backup_file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `prunewatch backup` wrote.", show_default=False)
    ],
    store: StoreOption = None,
) -> None:
    """Make a store of a backup, in a folder that is empty or does not exist.

    Every byte is verified first; where anything is not as it was, nothing is left behind. What ran when the backup was
    taken is marked as interrupted by the first start.

        prunewatch restore pump-2026-05-01.tar --store ./elsewhere
        prunewatch serve --store ./elsewhere
    """
    require_hub("sqlalchemy", "pyarrow")
    from server.restoring import restore as restore_store

    root = store_path(store)
    named = restore_store(backup_file, root)
    typer.echo(f"{root}: {len(named.features)} detectors, {len(named.bundles)} bundles")
