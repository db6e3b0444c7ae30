"""How the suite itself runs: two passes that leave nothing out, files in an order, and ports that are nobody else's."""

from __future__ import annotations

import itertools
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import slowest_first
from ports import RANGE, free_port, ours

ROOT = Path(__file__).parent.parent
MARKS = ("slow", "long", "alone")


def passes(target: str) -> list[str]:
    """Which marks each pass of a target of the Makefile selects."""
    (recipe,) = re.findall(rf"^{target}: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return re.findall(r'-m "([^"]+)"', recipe)


@pytest.mark.parametrize("has", list(itertools.product([False, True], repeat=len(MARKS))))
def test_each_test_is_in_one_pass(has: tuple[bool, ...]) -> None:
    """Whatever its marks; only what is `long` is in neither."""
    marks = dict(zip(MARKS, has, strict=True))

    chosen = [bool(eval(expression, {}, marks)) for expression in passes("test")]

    assert len(chosen) == 2
    assert sum(chosen) == (not marks["long"])


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on PATH")
@pytest.mark.parametrize(("fails", "code"), [("none", 0), ("-n", 2), ("-m", 2)])
def test_either_pass_fails_the_target_and_both_run(tmp_path: Path, fails: str, code: int) -> None:
    """A stand-in for pytest notes what it is asked for, and fails where its first argument is the one named."""
    for stamp in (".torch", ".demo", ".dev"):
        (tmp_path / stamp).touch()
    fake = tmp_path / "fake"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {tmp_path}/asked\ntest "$1" != "{fails}"\n')
    fake.chmod(0o755)

    done = subprocess.run(
        ["make", "test", f"VENV={tmp_path}", f"PYTEST={fake}", "-o", "pyproject.toml"], cwd=ROOT, check=False
    )

    assert done.returncode == code
    assert (tmp_path / "asked").read_text().split() == ["-n", "-m"]


@dataclass(frozen=True)
class Item:
    """What is asked of a collected test."""

    name: str
    path: Path
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        """The mark of that name."""
        return next((it.mark for it in self.marks if it.name == name), None)


def test_files_that_take_longest_come_first() -> None:
    """A file with a long timeout, then those with the most slow tests; within a file nothing moves."""
    slow, endless = pytest.mark.slow, pytest.mark.timeout(600)
    items = [
        Item("quick", Path("a.py")),
        Item("next", Path("a.py")),
        Item("slow", Path("b.py"), (slow,)),
        Item("slower", Path("c.py"), (slow,)),
        Item("slowest", Path("c.py"), (slow,)),
        Item("endless", Path("d.py"), (slow, endless)),
        Item("beside it", Path("d.py"), (pytest.mark.timeout(10),)),
    ]

    names = [it.name for it in slowest_first(items)]

    assert names == ["endless", "beside it", "slower", "slowest", "slow", "quick", "next"]


def test_ports_are_given_to_nobody_by_chance() -> None:
    """They lie below the range from which the system chooses, differ, and leave out what is listened on."""
    ports = ours()
    following = ports[(ports.index(free_port()) + 1) % len(ports)]
    with socket.create_server(("127.0.0.1", following)):
        given = [free_port() for _ in range(100)]

    assert following not in given
    assert len(set(given)) == 100
    assert set(given) <= set(ports)
    if RANGE.is_file():
        assert max(ports) < int(RANGE.read_text().split()[0])
