"""What `prunewatch bench` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from server.commands.tables import console, duration_text
from server.quantities import format_duration

QUANTILES = ("p50", "p90", "p99", "p99.9", "max")


def shown(found: Mapping[str, Any]) -> None:
    """Prints a run or a sweep.

    Args:
        found: As `prunewatch bench --json` writes it.
    """
    if "sweep" in found:
        _sweep(found)
    else:
        _run(found)


def _run(found: Mapping[str, Any]) -> None:
    out, run = console(), found["run"]
    out.print(_headline(found, run), markup=False)
    if not run["messages"]["due"]:
        out.print("Nothing was measured: it ended in the warm-up.")
        return
    out.print(_counts(run))
    out.print(_latencies(run))
    for note in _notes(run):
        out.print(note, markup=False, soft_wrap=True)


def _headline(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    versions = ", ".join(run["versions"]) or found["version"] or "-"  # several: one took over from another meanwhile
    parts = [f"{found['detector']} on {found['server']}: {found['network'] or 'a device'}, version {versions}"]
    if run["versions"]:
        parts.append(f"threshold {run['threshold']:.4g}")
    parts += [
        f"a step of {it['batch']} took p50 {format_duration(it['p50_seconds'])}, p99 "
        f"{format_duration(it['p99_seconds'])} when it was measured"
        for it in found["step_seconds"]
    ]
    return ", ".join(parts)


def load_text(load: Mapping[str, Any]) -> str:
    """What was sent, in words."""
    kind = "LIVE" if load["live"] else "EPHEMERAL"
    each = "1 point" if load["points"] == 1 else f"{load['points']:,} points"
    of = each if load["series"] == 1 else f"{load['series']:,} series x {each}"
    way = "calls" if load["unary"] else "streams"
    if load["rate"] is None:
        return f"a closed loop, {load['concurrency']:,} {'callers' if load['unary'] else way}, messages of {of}, {kind}"
    over = way if load["unary"] else f"{load['concurrency']:,} {way}"
    return f"an open loop, {load['arrivals']} arrivals over {over}, messages of {of}, {kind}"


def _counts(run: Mapping[str, Any]) -> Table:
    messages, size = run["messages"], run["load"]["series"] * run["load"]["points"]
    table = Table(f"{run['seconds']:.3g} s of {load_text(run['load'])}", "points/s", "messages", "points")

    def row(what: str, count: int, rate: float | None = None) -> None:
        table.add_row(Text(what), "" if rate is None else f"{rate:,.0f}", f"{count:,}", f"{count * size:,}")

    row("offered", messages["due"], run["offered_points_per_second"])
    row("sent", messages["sent"])
    row("answered with scores (goodput)", messages["scored"], run["answered_points_per_second"])
    for code, count in messages["errors"].items():
        row(f"{code}: shed" if code == "RESOURCE_EXHAUSTED" else code, count)
    for key, what in (("unsent", "not sent before the end"), ("unanswered", "without an answer in time")):
        if messages[key]:
            row(what, messages[key])
    for status, count in run["statuses"].items():
        table.add_row(Text(f"points {status.upper()}"), "", "", f"{count:,}")
    return table


def _latencies(run: Mapping[str, Any]) -> Table:
    table = Table("latency", *QUANTILES)
    rows = {"latency_from_due": "since it was due", "latency_from_sent": "since it was sent"}
    for key, label in rows.items():
        if key == "latency_from_due" and run["load"]["rate"] is None:
            continue  # a closed loop has no other time than that of sending
        table.add_row(label, *(duration_text(run[key][name]) for name in QUANTILES))
    return table


def _notes(run: Mapping[str, Any]) -> list[Text]:
    """What must be known to read the tables."""
    messages = run["messages"]
    if run["load"]["rate"] is None:
        notes = [
            Text(
                "A closed loop sends nothing while it waits, so a stall of the service is one slow message of each "
                "stream or caller, however long it lasts. --rate measures what sources that do not wait would see."
            )
        ]
    else:
        notes = [
            Text(
                "Due: when the message should have been sent. Sent: when the connection could take it. In between it "
                "waits behind those that came before; that counts, because points do not wait to be measured."
            )
        ]
    if run["at_least_messages"]:
        notes.append(
            Text(
                f"{run['at_least_messages']:,} messages were given up and count with the time they had waited: their "
                "latency is at least that."
            )
        )
    if messages["errors"]:
        notes.append(Text("Messages that were refused are in no latency."))
        notes += [Text(f"{code}: {problem}") for code, problem in run["problems"].items()]
    if set(run["statuses"]) == {"warming_up"} and not run["load"]["live"]:
        notes.append(
            Text(
                "Every point was still warming up: each call begins from a fresh state. Send more --points than the "
                "detector needs to warm up, or streams."
                if run["load"]["unary"]
                else "Every point was still warming up: measure for longer, or send more --points."
            )
        )
    if run["client"]["held_back"]:
        notes.append(_warning("too many messages had no answer, so the load was held back: more was due than was sent"))
    if run["client"]["limit"]:
        notes.append(_warning(f"{run['client']['limit']}: the service may be faster than this"))
    if run["interrupted"]:
        notes.append(_warning("it was interrupted"))
    return notes


def _sweep(found: Mapping[str, Any]) -> None:
    out, sweep = console(), found["sweep"]
    if not sweep["steps"]:
        out.print("Nothing was measured: it ended before the first rate.")
        return
    first = sweep["steps"][0]
    out.print(_headline(found, first), markup=False)
    table = Table("offered points/s", "answered", "p50", "p99", "p99.9", "shed", "errors", "", title_justify="left")
    for it in sweep["steps"]:
        latency, messages = it["latency_from_due"], it["messages"]
        errors = sum(messages["errors"].values()) - messages["shed"]
        table.add_row(
            f"{it['offered_points_per_second']:,.0f}",
            f"{it['answered_points_per_second']:,.0f}",
            *(duration_text(latency[name]) for name in ("p50", "p99", "p99.9")),
            f"{messages['shed']:,}",
            f"{errors:,}",
            Text(it["reason"] or "kept"),
        )
    out.print(table)
    limit, knee = format_duration(sweep["limit_seconds"]), sweep["knee_points_per_second"]
    if knee is None:
        out.print(f"No rate kept a p99 of {limit} since a message was due.")
    else:
        out.print(f"Kept: {knee:,.0f} points/s with a p99 within {limit} since a message was due.")
    out.print(Text(f"Each row is {first['seconds']:.3g} s of {load_text(first['load'])}."))
    if not sweep["bracketed"]:
        out.print(_warning("no rate was too much for the service: it can do more than was tried"))
    if sweep["client_limit"]:
        out.print(_warning(f"{sweep['client_limit']}: the service may be faster than this"), soft_wrap=True)
    if found["interrupted"]:
        out.print(_warning("it was interrupted"))


def _warning(text: str) -> Text:
    return Text.assemble(("warning: ", "bold yellow"), text + ".")
