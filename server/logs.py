"""What the process writes of itself: one line an event, for people or as JSON, on standard error.

All loggers are below `prunewatch`: that of `server.worker` is `prunewatch.worker`. Facts are fields (the `extra` of a
call), so that whoever collects the lines can search by them; the id of the call that a line was written for is one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO, get_args

from pythonjsonlogger.json import JsonFormatter

from server.discretion import redacted

ROOT = "prunewatch"
REQUEST_ID = "x-request-id"
"""Metadata of a call with its id, both ways."""
INHERITED = "PRUNEWATCH_LOG"
"""Tells a trainer how the process that started it writes."""
Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]
_request: ContextVar[str] = ContextVar("request_id", default="")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(form: Format = "console", level: Level = "info", stream: TextIO | None = None) -> None:
    """Makes the process write lines of this form from this level on; what other libraries log goes the same way.

    Args:
        form: `console` for people, `json` for collectors.
        level: Of our own lines; others are let through from warnings on.
        stream: Standard error, unless another is given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Console())
    handler.addFilter(_with_request)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
    os.environ[INHERITED] = f"{form} {level}"


def set_up_as_inherited() -> None:
    """The same in a process that one with a log has started: it writes as that one does."""
    form, _, given = os.environ.get(INHERITED, "").partition(" ")
    level: Level = next((it for it in get_args(Level) if it == given), "info")
    set_up("json" if form == "json" else "console", level)


def request_id(given: str | bytes | None) -> str:
    """The id of a call: the caller's own (`x-request-id`) where it is harmless, else a new one.

    >>> request_id("order-7")
    'order-7'
    """
    if isinstance(given, str) and re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given):
        return given
    return secrets.token_hex(8)


def of_request(request: str) -> None:
    """Lines that this task, and those it begins, write from now on carry this id."""
    _request.set(request)


def current_request() -> str:
    """The id of the call that this task works for; empty where there is none."""
    return _request.get()


def _with_request(record: logging.LogRecord) -> bool:
    if request := _request.get():
        record.request_id = request
    return True


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _Console(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO prunewatch.worker: cycle step detector=pump stage=search`."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(fields)s")

    def format(self, record: logging.LogRecord) -> str:
        record.fields = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items() if key != "fields")
        return redacted(super().format(record))


class _Json(JsonFormatter):
    """One object a line: `time`, `level`, `logger`, `message`, the fields, and `exception` where there was one."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            json_default=str,
        )

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return redacted(super().format(record))

    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        """The time first, to the millisecond, in UTC."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = at.replace("+00:00", "Z")
        super().add_fields(log_data, record, message_dict)


def _shown(value: object) -> str:
    """A value on one line: as it is where that is plain, else quoted."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
