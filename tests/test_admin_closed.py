"""The admin address where the settings have `auth` and `tls`: asked over real HTTP and HTTPS."""

from __future__ import annotations

import asyncio
import base64
import http.client
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from authority import Authority, put
from conftest import QUICK_TRAINER, eventually, hub_settings
from cryptography import x509
from ports import free_address, free_port
from prometheus import running
from test_walk import blocks
from typer.testing import CliRunner

from server.app import Hub
from server.cli import app
from server.security.tokens import make_token, remove_token

AUTHORITY = Authority.new()
CLOSED = ("/metrics", "/", "/api/overview", "/page/page.js", "/nowhere")
DAY = 86400.0


@asynccontextmanager
async def closed(folder: Path, **fields: Any) -> AsyncIterator[tuple[Hub, dict[str, str]]]:
    """A hub that asks for tokens, and a token of each scope."""
    hub = Hub(hub_settings(folder, auth={}, **fields), trainer=QUICK_TRAINER)
    path = hub.settings.store / "tokens.json"
    tokens = {scope: make_token(path, scope, [scope], now=time.time()) for scope in ("score", "operate", "device")}
    tokens["ended"] = make_token(path, "ended", ["admin"], now=0.0, valid_seconds=1.0)
    await hub.start()
    try:
        yield hub, tokens
    finally:
        await hub.stop()


async def get(
    hub: Hub, path: str, headers: Mapping[str, str] | None = None, context: ssl.SSLContext | None = None
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, by the HTTP client of the standard library."""

    def asked() -> tuple[int, dict[str, str], str]:
        address = "127.0.0.1", hub.listener.admin_port
        if context is None:
            connection = http.client.HTTPConnection(*address, timeout=10)
        else:
            connection = http.client.HTTPSConnection(*address, timeout=10, context=context)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(asked)


def bearer(token: str) -> dict[str, str]:
    """As Prometheus shows it."""
    return {"Authorization": f"Bearer {token}"}


def basic(token: str, user: str = "anybody") -> dict[str, str]:
    """As a browser shows it."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{token}'.encode()).decode()}"}


@pytest.mark.promise("S1")
async def test_who_shows_no_token_sees_health_and_nothing_else(tmp_path: Path) -> None:
    """On loopback too: other users of the machine are there. 401 says how to show one, of any path."""
    async with closed(tmp_path) as (hub, tokens):
        wrong = ({}, bearer("pw_wrong"), bearer(tokens["ended"]), basic("pw_wrong"), {"Authorization": "Basic %%"})
        for path in CLOSED:
            for headers in wrong:
                status, told, body = await get(hub, path, headers)
                assert (status, told["WWW-Authenticate"].split()[0]) == (401, "Basic"), (path, headers)
                assert "prunewatch tokens make" in body
                assert told["Cache-Control"] == "no-store"
        for path in ("/healthz", "/readyz"):
            assert (await get(hub, path))[0] == 200


async def test_a_token_opens_it_to_programs_and_to_browsers(tmp_path: Path) -> None:
    """Bearer and Basic with any name; the scope `score` is enough, a device's is not; one that is removed shuts it."""
    async with closed(tmp_path) as (hub, tokens):
        for path in CLOSED[:-1]:
            for scope in ("score", "operate"):
                assert (await get(hub, path, bearer(tokens[scope])))[0] == 200
                assert (await get(hub, path, basic(tokens[scope], "")))[0] == 200
        status, _, body = await get(hub, "/metrics", bearer(tokens["device"]))
        assert (status, "`score`" in body) == (403, True)
        remove_token(hub.settings.store / "tokens.json", "score")

        async def shut() -> bool:
            return (await get(hub, "/metrics", bearer(tokens["score"])))[0] == 401

        await eventually(shut, 5)


async def test_without_auth_nobody_is_asked(hub: Hub) -> None:
    """As ever: whoever reaches the address, and a header that was not asked for is no fault."""
    assert (await get(hub, "/metrics"))[0] == 200
    assert (await get(hub, "/metrics", bearer("pw_wrong")))[0] == 200


@pytest.mark.promise("S2/3")
async def test_it_speaks_tls_with_the_present_certificate(tmp_path: Path) -> None:
    """HTTPS alone, by name and by address; a renewed pair is shown to the next connection, its end to Prometheus."""
    certificate, key = put(tmp_path, *AUTHORITY.issue(days=30))
    trusting = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    stranger = ssl.create_default_context(cadata=Authority.new("stranger").pem.decode())
    async with closed(tmp_path, tls={"certificate": certificate, "key": key}) as (hub, tokens):
        shown = bearer(tokens["score"])
        assert (await get(hub, "/healthz", context=trusting))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await get(hub, "/healthz", context=stranger)
        with pytest.raises((http.client.HTTPException, OSError)):
            await get(hub, "/healthz")
        before = ends(await get(hub, "/metrics", shown, trusting))
        put(tmp_path, *AUTHORITY.issue(days=60))

        async def renewed() -> bool:
            presented = await asyncio.to_thread(end_of_certificate, hub.listener.admin_port)
            return presented > time.time() + 58 * DAY

        await eventually(renewed, 10)
        after = ends(await get(hub, "/metrics", shown, trusting))

    assert before == pytest.approx(time.time() + 29 * DAY, abs=120)
    assert after == pytest.approx(time.time() + 59 * DAY, abs=120)


