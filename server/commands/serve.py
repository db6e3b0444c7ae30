"""`prunewatch serve`, `validate` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import ConfigOption, StoreOption, require_hub
from server.config import load_settings

ListenOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="gRPC address (default: 127.0.0.1:8001).", show_default=False),
]
AdminOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="HTTP address of the page, /metrics, /healthz and /readyz (default: 127.0.0.1:8002).",
        show_default=False,
    ),
]


def serve(
    config: ConfigOption = None, store: StoreOption = None, listen: ListenOption = None, admin: AdminOption = None
) -> None:
    """Run the hub: score points sent over gRPC, and keep the detectors inside their budgets.

    Clients of Triton and KServe can score on the same address: a detector is a model, a sequence_id a series. What it
    hosts can be looked at in a browser: http://127.0.0.1:8002/, read-only.

    Settings come from the file, then from the environment (PRUNEWATCH__LISTEN=...), then from here. SIGTERM lets calls
    end before it stops.

        prunewatch serve
        prunewatch serve --config prunewatch.yaml --listen 127.0.0.1:9001
    """
    settings = load_settings(config, store=store, listen=listen, admin=admin)
    require_hub("sqlalchemy", "pyarrow")
    from server.app import run

    run(settings)


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Settings in YAML.", show_default=False)],
) -> None:
    """Check a settings file without starting anything."""
    settings = load_settings(file)
    typer.echo(
        f"{file}: {len(settings.detectors)} detectors, device classes {', '.join(settings.device_classes)}; "
        f"listens on {settings.listen}"
    )


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the report.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Watch this machine's own telemetry instead.")] = False,
) -> None:
    """Watch a real stream, prune the detectors while it goes on, and report what changed.

    Fits an LSTM and an autoencoder on an hourly water-flow series, streams it over gRPC to a hub of its own, prunes
    both under the stream, and prints anomalies and sizes, times and errors before and after. Then the hub stays up,
    unless you say --once.

        prunewatch demo --once
    """
    require_hub("torch", "onnx", "sqlalchemy", "pyarrow")
    from server.demo import run

    run(once=once, live=live)
