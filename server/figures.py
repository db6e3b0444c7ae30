"""What all pictures look like, and how they are saved. Needs matplotlib, which the base install does not have.

Colours are those of Okabe and Ito, which colour-blind people tell apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DOTS = 120  # an inch of a PNG
BLUE, ORANGE, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#D55E00", "#CC79A7"
INK, GREY, PALE = "#222222", "#6B6B6B", "#E2E2E2"
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,  # a name may have dollars in it
    "text.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "hatch.linewidth": 0.6,
    "path.simplify": False,  # lines are thinned already
    "svg.fonttype": "none",  # text stays text: it can be searched
    "svg.hashsalt": "prunewatch",  # the same picture is the same bytes
    "pdf.fonttype": 42,
}
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What can be written, and what is not written beside the picture, so that the same picture is the same bytes."""


def save(make: Callable[[], Figure], out: Path, kind: str) -> None:
    """Writes a picture; the file appears whole or not at all.

    Args:
        make: Draws it.
        out: The file.
        kind: One of `FORMATS`.
    """
    partial = out.with_name(f".{out.name}.partial")
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names may be in any script
        make().savefig(partial, format=kind, dpi=DOTS, metadata=FORMATS[kind])
    partial.replace(out)
