"""Long-running operations when their end can not be written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from detectors.errors import ExhaustedError, PreconditionError
from server.catalog import Catalog
from server.progress import Operations


@pytest.fixture
def full(tmp_path: Path) -> Catalog:
    """A catalog that may not grow: SQLite answers as it does on a full disk."""
    catalog = Catalog(tmp_path / "catalog.db")
    catalog.create_operation("fit", "before")
    with catalog._writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    return catalog


def test_a_full_disk_is_said_to_be_one(full: Catalog) -> None:
    """What can not be written because the disk is full says so, and what to do."""
    name = full.list_operations(None, 1)[0].name

    with pytest.raises(ExhaustedError, match=r"disk that holds the store is full.*Free some space"):
        full.fail_operation(name, PreconditionError("x" * 100_000))


async def test_whoever_waits_is_told_although_the_disk_is_full(tmp_path: Path) -> None:
    """An operation whose end can not be written has ended all the same, as failed."""
    catalog = Catalog(tmp_path / "catalog.db")
    operations = Operations(catalog)
    row = await operations.begin("prune", "pump")
    with catalog._writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    waiting = asyncio.create_task(operations.wait(row.name, 20))

    await operations.succeed(row.name, {"reason": "x" * 100_000})

    ended = await waiting
    assert ended.state == "failed"
    assert ended.error is not None
    assert "full" in ended.error["problem"]
