"""The document of a benchmark that has several parts: those that do not run keep their tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import harness
from scoring_report import Part

PART = "<!-- part {} -->"


def kept_parts(document: Path, benchmark: str) -> dict[str, str]:
    """Parts of a benchmark that stand in the document."""
    pattern = f"<!-- {benchmark}:begin -->(.*)<!-- {benchmark}:end -->"
    section = re.search(pattern, document.read_text("utf-8"), re.DOTALL)
    pieces = re.split(PART.format(r"(\w+)"), section[1] if section else "")
    return {name: text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def sections(kept: Mapping[str, str], parts: Mapping[str, Part], order: Sequence[str], *, quick: bool) -> str:
    """What goes between the markers: of each part what it found now, else what was kept."""
    blocks = {**kept, **{name: _block(part, quick=quick) for name, part in parts.items()}}
    return "\n\n".join(f"{PART.format(name)}\n{blocks[name]}" for name in order if name in blocks)


def _block(part: Part, *, quick: bool) -> str:
    """A part as it stands in the document, with where it comes from."""
    return f"**{part.title}**\n\n{part.table}\n\n{harness.origin(quick=quick)}"
