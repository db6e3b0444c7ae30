"""`prunewatch export` and `edge`: a detector on a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from detectors.errors import InvalidInputError, PreconditionError
from server.commands.credentials import CA
from server.commands.options import DeviceClassOption, NameArgument, StoreOption, require_hub, store_path
from server.commands.serve import AdminOption, ListenOption
from server.config import HUB, load_detector_config, load_settings
from server.quantities import format_size


def export(
    name: NameArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The tar file to write.")],
    device_class: DeviceClassOption = HUB,
    store: StoreOption = None,
) -> None:
    """Write what serves on a device class into one file for `prunewatch edge`.

    A plain tar of the manifest and the step graph,
    without what only training needs. Any ONNX runtime
    can score with it: docs/bundles.md. Where the store has signing keys (`prunewatch keys`), the file also has a signed
    release and the set of keys, so that a device without a link to the hub can verify whose it is; it has to be taken
    within 30 days.

        prunewatch export pump --device-class pi4 --out pump.tar
    """
    root = store_path(store)
    require_hub("sqlalchemy", "pyarrow")
    from detectors.archive import pack_bundle
    from server.fleet.exporting import statements_for
    from server.store import Store

    with Store.open(root, create=False) as opened:
        opened.catalog.get_detector(name)
        serving = opened.catalog.serving(name, device_class)
        if serving is None:
            raise PreconditionError(
                f"no version of {name!r} serves on {device_class!r}.",
                field="--device-class",
                hint=f"Prune it for this class first: prunewatch prune {name} --device-class {device_class} ...",
            )
        statements = statements_for(opened, serving)
        bundle = pack_bundle(opened.bundle_folder(serving.bundle_hash), serving.bundle_hash, out, statements)
    told = f"{out}: {name} version {serving.version}, {format_size(bundle.size)}, bundle {bundle.hash[:12]}"
    typer.echo(f"{told}{', signed' if statements else ''}")


def edge(
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="What `prunewatch export` wrote, or the folder of a bundle.",
            show_default=False,
        ),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The hub to dial. It may be away for days.", show_default=False),
    ] = None,
    device_class: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The class of this device; once enrolled it is known.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What this device is called; once enrolled it is known.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token with which this device enrols, once.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of this device, the only one that is written to (default with --hub: "
            "$PRUNEWATCH__STORE or ./prunewatch-store).",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The hub's keys, brought by hand: what they have signed is taken from --bundle into --store.",
            show_default=False,
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Authorities that may vouch for the hub: the link is TLS (default: ${CA}).",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A certificate of the device, where the hub asks for one.", show_default=False
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.", show_default=False)] = None,
    insecure_hub: Annotated[
        bool, typer.Option("--insecure-hub", help="Talk to a hub on another machine in plain text all the same.")
    ] = False,
    no_field: Annotated[bool, typer.Option("--no-field", help="Send no points to the hub, whatever it wants.")] = False,
    listen: ListenOption = None,
    admin: AdminOption = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Part of normal points that may be flagged, for --bundle alone (default: 0.001).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score on a device, without the training framework.

    With --hub it runs what the hub releases for its class, on and on:
    it starts from its store whether or not the hub is there, takes nothing that the hub has not signed, and goes
    back to what it ran before where something new misbehaves.

        prunewatch edge --hub hub:8001 --ca ca.crt --device-class pi4 --device north-7 --token-file token --store /data
        prunewatch edge --hub hub:8001 --ca ca.crt --store /data

    The link is TLS with --ca; a hub on another machine is refused without, unless you say --insecure-hub.

    Without a hub, one bundle, whose scores a browser shows (http://127.0.0.1:8002/, read-only); into a store only
    with a signed release inside:

        prunewatch edge --bundle pump.tar
        prunewatch edge --bundle pump.tar --store /data --device-class pi4 --trust keys.json
    """
    from prunewatch.credentials import Credentials
    from server.edge.agent import AgentOptions
    from server.edge.app import run

    ca = ca or (Path(os.environ[CA]) if os.environ.get(CA) and hub is not None else None)
    if hub is None and store is None:
        _refuse({"--device": device, "--device-class": device_class, "--token-file": token_file, "--trust": trust})
        _refuse({"--ca": ca, "--certificate": certificate, "--key": key, "--insecure-hub": insecure_hub or None})
        if bundle is None:
            raise InvalidInputError(
                "there is nothing to score with.",
                field="--bundle, --hub, --store",
                hint="Name an exported bundle, or a hub to get one from, or the store of a device that has one.",
            )
        config = load_detector_config({} if false_alarm_rate is None else {"false_alarm_rate": false_alarm_rate})
        run(bundle, listen=listen, admin=admin, config=config)
        return
    if false_alarm_rate is not None:
        raise InvalidInputError("is said by the release.", field="--false-alarm-rate", hint="Set it on the hub.")
    try:
        credentials = Credentials(ca=ca, certificate=certificate, key=key)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--ca, --certificate, --key") from error
    options = AgentOptions(
        store=store or load_settings().store,
        hub=hub,
        device=device,
        device_class=device_class,
        token_file=token_file,
        bundle=bundle,
        trust=trust,
        field=not no_field,
        credentials=credentials,
        insecure_hub=insecure_hub,
    )
    run(options, listen=listen, admin=admin)


def _refuse(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise InvalidInputError("says nothing without --hub or --store.", field=name)
