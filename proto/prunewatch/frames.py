"""pandas DataFrames in and out. This module never imports pandas: whoever gives it a frame has done so."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunewatch.points import DEFAULT_SERIES, Points, points_of, refused
from prunewatch.replies import Scores

Frame = Any
"""A `pandas.DataFrame`."""
SERIES_COLUMN = "series"


@dataclass(frozen=True)
class Shape:
    """What a detector wants of a frame.

    Attributes:
        features: Its columns, in order; empty: it takes those of the first points.
        time: `stamp` or `index`; None: unknown, because a device does not say.
    """

    features: Sequence[str] = ()
    time: str | None = None


@dataclass(frozen=True)
class Framed:
    """A frame, ready to be sent.

    Attributes:
        points: In the order of their stamps, as a service wants them.
        rows: [N]; the row of the frame that each point came from.
    """

    points: Points
    rows: NDArray[np.int64]


def is_frame(values: object) -> bool:
    """Whether this is a DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(values, getattr(pandas, "DataFrame", ()))


def framed(frame: Frame, shape: Shape, series: str | Sequence[str] | None = None) -> Framed:
    """The points of a frame.

    Args:
        frame: Its index has the stamps: times (naive ones are UTC) or integers. Its columns are the features in any
            order, and perhaps `series`.
        shape: What the detector wants.
        series: The name of all rows, or one for each; None: the column `series`, or else `default`.

    Raises:
        ServiceError: the frame does not fit the detector; says what to change.
    """
    names: str | Sequence[str]
    if series is not None:
        names = series
    elif SERIES_COLUMN in frame.columns and SERIES_COLUMN not in shape.features:
        if frame[SERIES_COLUMN].isna().any():
            raise refused("some rows name no series.", "series", "Fill the column, or drop them.")
        names = [str(name) for name in frame[SERIES_COLUMN].tolist()]
    else:
        names = DEFAULT_SERIES[0]
    if not isinstance(names, str) and len(names) != len(frame):
        raise refused(f"there are {len(names)} series for {len(frame)} rows.", "series", "Give one name, or one a row.")
    stamps = _stamps(frame.index, shape.time)
    rows = np.argsort(stamps, kind="stable")
    points = points_of(_values(frame, shape.features), stamps, names)
    if np.array_equal(rows, np.arange(len(rows))):
        return Framed(points, rows)
    ordered = Points(points.values[rows], stamps[rows], points.names, points.index[rows])
    return Framed(ordered, rows)


def scored_frame(frame: Frame, scores: Scores, features: Sequence[str] = ()) -> Frame:
    """What became of the rows of a frame, under the same index.

    Args:
        frame: What was sent.
        scores: In the order of its rows.
        features: The detector's, when contributions were asked for: a column `share.NAME` for each.
    """
    columns: dict[str, Any] = {
        "score": scores.scores,
        "status": np.array(scores.status_names, object),
        "anomaly": scores.anomalies,
        "threshold": np.full(len(frame), scores.threshold, np.float32),
        "version": scores.point_versions,
    }
    if features:
        shares = np.full((len(frame), len(features)), np.nan, np.float32)
        for row, each in scores.contributions.items():
            shares[row] = each
        columns |= {f"share.{name}": shares[:, i] for i, name in enumerate(features)}
    return sys.modules["pandas"].DataFrame(columns, index=frame.index)


def _values(frame: Frame, features: Sequence[str]) -> NDArray[np.float32]:
    """[N, F] in the detector's order."""
    columns = [name for name in frame.columns if name != SERIES_COLUMN or name in features]
    if repeated := sorted({str(name) for name in columns if columns.count(name) > 1}):
        raise refused(f"the frame has these columns twice: {_listed(repeated)}.", "values", "Name each once.")
    if features:
        lacking = [name for name in features if name not in columns]
        unknown = [name for name in columns if name not in features]
        if lacking or unknown:
            said = [
                f"{what} {_listed(names)}"
                for what, names in (("lacks", lacking), ("has the unknown", unknown))
                if names
            ]
            raise refused(
                f"the frame {' and '.join(said)}.",
                "values",
                f"The detector takes {_listed(features)}: frame[[...]] chooses columns.",
            )
        columns = list(features)
    wrong = [str(name) for name in columns if frame[name].dtype.kind not in "fiub"]
    if wrong:
        raise refused(f"these columns are not numbers: {_listed(wrong)}.", "values", "Convert or drop them.")
    return frame[columns].to_numpy(np.float32, na_value=np.nan)  # type: ignore[no-any-return]


def _stamps(index: Any, time: str | None) -> NDArray[np.int64]:
    """[N] int64 nanoseconds or row numbers."""
    kind = type(index).__name__
    if kind == "DatetimeIndex":
        if time == "index":
            raise refused(
                "the frame has times, and the detector counts rows.", "stamps", "Give row numbers: frame.reset_index()."
            )
        if index.hasnans:
            raise refused("some rows have no time (NaT).", "stamps", "Drop them: frame[frame.index.notna()].")
        return np.asarray(index.as_unit("ns").asi8, np.int64)
    if kind == "RangeIndex" and index.step == 1 and time == "stamp":  # pandas makes one of evenly spaced times too
        raise refused(
            "the frame has no times, and the detector wants them.", "stamps", "frame.set_index(pd.to_datetime(...))."
        )
    if index.dtype.kind in "iu":
        return index.to_numpy(np.int64)  # type: ignore[no-any-return]
    raise refused(
        f"the frame's index ({kind} of {index.dtype}) says no stamps.",
        "stamps",
        "Make it a DatetimeIndex, or integers (nanoseconds since the epoch, or row numbers).",
    )


def _listed(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
