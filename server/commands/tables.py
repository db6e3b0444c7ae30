"""What commands print: tables of versions and of what a cycle changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.csv_input import iso_text
from server.quantities import format_duration, format_size


def console() -> Console:
    """Standard output; wide enough for tables when it is no terminal."""
    wide = Console(highlight=False)
    return wide if wide.is_terminal else Console(highlight=False, width=max(wide.width, 140))


def units_text(units: Mapping[str, int]) -> str:
    """Hidden units by group on one line.

    >>> units_text({"lstm0": 20, "lstm1": 11})
    'lstm0 20, lstm1 11'
    """
    return ", ".join(f"{group} {count}" for group, count in units.items())


def duration_text(seconds: float | None) -> str:
    """A duration, or a dash where nothing has been measured."""
    return "-" if seconds is None else format_duration(seconds)


def error_text(error: float | None) -> str:
    """An error with four digits, or a dash."""
    return "-" if error is None else f"{error:.4g}"


def before_and_after(result: Mapping[str, Any]) -> Table:
    """Parent and child of a cycle side by side."""
    table = Table("", "version", "units", "parameters", "bytes", "p50", "p99", "error")
    for role in ("parent", "child"):
        if made := result.get(role):
            table.add_row(
                role,
                str(made["version"]),
                units_text(made["units"]),
                f"{made['parameters']:,}",
                format_size(made["bytes"]),
                duration_text(made["p50_seconds"]),
                duration_text(made["p99_seconds"]),
                error_text(made["error"]),
            )
    return table


def versions_table(described: Mapping[str, Any]) -> Table:
    """Versions of a detector, each with its parent and children."""
    table = Table("version", "made by", "bundle", "from", "units", "parameters", "bytes", "p50 / p99 (batch)", "error")
    shown: set[str] = set()
    for version in described["versions"]:
        serving = ", ".join(version["serving"])
        label = f"{version['version']}{f'  serves {serving}' if serving else ''}"
        cause = f"{version['cause']} {datetime.fromtimestamp(version['created_seconds'], UTC):%Y-%m-%d %H:%M}"
        for role, bundle in {"parent": version["parent"], **version["children"]}.items():
            known = bundle["hash"] in shown
            shown.add(bundle["hash"])
            times = "\n".join(map(_measured_text, bundle["measurements"])) or "-"
            table.add_row(
                label,
                cause,
                f"{role} {bundle['hash'][:12]}",
                (bundle["derived_from"] or "")[:12],
                *(
                    [f"as in version {bundle['version']}", "", "", "", ""]
                    if known
                    else [
                        units_text(bundle["units"]),
                        f"{bundle['parameters']:,}",
                        format_size(bundle["bytes"]),
                        times,
                        error_text(bundle["error"]),
                    ]
                ),
            )
            label = cause = ""
    return table


def anomalies_table(found: Mapping[str, Any]) -> Table:
    """Anomalies, one a row."""
    is_index = found["time"] == "index"
    table = Table("row" if is_index else "time", "series", "score", "threshold", "version", "top features")
    for it in found["anomalies"]:
        row = (
            str(it["stamp"]) if is_index else iso_text(it["stamp"]),
            printable(it["series"]),
            f"{it['score']:.4g}",
            f"{it['threshold']:.4g}",
            str(it["version"]),
            printable(", ".join(f"{feature} {share:.0%}" for feature, share in it["contributions"].items())),
        )
        table.add_row(*map(Text, row))  # names are not ours: nothing in them is markup
    return table


def printable(name: str) -> str:
    r"""A name that a client has chosen, without what a terminal would obey.

    >>> printable("north\x1b[2J")
    'north\ufffd[2J'
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _measured_text(measured: Mapping[str, Any]) -> str:
    times = f"{duration_text(measured['p50_seconds'])} / {duration_text(measured['p99_seconds'])}"
    return f"{times} ({measured['device_class']} {measured['batch']})"
