"""docs/robustness.md says which tests prove a promise, and those are the tests that carry its marker."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_promise_has_the_tests_that_its_row_names() -> None:
    """No row without a test, no marker without a row."""
    told = {
        match[1]: set(re.findall(r"`tests/(test_\w+\.py)`", match[2]))
        for match in re.finditer(
            r"^\| ([A-Z]\d+(?:/\d+)?) \|(.*)$", (ROOT / "docs" / "robustness.md").read_text(), re.MULTILINE
        )
    }
    proved = defaultdict(set)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for promise in re.findall(r'^@pytest\.mark\.promise\("([\w/]+)"\)', path.read_text(), re.MULTILINE):
            proved[promise].add(path.name)

    assert told == proved
