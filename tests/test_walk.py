"""The commands of README.md and docs/operating.md, run as they stand: one walk, with the real trainer and server."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRUNEWATCH = str(Path(sys.executable).with_name("prunewatch"))
LISTEN, ADMIN = "127.0.0.1:8001", "127.0.0.1:8002"
NOT_RUN = ("make ", "docker ", ". .venv", "mkdir ", "cd ", "curl ", "prunewatch simulate", "prunewatch edge")
"""Other tests run these: the suite itself, test_demo, test_container, test_metrics, test_simulate, test_edge_agent."""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Each line of its shell blocks that is to be run here, without what is said about it."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith((*NOT_RUN, "#"))]


class Walk:
    """A folder, and the addresses that stand for those of the pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.addresses = {
                LISTEN: f"127.0.0.1:{one.getsockname()[1]}",
                ADMIN: f"127.0.0.1:{other.getsockname()[1]}",
            }
        for source in blocks("README.md", "python"):
            if match := re.match(r"# (\w+\.py)\n", source):
                (folder / match[1]).write_text(self.here(source))
        (folder / "prunewatch.yaml").write_text(next(it for it in blocks("README.md", "yaml") if "triggers" in it))
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PRUNEWATCH__")}
        self.environment["PRUNEWATCH__LISTEN"] = self.addresses[LISTEN]
        self.environment["PRUNEWATCH__ADMIN"] = self.addresses[ADMIN]
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def here(self, text: str) -> str:
        """The text with the addresses that are free here."""
        for shown, free in self.addresses.items():
            text = text.replace(shown, free)
        return text

    def run(self, command: str) -> str:
        """Runs a line of a page; it has to end well."""
        done = subprocess.run(
            ["bash", "-ec", self.here(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def served(self, command: str) -> Iterator[None]:
        """While a server runs that a line of a page has started."""
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(self.here(command).split(), cwd=self.folder, env=self.environment, stderr=log)
        host, _, port = self.addresses[LISTEN].partition(":")
        try:
            end = time.monotonic() + 60
            while socket.socket().connect_ex((host, int(port))) and time.monotonic() < end:
                assert process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            code = process.wait(60)
        assert code == 0, (self.folder / "server.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_newcomer_can_type_what_stands_there(tmp_path: Path) -> None:
    """Line by line: first on a store, then with a server for what asks one, then what needs none again."""
    walk, shown = Walk(tmp_path), commands("README.md")
    asks = [line for line in shown if LISTEN in line]
    beside = [line for line in shown if line.startswith(("prunewatch doctor", "prunewatch backup"))]
    alone = [line for line in shown if line not in (*asks, *beside) and not line.startswith("prunewatch serve")]
    first = alone[: alone.index("prunewatch export pump --out pump.tar")]
    assert [line.split()[1] for line in first if line.startswith("prunewatch ")][:3] == ["fit", "score", "plot"]

    for line in first:
        walk.run(line)
    with walk.served("prunewatch serve --config prunewatch.yaml"):
        walk.run("python live.py")
        for line in (*asks, *beside):
            walk.run(line)
    walk.run("prunewatch export pump --out pump.tar")
    for line in commands("docs/operating.md"):
        if not line.startswith("prunewatch serve"):
            walk.run(line.replace("--to store.tar", "--to again.tar").replace("restore store.tar", "restore again.tar"))

    made = {path.name for path in tmp_path.iterdir()}
    assert {
        "scores.csv",
        "pruned.csv",
        "pump.png",
        "latency.png",
        "store.tar",
        "pump.tar",
        "elsewhere",
    } <= made
