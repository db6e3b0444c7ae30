"""`prunewatch rollback`, `pin`, `unpin`, `freeze`, `unfreeze` and `delete`: what serves, and whether it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.options import (
    DeviceClassOption,
    NameArgument,
    ServerOption,
    StoreOption,
    require_hub,
    store_path,
)
from server.config import HUB

if TYPE_CHECKING:
    from server.store import Store


def rollback(
    name: NameArgument,
    to: Annotated[
        int | None,
        typer.Option(
            metavar="VERSION",
            min=1,
            max=2**31 - 1,
            help="Default: the version that served before this one.",
            show_default=False,
        ),
    ] = None,
    device_class: DeviceClassOption = HUB,
    store: StoreOption = None,
    server: ServerOption = None,
) -> None:
    """Let an earlier version serve again.

    Versions are never changed, so this only moves a pointer; doing it twice comes back. The next cycle may adopt a new
    version again, unless you `prunewatch pin` it. Old versions are let go after a while (`versions: keep`), never one
    that serves or served before.

        prunewatch rollback pump
        prunewatch rollback pump --to 1
    """
    root = store_path(store, server)
    if server is None:
        with _opened(root) as it:
            version = it.catalog.rollback(name, device_class, to).version
    else:
        from server.commands import remote

        version = remote.served(
            remote.ask(server, lambda client: client.roll_back(name, to, device_class)), device_class
        )
    typer.echo(f"{name}: version {version} serves on {device_class}")


def pin(
    name: NameArgument, device_class: DeviceClassOption = HUB, store: StoreOption = None, server: ServerOption = None
) -> None:
    """Keep the version that serves: no new one is adopted until `prunewatch unpin`."""
    root = store_path(store, server)
    if server is None:
        with _opened(root) as it:
            version = it.catalog.pin(name, device_class).version
    else:
        from server.commands import remote

        version = remote.served(remote.ask(server, lambda client: client.pin(name, device_class)), device_class)
    typer.echo(f"{name}: version {version} is pinned on {device_class}")


def unpin(
    name: NameArgument, device_class: DeviceClassOption = HUB, store: StoreOption = None, server: ServerOption = None
) -> None:
    """Let new versions be adopted again."""
    root = store_path(store, server)
    if server is None:
        with _opened(root) as it:
            version = it.catalog.unpin(name, device_class).version
    else:
        from server.commands import remote

        version = remote.served(remote.ask(server, lambda client: client.unpin(name, device_class)), device_class)
    typer.echo(f"{name}: version {version} serves on {device_class}, others may follow")


def freeze(name: NameArgument, store: StoreOption = None, server: ServerOption = None) -> None:
    """Stop all fits and cycles that would begin by themselves, until `prunewatch unfreeze`.

    What serves goes on, and what you ask for is done. Use it while you look into something, or during a change of the
    plant that the detector should not learn.

        prunewatch freeze pump --server 127.0.0.1:8001
    """
    _set_frozen(name, store, server, frozen=True)
    typer.echo(f"{name}: frozen, nothing begins by itself")


def unfreeze(name: NameArgument, store: StoreOption = None, server: ServerOption = None) -> None:
    """Let fits and cycles begin by themselves again.

    prunewatch unfreeze pump --server 127.0.0.1:8001
    """
    _set_frozen(name, store, server, frozen=False)
    typer.echo(f"{name}: fits and cycles begin by themselves again")


def _set_frozen(name: str, store: Path | None, server: str | None, *, frozen: bool) -> None:
    root = store_path(store, server)
    if server is None:
        with _opened(root) as it:
            it.catalog.set_frozen(name, frozen=frozen)
    else:
        from server.commands import remote

        remote.ask(server, lambda client: client.freeze(name) if frozen else client.unfreeze(name))


def delete(
    name: NameArgument,
    store: StoreOption = None,
    server: ServerOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a detector with all its versions, its anomalies and the points it has kept. There is no way back."""
    root = store_path(store, server)
    if not yes:
        typer.confirm(f"Delete {name} with all its versions and points?", abort=True)
    if server is None:
        with _opened(root) as it:
            it.delete_detector(name)
    else:
        from server.commands import remote

        remote.ask(server, lambda client: client.delete(name))
    typer.echo(f"{name}: deleted")


@contextmanager
def _opened(root: Path) -> Iterator[Store]:
    require_hub("sqlalchemy", "pyarrow")
    from server.store import Store

    with Store.open(root, create=False) as store:
        yield store
