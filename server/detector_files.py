"""One file for each detector beside the catalog, with what the catalog can be rebuilt from.

    <store>/detectors/NAME.json   configuration, features, freeze, published versions, what serves

Written again, whole or not at all, after each change; the catalog is what counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detectors.bundle import replaced, write_durably
from detectors.errors import PreconditionError
from detectors.failpoints import failpoint
from server.layout import DETECTORS
from server.records import DetectorFacts

SCHEMA_VERSION = 1
PASSING = ("state", "problem")
"""Of a detector: what has changed by the time that somebody reads the file."""
_FACTS = TypeAdapter(DetectorFacts)


def path_of(root: Path, name: str) -> Path:
    """Where the file of a detector lies in the store at `root`."""
    return root / DETECTORS / f"{name}.json"


def write_detector_file(root: Path, facts: DetectorFacts) -> None:
    """Writes the file of a detector durably, unless it says all that already."""
    path, content = path_of(root, facts.detector.name), _encode(facts)
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(exist_ok=True)
    with replaced(path) as partial:
        write_durably(partial, content)
        failpoint("detector_file.before_rename")
    failpoint("detector_file.renamed")


def read_detector_file(path: Path) -> DetectorFacts:
    """What a file says.

    Raises:
        PreconditionError: it is damaged, or was written by a newer prunewatch.
    """
    try:
        content = json.loads(path.read_bytes())
        version = content.pop("schema_version")
        facts = _FACTS.validate_python({**content, "detector": {"state": "learning", **content["detector"]}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError) as error:
        raise PreconditionError("says nothing of a detector.", field=str(path), hint="Restore a backup.") from error
    named = {key for it in facts.versions for key in (it.parent_hash, *it.bundles.values())}
    known = {bundle.hash for bundle in facts.bundles}
    if version != SCHEMA_VERSION or path.stem != facts.detector.name or not named <= known:
        raise PreconditionError("is not what its name says.", field=str(path), hint="Restore a backup.")
    return facts


def _encode(facts: DetectorFacts) -> bytes:
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(facts)}
    content["detector"] = {key: value for key, value in content["detector"].items() if key not in PASSING}
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()
