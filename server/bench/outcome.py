"""What a run has found, and what can be concluded from it."""

from __future__ import annotations

from dataclasses import dataclass

from server.bench.load import Load
from server.bench.tally import Tally

BUSY_SHARE = 0.9  # of one core: a Python program can use no more
LAG_SHARE = 0.1  # of the 99th percentile of the latency
LAG_SECONDS = 1e-3  # less is how exactly any program of this kind can be woken


@dataclass(frozen=True)
class Outcome:
    """What became of a load.

    Attributes:
        load: What was sent.
        measured: What became of messages that were due after the warm-up.
        warming: What became of those before.
        seconds: How long was measured.
        cpu_share: Of one core, used by this program.
        held: The load was held back, because too many messages were unanswered.
        interrupted: It was stopped before its time.
    """

    load: Load
    measured: Tally
    warming: Tally
    seconds: float
    cpu_share: float
    held: bool = False
    interrupted: bool = False

    @property
    def offered_rate(self) -> float:
        """Points a second that were due."""
        return self._rate(self.measured.due)

    @property
    def answered_rate(self) -> float:
        """Points a second that were answered with scores while it was measured: the goodput."""
        return self._rate(self.measured.in_time)

    @property
    def client_limit(self) -> str:
        """Why these are the limits of this program rather than of the service; empty: they are not."""
        if self.cpu_share > BUSY_SHARE:
            return f"this program was busy for {self.cpu_share:.0%} of the time of a core"
        lag, latency = self.measured.lag.quantile(0.99), self.measured.from_due.quantile(0.99)
        if lag > max(LAG_SECONDS, LAG_SHARE * latency):
            return f"this program got round to 1 % of the messages more than {lag * 1e3:.1f} ms late"
        return ""

    def _rate(self, messages: int) -> float:
        return messages * self.load.message_points / self.seconds if self.seconds > 0 else 0.0
