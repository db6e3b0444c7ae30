"""Sends a load to a service and counts what comes back.

Open loop: messages are due at times that do not depend on the service, and latency counts from then on. A service that
stalls for a second lets the messages that were due meanwhile wait, and they are counted as having waited. A closed loop
sends nothing while it waits, so that one stall is one slow message (coordinated omission).
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prunewatch.prepared import PreparedScoring
from server.bench.callers import Calls, Stream
from server.bench.load import Load, arrivals
from server.bench.messages import Messages
from server.bench.outcome import Outcome
from server.bench.tally import Book, clock
from server.quantities import format_duration

MAX_DEALT, MAX_CALLS = 65_536, 4096
"""Messages of streams, and calls, without an answer, from where on the load is held back: a queued message takes a few
bytes of this program's memory, a call some ten thousand."""
HURRY_SECONDS = 1.0  # how long answers are waited for after an interruption
SLACK_SECONDS = 0.25  # after the end, for messages that were due just before it
BURST = 16  # messages that are dealt out before others get their turn
TICK_SECONDS = 0.5
POLL_SECONDS = 0.01
Progress = Callable[[str, float, str], None]
"""Told of the stage, how much of it is done, and words about it."""
Answer = TypeVar("Answer")


def run_precisely(work: Coroutine[Any, Any, Answer]) -> Answer:
    """`asyncio.run`, in a loop that can wait for less than a millisecond: that of epoll rounds up to whole ones."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(work)


class Run:
    """One run of a load.

    Args:
        scoring: The connection.
        load: What to send.
        messages: Its bytes.
        report: Told of progress twice a second.
        most_outstanding: Messages without an answer, from where on an open loop is held back.
    """

    def __init__(
        self,
        scoring: PreparedScoring,
        load: Load,
        messages: Messages,
        report: Progress | None = None,
        most_outstanding: int | None = None,
    ) -> None:
        self._scoring = scoring
        self._load = load
        self._messages = messages
        self._report = report
        self._most = most_outstanding or (MAX_CALLS if load.unary else MAX_DEALT)
        self._book = Book(load.warm_up, load.duration)
        self._tasks: list[asyncio.Task[None]] = []
        self._pacing: asyncio.Task[None] | None = None
        self._interrupted = False
        self._held = False

    def stop(self) -> None:
        """Ends it now; `run` gives what there is."""
        self._interrupted = True
        self._book.end = min(self._book.end, clock())
        if self._pacing is not None:
            self._pacing.cancel()

    async def run(self) -> Outcome:
        """Sends the load for its time, and waits for the last answers; once."""
        if not self._interrupted:
            self._book = Book(self._load.warm_up, self._load.duration)
        book, cpu = self._book, time.process_time()
        if self._report is not None:
            self._spawn(self._tell(self._report))
        senders = self._closed() if self._load.rate is None else self._opened()
        try:
            if self._pacing is not None:
                await asyncio.wait({self._pacing})
            else:
                await self._until(lambda: clock() >= book.end)
            cpu_share = (time.process_time() - cpu) / max(clock() - book.began, 1e-9)
            ended = clock()
            await self._until(lambda: not book.outstanding or clock() >= ended + self._patience)
        finally:
            await self._end()
        for each in senders:
            each.give_up(clock())
        seconds = max(0.0, book.end - book.begin)
        return Outcome(self._load, book.measured, book.warming, seconds, cpu_share, self._held, self._interrupted)

    @property
    def _patience(self) -> float:
        return min(HURRY_SECONDS, self._load.timeout) if self._interrupted else self._load.timeout

    def _closed(self) -> list[Stream | Calls]:
        """Begins a closed loop."""
        load = self._load
        if load.unary:
            calls = Calls(self._scoring, self._messages, self._book, load.timeout)
            for _ in range(load.concurrency):
                self._spawn(calls.send_in_turn(self._going))
            return [calls]
        streams = self._streams()
        for stream in streams:
            self._spawn(stream.send_in_turn(self._going))
        return [*streams]

    def _opened(self) -> list[Stream | Calls]:
        """Begins an open loop."""
        load = self._load
        if load.unary:
            calls = Calls(self._scoring, self._messages, self._book, load.timeout)
            self._pacing = self._spawn(self._pace([calls.deal]))
            return [calls]
        streams = self._streams()
        for stream in streams:
            self._spawn(stream.send_what_is_dealt())
        self._pacing = self._spawn(self._pace([stream.deal for stream in streams]))
        return [*streams]

    def _streams(self) -> list[Stream]:
        senders = map(self._messages.sender, range(self._load.concurrency))
        return [Stream(self._scoring, sender, self._book) for sender in senders]

    async def _pace(self, deals: list[Callable[[float], None]]) -> None:
        """Deals each message out when it is due, in turns."""
        book, held, awake = self._book, False, 0
        for count, offset in enumerate(arrivals(self._load)):
            due = book.began + offset
            if due >= book.end:
                return
            while (left := due - clock()) > 0:
                held, awake = False, 0
                await asyncio.sleep(left)
            awake += 1
            if awake % BURST == 0:
                await asyncio.sleep(0)
            while book.outstanding >= self._most and clock() < book.end:
                held = self._held = True
                await asyncio.sleep(POLL_SECONDS)
            now = clock()
            book.due(due, None if held else now - due)
            if now > book.end + SLACK_SECONDS or book.outstanding > self._most:
                book.give_up(due, None, now)
            else:
                deals[count % len(deals)](due)

    def _going(self) -> bool:
        return clock() < self._book.end

    async def _tell(self, report: Progress) -> None:
        """Says twice a second how far it is."""
        book, load, answered = self._book, self._load, 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = clock()
            warm = now < book.begin
            tally = book.warming if warm else book.measured
            total = book.warming.scored + book.measured.scored
            rate = (total - answered) * load.message_points / TICK_SECONDS
            answered = total
            first, last = (book.began, book.begin) if warm else (book.begin, book.end)
            p99 = format_duration(tally.from_due.quantile(0.99)) if tally.from_due.count else "-"
            errors = f", {tally.failed:,} errors" if tally.failed else ""
            behind = f", {book.outstanding:,} unanswered" if now >= book.end else ""
            report(
                "warm-up" if warm else "measuring",
                min(1.0, (now - first) / max(last - first, 1e-9)),
                f"{rate:,.0f} points/s answered, p99 {p99}{errors}{behind}",
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  (of time that passes, and of counts that change ten thousand times a second)
            await asyncio.sleep(POLL_SECONDS)

    async def _end(self) -> None:
        """Ends everything that was begun; raises what went wrong in it."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
