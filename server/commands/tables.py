"""What commands print: tables of versions and of what a cycle changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.csv_input import iso_text
from server.quantities import format_duration, format_size

CHECKS = (
    "size",
    "error",
    "alarms",
    "alarm rate",
    "tail",
    "injected",
    "labelled",
)  # in the order of the gate, after times
DATED = 31_536_000 * 10**9  # nanoseconds: whole numbers below are seconds or counts of a file, not dates of 1970


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


def series_table(found: Mapping[str, Any]) -> Table:
    """Series, one a row."""
    is_index = found["time"] == "index"
    table = Table("series", "last row" if is_index else "last time", "points", "state", "heard of")
    for it in found["series"]:
        last = it["last_stamp"]
        row = (
            printable(it["name"]),
            "-" if last is None else str(last) if is_index else stamp_text(last),
            f"{it['points']:,}",
            f"{'warming up' if it['warming_up'] else 'goes on'}{'' if it['in_memory'] else ', on disk'}",
            f"{datetime.fromtimestamp(it['heard_seconds'], UTC):%Y-%m-%d %H:%M:%S}",
        )
        table.add_row(*map(Text, row))  # names are not ours: nothing in them is markup
    return table


def stamp_text(stamp: int) -> str:
    """A stamp of a history: a date, or the integer of the file where it would be no time since 1971.

    >>> stamp_text(1_700_000_000), stamp_text(1_700_000_000 * 10**9)
    ('1700000000', '2023-11-14T22:13:20Z')
    """
    return iso_text(stamp) if abs(stamp) >= DATED else str(stamp)


def printable(name: str) -> str:
    r"""A name that a client has chosen, without what a terminal would obey.

    >>> printable("north\x1b[2J")
    'north\ufffd[2J'
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _measured_text(measured: Mapping[str, Any]) -> str:
    times = f"{duration_text(measured['p50_seconds'])} / {duration_text(measured['p99_seconds'])}"
    return f"{times} ({measured['device_class']} {measured['batch']})"


def plan_table(
    plan: Mapping[str, Any], units: Mapping[str, int] | None = None, untrained: Collection[str] = ()
) -> Table:
    """What was chosen, group by group, with what that is expected to cost before training.

    Args:
        plan: As `prune --json` prints it.
        units: The parent's, in whose order groups stand; None: as the plan has them.
        untrained: Groups of members that learn without gradients: what these lose is importance.
    """
    groups = in_order(plan["groups"], units or {})
    trained = groups.keys() - set(untrained)
    table = Table(
        "group", "units before -> after", "rise of the loss before training" if trained else "importance lost"
    )
    for group, it in groups.items():
        lost = f"{it['damage']:.1%}" + (" of its importance" if trained else "")
        table.add_row(group, f"{it['before']} -> {it['after']}", f"{it['damage']:+.1%}" if group in trained else lost)
    if structure := structure_text(plan):
        apart = plan["damage"] - sum(it["damage"] for it in groups.values())
        table.add_row("structure", structure, f"{apart:+.1%}")
    return table


def in_order(found: Mapping[str, Any], order: Iterable[str]) -> dict[str, Any]:
    """The same in the order of other keys, as far as they are there: a server sends objects in no order.

    >>> in_order({"b": 1, "c": 2, "a": 3}, ["a", "b"])
    {'a': 3, 'b': 1, 'c': 2}
    """
    known = [key for key in order if key in found]
    return {key: found[key] for key in (*known, *(key for key in found if key not in known))}


def structure_text(plan: Mapping[str, Any]) -> str:
    """Layers bypassed and levers pulled by a plan; empty: none.

    >>> structure_text({"without": ["layer1"], "levers": {"window": 25}})
    'without layer1, window 25'
    """
    return ", ".join([*(f"without {it}" for it in plan["without"]), *(f"{k} {v}" for k, v in plan["levers"].items())])


