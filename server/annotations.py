"""Numbers on a picture: how they are written, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(middles: Sequence[float], width: float) -> list[float]:
    """Moves what would overlap apart, as little as needed, and stays within 0 to 1.

    Args:
        middles: Ascending.
        width: Of each; there is room for all.

    >>> spread([0.1, 0.5, 0.5, 1.0], 0.2)
    [0.1, 0.4, 0.6, 0.9]
    """
    pools: list[tuple[float, int]] = []  # mean and size of those that would overlap, each moved left by those before it
    for i, middle in enumerate(middles):
        mean, size = middle - i * width, 1
        while pools and pools[-1][0] > mean:
            before, others = pools.pop()
            mean, size = (before * others + mean * size) / (others + size), others + size
        pools.append((mean, size))
    least, most = width / 2, 1 - width / 2 - (len(middles) - 1) * width
    moved = [min(max(mean, least), most) for mean, size in pools for _ in range(size)]
    return [round(place + i * width, 9) for i, place in enumerate(moved)]


def value_texts(values: Sequence[float]) -> list[str]:
    """Values of an axis, ascending, with as many digits as tell them apart.

    >>> value_texts([0.0, 20000.0, 40000.0]), value_texts([-0.25, 0.0, 0.25]), value_texts([1e9, 2e9])
    (['0', '20,000', '40,000'], ['-0.25', '0.00', '0.25'], ['1e+09', '2e+09'])
    """
    step = min(np.diff(values), default=1.0)
    if max(np.abs(values), default=0.0) < 1e7:
        for decimals in range(7):
            if all(abs(round(value, decimals) - value) <= step * 1e-3 for value in values):
                return [f"{value + 0.0:,.{decimals}f}" for value in values]
    for digits in range(3, 17):
        texts = [f"{value + 0.0:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.256), percent(0.004), percent(0.0)
    ('26%', '<1%', '0%')
    """
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"
