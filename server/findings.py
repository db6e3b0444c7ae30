"""What `prunewatch doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: Of the installation: `python`, `packages`, `runtime`, `system`, `settings`, `tls`. Of the
            store: `catalog`, `bundles`, `orphans`, `history`, `golden`, `tables`, `frontiers`, `files`, `rebuild`.
        state: `note` is worth knowing and mends itself or need not be; `problem` is not and does not.
        told: What was found.
        todo: What to do about it.
    """

    part: str
    state: State
    told: str
    todo: str = ""


def is_sound(findings: list[Finding]) -> bool:
    """Whether nothing needs anybody's attention."""
    return not any(finding.state == "problem" for finding in findings)
