"""What is not told: to callers where things lie on this machine, to the log what opens doors."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/:'\",;]+/)+([^\s/:'\",;]*)")
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bpw_[\w-]{16,}"
    r"|(?i:(?<=bearer )[\w.~+/=-]{8,})"
    r"|(?<![\w-])[\w-]{32}\.[0-9a-f]{16,64}\b",
    re.DOTALL,
)
"""Private keys in PEM, tokens of callers, whatever was shown as one, and tokens that devices enrol with."""
HIDDEN = "[hidden]"


def without_folders(text: str) -> str:
    """Text with files by their names alone: those help a caller, the folders of this machine do not.

    >>> without_folders("/var/lib/prunewatch/catalog.db: is damaged. Ask detectors/pump at /healthz.")
    'catalog.db: is damaged. Ask detectors/pump at /healthz.'
    """
    return _PATH.sub(lambda match: match[1] or "a folder", text)


def redacted(text: str) -> str:
    """Text without what a caller could show as its own, for the log.

    >>> redacted("refused: Bearer pw_0123456789abcdefghij")
    'refused: Bearer [hidden]'
    """
    return _SECRETS.sub(HIDDEN, text)
