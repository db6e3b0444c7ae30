"""Progress of long work on stderr: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, float, str], None]
"""Takes the stage, how much of it is done (0 to 1) and the same for people."""

LINE_SECONDS = 5.0
END = "done"  # the last stage of all work: what comes after it says more


@contextmanager
def progress(console: Console | None = None) -> Iterator[Report]:
    """Shows what is reported inside the block."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[message]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: float, message: str) -> None:
            if stage == END:
                return
            if stage not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=1.0, message=message)
            bars.update(tasks[stage], completed=done, message=message)

        yield report
        for task in tasks.values():
            bars.update(task, completed=1.0)


def lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Report:
    """Prints a line for each new stage, and every few seconds within one where there is something new to say."""
    current, last, printed = "", "", clock()

    def report(stage: str, done: float, message: str) -> None:
        nonlocal current, last, printed
        line = f"{stage} {done:4.0%}  {message}".rstrip()
        if stage == END or line == last or (stage == current and clock() - printed < LINE_SECONDS):
            return
        current, last, printed = stage, line, clock()
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return report
