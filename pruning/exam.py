"""How good a detector is where nobody has labelled an anomaly: it has to find injected ones in normal points.

What else could be compared without labels, and why it is not:

- The error on held-out normal points is a loss of forecasting, or of rebuilding. It falls with every unit of a
  bottleneck, up to a network that rebuilds anything, anomalies too; and it means something else for each window and
  each kind of network.
- Scores are calibrated to the same rate of alarms on normal points, so alarms there say nothing.

So it is what `pruning.gate` asks of a child: disturb copies of held-out normal points (`pruning.injection`) and take
the average precision of the scores. Every detector is asked about the same points of the same events, so it can be
compared between all windows, widths, half-lives and kinds.

The points just after an event do not count, neither way. A smoothed score still falls there, and nobody minds; counted
as false alarms they would make the best half-life too short: on 16 labelled series (SKAB, cloud, MSL; the same LSTMs
with half-lives from 0 to 12) the mean VUS-PR is best at 5, the strict measure at 1, this one at 3 with 5 as good.

What it can not know is which anomalies *your* machine makes: it asks about nine kinds, of 1 to 48 points each. On eight
labelled series (SKAB, cloud, MSL; ten settings each, drawn at random) its order of the settings agreed with that by
VUS-PR at a mean Spearman of 0.4 for LSTMs and 0.1 for autoencoders; the order by held-out error did at 0.3 and 0.1.
So it is weak evidence, and small gains are not acted on (`pruning.tuned.WORTH`). Goswami et al. 2023, "Unsupervised
Model Selection for Time-series Anomaly Detection", arXiv:2210.01078, compare such measures: they agree with labels "to
varying degrees".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.training.calibrate import Scaler
from detectors.training.fit import HELD_OUT
from detectors.training.fitted import Fitted, scored
from detectors.training.stretches import Stretches
from pruning.gate import EVENTS_PER_KIND, Ranking
from pruning.injection import LENGTHS, Events, due_labels, inject

AFTERMATH = 20  # points after an event that do not count
UNSCORED = -1.0  # a diverged network's NaN: below every score, so that silence is not rewarded


@dataclass(frozen=True)
class Exam:
    """Injected anomalies that every detector of a search is asked about.

    Attributes:
        events: Drawn once, from the points that every fit holds out and never trains on.
        counted: [E, T]; False until every detector of the search is warm, and just after an event.
    """

    events: Events
    counted: NDArray[np.bool_]

    @classmethod
    def of(cls, data: Stretches, warm_up: int, seed: int) -> Self:
        """The same data, warm-up and seed: the same events.

        Args:
            data: Normal points; a fit of them holds out the last of each stretch.
            warm_up: The longest of the detectors that are going to be compared.
            seed: Of what is injected where.

        Raises:
            InvalidInputError: too few rows.
        """
        training, held_out = data.split(HELD_OUT, context=warm_up)
        held_out = held_out.longer_than(warm_up + LENGTHS[0] + 2)
        if not held_out.parts:
            raise InvalidInputError(
                f"{len(data)} usable rows are too few to hold some out and judge detectors on them.",
                field="data",
                hint="Give more rows; rows with missing values are left out and break a run.",
            )
        scale = Scaler.fit(training.rows).scale
        rng = np.random.default_rng(seed)
        events = inject(held_out.filled(), scale, per_kind=EVENTS_PER_KIND, warm_up=warm_up, rng=rng)
        return cls(events, counted(events.labels, warm_up))

    def average_precision(self, fitted: Fitted, every: int = 1) -> float:
        """Average precision of the scores of all points that count, 0 to 1, higher is better.

        Args:
            fitted: Calibrated, so that features weigh as they would in service.
            every: Only each so-many-th event, all kinds alike: quicker and less exact.
        """
        points, labels = self.events.points[::every], self.events.labels[::every]
        labels = due_labels(labels, fitted.network.stride)
        due = self.counted[::every] & scored(fitted.network, fitted.how, 0, points.shape[1])
        score = np.nan_to_num(fitted.trace(points).score[due], nan=UNSCORED)
        return Ranking(score, labels[due]).average_precision()


def counted(labels: NDArray[np.bool_], warm_up: int) -> NDArray[np.bool_]:
    """Which points of events [E, T] are asked about.

    >>> counted(np.array([[False] * 3 + [True] * 2 + [False] * 25]), 2)[0].nonzero()[0].tolist()
    [2, 3, 4, 25, 26, 27, 28, 29]
    """
    ended = np.cumsum(labels, axis=1) == labels.sum(axis=1, keepdims=True)
    since = np.cumsum(ended & labels.any(axis=1, keepdims=True), axis=1)  # 1 at the last point of the event
    asked: NDArray[np.bool_] = (since <= 1) | (since > AFTERMATH + 1)
    asked[:, :warm_up] = False
    return asked
