"""`prunewatch export` and `edge`: a detector on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detectors.errors import PreconditionError
from server.commands.options import DeviceClassOption, NameArgument, StoreOption, require_hub, store_path
from server.commands.serve import AdminOption, ListenOption
from server.config import HUB, DetectorConfig, load_detector_config
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
        Path, typer.Option(metavar="FILE|DIR", help="What `prunewatch export` wrote, or the folder of a bundle.")
    ],
    listen: ListenOption = None,
    admin: AdminOption = None,
    false_alarm_rate: Annotated[
        float, typer.Option(metavar="RATE", help="Part of normal points that may be flagged; sets the threshold.")
    ] = DetectorConfig().false_alarm_rate,
) -> None:
    """Score on a device: one bundle, no training framework, no store.

    The bundle holds no threshold,
    so that it can be chosen here. A browser shows its scores: http://127.0.0.1:8002/, read-only.

        prunewatch edge --bundle pump.tar
        prunewatch edge --bundle pump.tar --false-alarm-rate 0.0001 --listen 127.0.0.1:9001
    """
    from server.edge import run

    run(bundle, listen=listen, admin=admin, config=load_detector_config({"false_alarm_rate": false_alarm_rate}))
