"""The command line: `prunewatch COMMAND --help` teaches each command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from detectors.errors import PrunewatchError
from server.commands.anomalies import anomalies
from server.commands.backup import backup, restore
from server.commands.bench import bench
from server.commands.credentials import with_credentials
from server.commands.cycles import cycles
from server.commands.devices import device_classes, devices, rollouts
from server.commands.doctor import doctor
from server.commands.edge import edge, export
from server.commands.feedback import feedback, maintenance
from server.commands.fit import fit
from server.commands.frontier import frontier
from server.commands.healthcheck import healthcheck
from server.commands.keys import keys
from server.commands.plot import plot
from server.commands.prune import prune
from server.commands.report import report
from server.commands.score import score
from server.commands.series import series
from server.commands.serve import demo, serve, validate
from server.commands.serving import delete, freeze, pin, rollback, unfreeze, unpin
from server.commands.show import show
from server.commands.simulate import simulate
from server.commands.tokens import tokens
from server.commands.tune import tune

ERROR = 2
"""Exit code of what the user can mend; the same as for wrong options."""
INTERRUPTED = 130

PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Detect": (fit, tune, score, plot, anomalies, series, feedback, maintenance, show),
    "Shrink": (prune, frontier, cycles, simulate, report, rollback, pin, unpin, freeze, unfreeze, delete),
    "Devices": (devices, device_classes, rollouts, keys),
    "Run": (serve, validate, bench, doctor, backup, restore, healthcheck, edge, export, demo),
}

app = typer.Typer(
    name="prunewatch",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(with_credentials(command))
app.add_typer(tokens, rich_help_panel="Run")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunewatch {version('prunewatch')}")
        raise typer.Exit


@app.callback()
def prunewatch(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watch streams with small neural anomaly detectors, and keep those inside a latency budget.

    `prunewatch demo --once` shows it all in three minutes.
    """


def _complain(text: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
    sys.exit(ERROR)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 done, 2 an error the user can mend, 3 a rejected `prune`."""
    try:
        app(arguments, prog_name="prunewatch")
    except PrunewatchError as error:
        _complain(str(error))
    except OSError as error:  # a file that can not be written, a full disk
        if error.strerror is None:
            raise
        _complain(f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}.")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)
