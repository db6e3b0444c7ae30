"""A hub whose metrics are timed: `prunewatch` itself, with a stopwatch around every call that counts or times.

Timed is what is called in `server.metrics`, in `server.tallies` and, from elsewhere, in `prometheus_client`; a call
inside another counts once. The stopwatch's own time counts as the metrics', so the sum is an upper bound. Nothing else
is changed.

  metered_hub.py FILE serve --config ...     writes FILE as JSON when it ends: calls, seconds
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter, Gauge

from server import metrics, tallies
from server.cli import main

COUNTING = {Counter: ("inc", "labels"), Gauge: ("inc", "dec", "set", "labels")}


class Stopwatch:
    """Adds up the outermost of the functions it is put around."""

    def __init__(self) -> None:
        self.calls, self.seconds, self._inside = 0, 0.0, False

    def around(self, function: Callable) -> Callable:
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*arguments: object, **named: object) -> object:
            if self._inside:
                return function(*arguments, **named)
            self._inside = True
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1
                self._inside = False

        return timed


def timed_functions() -> list[tuple[type, str]]:
    """Every method that counts."""
    ours = [
        it
        for module in (metrics, tallies)
        for it in vars(module).values()
        if inspect.isclass(it) and it.__module__ == module.__name__
    ]
    found = [(it, name) for it in ours for name, value in vars(it).items() if inspect.isfunction(value)]
    found = [(it, name) for it, name in found if not name.startswith("__")]
    return [*found, *((kind, name) for kind, names in COUNTING.items() for name in names)]


if __name__ == "__main__":
    told = Path(sys.argv.pop(1))
    stopwatch = Stopwatch()
    for kind, name in timed_functions():
        setattr(kind, name, stopwatch.around(getattr(kind, name)))
    try:
        main()
    finally:
        told.write_text(json.dumps({"calls": stopwatch.calls, "seconds": stopwatch.seconds}), encoding="utf-8")