def plan_text(result: Mapping[str, Any], untrained: Collection[str] = ()) -> str:
    """How a plan comes about, and the time of a step before and after.

    Args:
        result: Of a cycle, with `plan`, `parent` and `child`.
        untrained: As `plan_table` takes them.
    """
    plan, times = result["plan"], [duration_text(result[role]["p50_seconds"]) for role in ("parent", "child")]
    trained = plan["groups"].keys() - set(untrained)
    if place := plan.get("frontier"):
        how = f"Child {place['point']} of {place['points']} of the frontier"
    else:
        stages = ", then ".join(units_text(in_order(it, result["parent"]["units"])) for it in plan["stages"])
        how = f"Stages: {stages}; {plan['updates']} updates" if trained else f"Stages: {stages}; nothing is trained"
    cost = f"Loss before training {plan['damage']:+.1%}" if trained else f"Importance lost {plan['damage']:.1%}"
    return f"{how}. p50 {times[0]} -> {times[1]}. {cost}."


def removed_table(removed: Sequence[Mapping[str, Any]]) -> Table:
    """Units that are gone: the most important ones of each group, the others summed up."""
    table = Table("group", "unit", "importance", "mean output", "said by kept units (R²)", "responds to")
    for group in removed:
        by = f", by {group['criterion']}" if group["criterion"] else ""
        label = f"{group['group']}: {group['before']} -> {group['after']}, {group['how']}{by}"
        share = f"{group['share']:.1%} in all" if group["removed"] else ""
        table.add_row(Text(label), "", share, "", "", "")
        for unit in group["units"]:
            closest = ", ".join(_response_text(it) for it in unit["responds_to"])
            table.add_row("", str(unit["unit"]), *_unit_texts(unit), Text(printable(closest)))
        if rest := group["rest"]:
            table.add_row("", f"{rest['units']} others", *_unit_texts(rest), "")
    return table


def _unit_texts(unit: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{unit['share']:.1%}", f"{unit['mean_output']:.3g}", f"{unit['explained']:.2f}"


def _response_text(response: Mapping[str, Any]) -> str:
    of = "" if response["of"] == "value" else f" ({response['of']})"
    return f"{response['feature']}{of} {response['correlation']:+.2f}"


def levers_text(levers: Iterable[Mapping[str, Any]]) -> str:
    """Levers that were pulled.

    >>> levers_text([{"lever": "window", "before": 50, "after": 25}])
    'window 50 -> 25'
    """
    return ", ".join(f"{it['lever']} {it['before']} -> {it['after']}" for it in levers)


def costs_table(described: Mapping[str, Any]) -> Table:
    """What each group cost and costs, and the whole network."""
    table = Table("group", "parameters", "bytes", "MACs", "time of a step (groups: beyond their narrowest)")
    cost, parent, child = described["cost"], described["parent"], described["child"]
    for it in cost["groups"]:
        times = _change(it["step_seconds"], format_duration) if it["step_seconds"] else "-"
        sizes = (_change(it["parameters"], "{:,}".format), _change(it["bytes"], format_size))
        table.add_row(it["group"], *sizes, "", times)
    table.add_row(
        "all",
        _change(cost["parameters"], "{:,}".format),
        _change({"before": parent["bytes"], "after": child["bytes"]}, format_size),
        _change(cost["macs"], "{:,}".format),
        _change({"before": parent["p50_seconds"], "after": child["p50_seconds"]}, format_duration),
    )
    return table


def _change(values: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    return f"{text(values['before'])} -> {text(values['after'])}"


def gate_table(gate: Mapping[str, Any]) -> Table:
    """Checks of the gate with values and limits."""
    table = Table("check", "value", "limit", "passed", "what it says")
    found = gate.get("checks", {})
    for name, check in in_order(found, [*(it for it in found if it.startswith("latency")), *CHECKS]).items():
        text = format_duration if name.startswith("latency") else format_size if name == "size" else "{:.3g}".format
        both = re.search(r"\(limits (.+)\)$", check["detail"])  # of a range; `limit` is the nearer one
        table.add_row(
            "injected, lower bound" if name == "injected" else name,
            text(check["value"]),
            both[1] if both else text(check["limit"]),
            "yes" if check["passed"] else "no",
            Text(check["detail"]),
        )
    return table


def sensors_table(sensors: Mapping[str, Any]) -> Table:
    """What the child would find without each sensor, as changes of average precision."""
    table = Table("sensor", "without it: all anomalies", "those that are not on it", "could go, together")
    for it in sensors["features"]:
        elsewhere = "-" if it["change_elsewhere"] is None else f"{it['change_elsewhere']:+.3f}"
        table.add_row(
            Text(printable(it["feature"])), f"{it['change']:+.3f}", elsewhere, "perhaps" if it["suggested"] else ""
        )
    return table
