"""`prunewatch healthcheck` against real processes, and against what is not one."""

import asyncio
import contextlib
import socket

import pytest
from ports import free_address
from typer.testing import CliRunner

from server.cli import app
from server.commands.healthcheck import reachable, why_not_serving


async def _check(*arguments: str):
    return await asyncio.to_thread(CliRunner().invoke, app, ["healthcheck", *arguments])


async def test_a_hub_that_serves_is_healthy(hub):
    """A running hub gives exit code 0 and says where it was asked."""
    address = f"127.0.0.1:{hub.listener.port}"

    result = await _check("--server", address)

    assert result.exit_code == 0
    assert result.stdout == f"{address} serves\n"


async def test_a_hub_that_drains_is_not(hub):
    """From the moment a hub announces its end it counts as unhealthy, though it still answers."""
    await hub.listener.announce_end()

    result = await _check("--server", f"127.0.0.1:{hub.listener.port}")

    assert result.exit_code == 1
    assert "NOT_SERVING" in result.stderr


async def test_nothing_there_is_exit_code_one_and_a_sentence():
    """A closed port is no traceback: exit code 1 and what to look at."""
    address = free_address()

    result = await _check("--server", address)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{address} can not be reached")


async def test_a_process_that_hangs_is_not_healthy():
    """A port that accepts and stays silent is given up after the time allowed."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        problem = await asyncio.to_thread(why_not_serving, f"127.0.0.1:{silent.getsockname()[1]}", 0.3)

    assert "did not answer within 0.3 seconds" in problem or "can not be reached" in problem


async def test_the_address_comes_from_the_settings(hub, tmp_path, monkeypatch):
    """Without --server the file and the environment say where to ask; "all addresses" means this machine."""
    file = tmp_path / "hub.yaml"
    file.write_text(f"insecure: true\nlisten: 0.0.0.0:{hub.listener.port}\n")

    from_file = await _check("--config", str(file))
    monkeypatch.setenv("PRUNEWATCH__LISTEN", f"127.0.0.1:{hub.listener.port}")
    from_environment = await _check()

    assert from_file.exit_code == from_environment.exit_code == 0


@pytest.mark.parametrize(
    ("listen", "asked"),
    [
        ("0.0.0.0:8001", "127.0.0.1:8001"),
        ("[::]:1", "[::1]:1"),
        ("localhost:1", "localhost:1"),
        ("[fe80::1]:1", "[fe80::1]:1"),
    ],
)
def test_where_to_ask(listen, asked):
    """Only the two addresses that mean "all" are replaced."""
    assert reachable(listen) == asked
