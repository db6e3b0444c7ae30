"""What became of the messages of a load."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from prunewatch.prepared import Reply
from server.bench.histogram import Histogram

SHED = "RESOURCE_EXHAUSTED"
"""Refused because the service has too much to do: load that was shed."""
GIVEN_UP = ("DEADLINE_EXCEEDED",)
"""Errors that say how long one has waited, not how fast one was refused."""
clock = time.perf_counter
"""Of everything here: seconds."""
_OK = 1
_OK_BYTE = bytes([_OK])


@dataclass
class Tally:
    """Counts of one span of a run; a message belongs to the span in which it was due.

    Attributes:
        due: Messages that should have been sent.
        sent: Messages that were given to the connection.
        scored: Messages that were answered with scores.
        errors: Messages that were answered with an error, by code.
        problems: What was said of the first error of each code.
        statuses: Points by number of their status.
        unsent: Messages that were not sent before the end: the connection took no more.
        unanswered: Messages that had no answer in time.
        in_time: Messages answered with scores while the span lasted, whenever they were due.
        from_due: Latencies of scored messages since they were due; of messages that were given up the time waited.
        from_sent: The same since they were given to the connection.
        lag: How much later than due this program got round to each message.
        versions: Messages by the version that scored them.
        threshold: As the last answer says it.
    """

    due: int = 0
    sent: int = 0
    scored: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    unsent: int = 0
    unanswered: int = 0
    in_time: int = 0
    from_due: Histogram = field(default_factory=Histogram)
    from_sent: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    versions: Counter[int] = field(default_factory=Counter)
    threshold: float = 0.0

    def answer(self, reply: Reply, due: float, sent: float, now: float) -> None:
        """Counts an answer.

        Args:
            reply: The answer.
            due: When the message should have been sent, in seconds of one clock.
            sent: When it was.
            now: When the answer came.
        """
        if reply.code:
            self.errors[reply.code] += 1
            self.problems.setdefault(reply.code, reply.problem)
            if reply.code not in GIVEN_UP:
                return
        else:
            self.scored += 1
            self.versions[reply.version] += 1
            self.threshold = reply.threshold
            statuses = reply.statuses
            if (ok := statuses.count(_OK_BYTE)) == len(statuses):  # the usual case, without a loop over points
                self.statuses[_OK] += ok
            else:
                self.statuses.update(statuses)
        self.from_due.record(now - due)
        self.from_sent.record(now - sent)

    def give_up(self, due: float, sent: float | None, now: float) -> None:
        """Counts a message that has no answer; with the time it has waited, so that overload does not look fast.

        Args:
            due: When it should have been sent.
            sent: When it was; None: it was not.
            now: When the wait for it has ended.
        """
        if sent is None:
            self.unsent += 1
        else:
            self.unanswered += 1
            self.from_sent.record(now - sent)
        self.from_due.record(now - due)

    @property
    def failed(self) -> int:
        """Messages answered with an error."""
        return sum(self.errors.values())

    @property
    def shed(self) -> int:
        """Messages that the service has refused because it has too much to do."""
        return self.errors[SHED]

    @property
    def open_ended(self) -> int:
        """Messages whose latency is at least what was counted: they were given up."""
        return self.unsent + self.unanswered + sum(self.errors[code] for code in GIVEN_UP)


class Book:
    """The tallies of a run: of its warm-up, and of what is measured.

    Attributes:
        began: When the load begins, in seconds of `clock`.
        begin: When the measuring begins.
        end: When both end.
        outstanding: Messages that are due and not answered.
    """

    def __init__(self, warm_up: float, duration: float) -> None:
        self.warming, self.measured = Tally(), Tally()
        self.began = clock()
        self.begin = self.began + warm_up
        self.end = self.begin + duration
        self.outstanding = 0

    def due(self, due: float, lag: float | None = None) -> None:
        """Counts a message that is to be sent; `lag`: how much later than due somebody got round to it."""
        tally = self._of(due)
        tally.due += 1
        self.outstanding += 1
        if lag is not None:
            tally.lag.record(lag)

    def sent(self, due: float) -> None:
        """Counts a message that is given to the connection."""
        self._of(due).sent += 1

    def answer(self, reply: Reply, due: float, sent: float) -> None:
        """Counts an answer that comes now."""
        now = clock()
        self.outstanding -= 1
        self._of(due).answer(reply, due, sent, now)
        if not reply.code and self.begin <= now < self.end:
            self.measured.in_time += 1

    def give_up(self, due: float, sent: float | None, now: float) -> None:
        """Counts a message that nobody waits for any more."""
        self.outstanding -= 1
        self._of(due).give_up(due, sent, now)

    def _of(self, due: float) -> Tally:
        return self.warming if due < self.begin else self.measured