def ends(answer: tuple[int, dict[str, str], str]) -> float:
    """What /metrics says of the end of the certificate."""
    name = "prunewatch_certificate_expiry_timestamp_seconds "
    return float(next(line for line in answer[2].splitlines() if line.startswith(name)).removeprefix(name))


def end_of_certificate(port: int) -> float:
    """Of the one that a new connection is shown, which sends no name."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp()


async def test_who_does_not_finish_a_handshake_holds_nothing_up(tmp_path: Path) -> None:
    """Silent connections beside, the next is served."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    trusting = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    async with closed(tmp_path, tls={"certificate": certificate, "key": key}) as (hub, _):
        silent = [await asyncio.open_connection("127.0.0.1", hub.listener.admin_port) for _ in range(300)]
        status, _, _ = await get(hub, "/healthz", context=trusting)
        for _, writer in silent:
            writer.close()

    assert status == 200


@pytest.mark.parametrize("client_ca", [False, True])
async def test_a_healthcheck_needs_no_authority_and_no_token(tmp_path: Path, client_ca: bool) -> None:
    """The settings name the certificate that must be shown; another one, and a process that drains, are not healthy."""
    certificate, key = put(tmp_path, *AUTHORITY.issue("hub.example", address="10.0.0.7"))
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
    tls = {"certificate": str(certificate), "key": str(key)}
    if client_ca:
        tls["client_ca"] = str(tmp_path / "ca.crt")
    addresses = {"listen": free_address(), "admin": free_address()}
    file = tmp_path / "hub.yaml"
    file.write_text(yaml.safe_dump({"tls": tls, "auth": {}, **addresses}))

    async def check(*arguments: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, ["healthcheck", *arguments])

    async with closed(tmp_path, tls=tls, **addresses) as (hub, _):
        good = await check("--config", str(file))
        elsewhere = tmp_path / "other"
        elsewhere.mkdir()
        other, _ = put(elsewhere, *Authority.new("stranger").issue("hub.example"))
        file.write_text(yaml.safe_dump({"tls": {**tls, "certificate": str(other)}, "auth": {}, **addresses}))
        stranger = await check("--config", str(file))
        await hub.listener.announce_end()
        file.write_text(yaml.safe_dump({"tls": tls, "auth": {}, **addresses}))
        drains = await check("--config", str(file))

    assert (good.exit_code, good.stdout) == (0, f"{addresses['listen']} serves\n"), good.output
    assert (stranger.exit_code, drains.exit_code) == (1, 1)
    assert "it starts or drains" in drains.stderr


async def test_a_healthcheck_of_another_machine_names_the_authority(tmp_path: Path) -> None:
    """`--ca` as with every command; without it a process that encrypts can not be reached."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
    async with closed(tmp_path, tls={"certificate": certificate, "key": key}) as (hub, _):
        asked = ["healthcheck", "--server", f"127.0.0.1:{hub.listener.port}"]
        named = await asyncio.to_thread(CliRunner().invoke, app, [*asked, "--ca", str(tmp_path / "ca.crt")])
        plain = await asyncio.to_thread(CliRunner().invoke, app, asked)

    assert (named.exit_code, plain.exit_code) == (0, 1)


@pytest.mark.slow
async def test_a_real_prometheus_scrapes_it_as_the_page_says(tmp_path: Path) -> None:
    """With the lines of docs/security.md; without the token the target is down."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
    (job,) = next(it for it in map(yaml.safe_load, blocks("docs/security.md", "yaml")) if "scrape_configs" in it)[
        "scrape_configs"
    ]
    how = {name: job[name] for name in ("scheme", "tls_config", "authorization")}
    async with closed(tmp_path, tls={"certificate": certificate, "key": key}) as (hub, tokens):
        (tmp_path / "prometheus.token").write_text(tokens["score"])
        targets = {"prunewatch": [f"127.0.0.1:{hub.listener.admin_port}"]}
        async with running(tmp_path, free_port(), targets, **how) as prometheus:
            await eventually(prometheus.ready, 40)
            (found,) = await eventually(lambda: prometheus.query("prunewatch_certificate_expiry_timestamp_seconds"), 40)
            (tmp_path / "prometheus.token").write_text("pw_wrong")
            refused = await eventually(lambda: prometheus.query("up == 0"), 40)

    assert float(found["value"][1]) == pytest.approx(time.time() + 29 * DAY, abs=300)
    assert refused
