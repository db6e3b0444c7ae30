"""A real Prometheus with the rules of deploy/prometheus, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parent.parent / "deploy" / "prometheus"


def tool(name: str) -> str:
    """A program of Debian's package `prometheus`; the test is skipped where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH (Debian: apt install prometheus)")
    return found


class Prometheus:
    """One that runs; its HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer."""

        def fetch() -> Any:
            query = urllib.parse.urlencode(parameters)
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as response:
                return json.load(response)["data"]

        return await asyncio.to_thread(fetch)

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Time series of an expression now."""
        return (await self.get("query", query=expr))["result"]

    async def ready(self) -> bool:
        """Whether it answers."""
        try:
            return bool(await self.get("status/runtimeinfo"))
        except OSError:
            return False


@asynccontextmanager
async def running(folder: Path, port: int, jobs: Mapping[str, Sequence[str]], **how: Any) -> AsyncIterator[Prometheus]:
    """One that scrapes the addresses of `jobs` every second, with `how` in each, and evaluates the rules as often."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in sorted(RULES.glob("*.rules.yml"))],
        "scrape_configs": [
            {"job_name": job, **how, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{port}"
    command = [
        *(tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"),
        *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
