"""Points that a client sends as a file would bring them: one series, columnar, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.errors import ExhaustedError, InvalidInputError
from detectors.runtime import FloatArray

MAX_UPLOAD_BYTES = 512 << 20


@dataclass(frozen=True)
class Upload:
    """Consecutive points of one series.

    Attributes:
        features: Column names.
        stamps: [N], ascending.
        values: [N, F]; missing values are NaN.
    """

    features: tuple[str, ...]
    stamps: NDArray[np.int64]
    values: FloatArray

    @property
    def last_stamp(self) -> int:
        """Of the newest point."""
        return int(self.stamps[-1])

    def in_order_of(self, features: Sequence[str] | None) -> Upload:
        """The same points with the columns of a detector in its order; None: as they are.

        Raises:
            InvalidInputError: these are not the detector's features.
        """
        if features is None or tuple(features) == self.features:
            return self
        if set(features) != set(self.features):
            raise InvalidInputError(
                f"the detector takes the features {', '.join(list(features)[:8])}.",
                field="header.features",
                hint="Send these columns, in any order.",
            )
        return Upload(tuple(features), self.stamps, self.values[:, [self.features.index(name) for name in features]])


class Receiver:
    """Collects the chunks of an upload.

    Args:
        features: Of its header.

    Raises:
        InvalidInputError: there are none, or one twice.
    """

    def __init__(self, features: Sequence[str]) -> None:
        if not features or len(set(features)) < len(features) or not all(features):
            raise InvalidInputError(
                "the names of the features are missing, or one is there twice.",
                field="header.features",
                hint="Name each column once.",
            )
        self._features = tuple(features)
        self._stamps: list[NDArray[np.int64]] = []
        self._values: list[FloatArray] = []
        self._bytes = 0

    def add(self, stamps: Sequence[int], packed_values: bytes) -> None:
        """Takes one chunk.

        Raises:
            InvalidInputError: stamps and values do not belong together.
            ExhaustedError: the upload is too large.
        """
        n, width = len(stamps), len(self._features)
        if len(packed_values) != 4 * n * width:
            raise InvalidInputError(
                f"{len(packed_values)} bytes are not {n} points of {width} float32.",
                field="points.packed_values",
                hint="Send a stamp for each point and little-endian float32, a point after the other.",
            )
        self._bytes += len(packed_values) + 8 * n
        if self._bytes > MAX_UPLOAD_BYTES:
            raise ExhaustedError(
                f"the upload has more than {MAX_UPLOAD_BYTES >> 20} MiB.", field="points", hint="Send fewer points."
            )
        self._stamps.append(np.fromiter(stamps, np.int64, n))
        self._values.append(np.frombuffer(packed_values, "<f4").reshape(n, width))

    def finish(self) -> Upload:
        """Everything that was received.

        Raises:
            InvalidInputError: no points came, or their stamps do not ascend.
        """
        stamps = np.concatenate([np.empty(0, np.int64), *self._stamps])
        if not len(stamps):
            raise InvalidInputError("there are no points.", field="points", hint="Send at least one chunk.")
        if not bool((np.diff(stamps) > 0).all()):
            row = int(np.flatnonzero(np.diff(stamps) <= 0)[0]) + 1
            raise InvalidInputError(
                f"the stamp of point {row} is not after that of the point before.",
                field="points.stamps",
                hint="Send the oldest point first, each time once.",
            )
        return Upload(self._features, stamps, np.concatenate(self._values))
