"""The page in a real browser, on a real hub with a detector that was really fitted and pruned."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from browsing import PHONE, browser, violations, visit
from conftest import QUICK_TRAINER, eventually, hub_settings, publish
from fits import FOUR, fitted, machine
from graphs import ewma_bundle
from typer.testing import CliRunner

from detectors.bundle import Lineage, write_bundle
from detectors.training.export import to_bundle
from detectors.training.fitted import save
from detectors.training.stretches import Stretches
from prunewatch.client import Client
from pruning.frontier import FrontierOptions, build_frontier
from pruning.gate import GateLimits
from server.app import Hub
from server.cli import app
from server.config import DetectorConfig
from server.edge import Edge
from server.frontiers import write_frontier
from server.publish import publish_fit
from server.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
EVIL = "<img src=x onerror=alert(1)>"
BATCH = 64
LOOSE = GateLimits(error_ratio=20, alarm_jaccard=0.0, tail_agreement=-1.0, injected_drop=1.0)
GENEROUS = {"error_ratio": 20.0, "alarm_jaccard": 0.0, "tail_agreement": -1.0, "injected_drop": 1.0}
NORMAL = machine(900, seed=3)
WIDE = """() => [...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > innerWidth)
    .map(it => `${it.tagName} ${it.className}: ${it.textContent.slice(0, 60)}`).slice(-8)"""
"""What is beyond the right edge, for whoever has to mend it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a fitted LSTM, its frontier, and a child that a cycle has picked, judged and reported on."""
    root = tmp_path_factory.mktemp("page") / "store"
    parent, recent = fitted("lstm"), machine(900)
    options = FrontierOptions(updates=20, limits=LOOSE)
    frontier = build_frontier(parent, Stretches.of([recent]), batch=BATCH, points=2, options=options)
    lineage = Lineage(cause="fit", seed=0, data_rows=len(recent), data_first_stamp=0, data_last_stamp=len(recent) - 1)
    bundle = to_bundle(parent, detector="pump", version=1, device_class="parent", lineage=lineage)
    with Store.open(root) as store:
        config = DetectorConfig(
            features=list(FOUR), device_classes=["hub", "pi4"], gate=GENEROUS, false_alarm_rate=0.01
        )
        store.catalog.create_detector("pump", config.model_dump(mode="json"), list(FOUR))
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        publish_fit(store, "pump", {"parent": {**vars(frontier.facts.parent), "version": 1, "hash": bundle.hash}})
        store.history("pump").add_points(np.arange(len(recent)), recent)
        known = replace(frontier.facts, parent=replace(frontier.facts.parent, version=1, hash=bundle.hash))
        write_frontier(root, bundle.hash, known, [save(child) for child in frontier.children], time.time())
    size = frontier.facts.points[-1].bytes * 10 // 9 + 1  # what leaves the margin of a search
    limits = ("--size", f"{size}B", "--batch", str(BATCH), "--store", str(root))
    done = CliRunner().invoke(app, ["prune", "pump", *limits, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(root: Path) -> AsyncIterator[Hub]:
    """A hub on it, with budgets."""
    classes = {"hub": {"p50": "2ms", "batch": BATCH}, "pi4": {"size": "64KiB", "batch": BATCH}}
    settings = hub_settings(root.parent, device_classes=classes, history_flush_seconds="1h")
    running = Hub(settings, trainer=QUICK_TRAINER)
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    """One browser; each visit has a context of its own."""
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(hub: Hub) -> AsyncIterator[Client]:
    """A client of the hub; some points have been scored, and some of a strange series were anomalies."""
    async with Client(f"127.0.0.1:{hub.listener.port}") as connected:
        await send(connected, NORMAL[:60], EVIL)
        await alarm(connected, EVIL)
        await connected.add_label("pump", "normal", 1, 10**9, note=EVIL)
        await connected.create("kiln", {"features": [EVIL]})
        yield connected


def address(hub: Hub | Edge, route: str = "") -> str:
    """Of the page."""
    return f"http://127.0.0.1:{hub.listener.admin_port}/#/{route}"


async def send(client: Client, values: np.ndarray, series: str = "north") -> None:
    """Points of now."""
    stamps = time.time_ns() + np.arange(len(values))
    await client.score("pump", series=[series], stamps=stamps, values=values)


async def alarm(client: Client, series: str) -> None:
    """Points that are far from normal."""
    await send(client, NORMAL[60:72] * np.array([9, 1, 1, 1], np.float32), series)


async def test_the_page_changes_by_itself(hub: Hub, client: Client, chromium: Any) -> None:
    """New points and anomalies are there without a reload, and a screen reader is told of the anomalies."""
    async with visit(chromium, address(hub)) as page:
        await page.evaluate("window.notReloaded = true")
        before = await page.locator('[data-part="card pump"] .figures').inner_text()
        await send(client, NORMAL[:60], "live")
        await alarm(client, "live")
        await page.wait_for_function(
            "() => document.getElementById('said').textContent.includes('on pump')", timeout=9000
        )
        after = await page.locator('[data-part="card pump"] .figures').inner_text()
        first = await page.locator('[data-part="anomalies"] li').first.inner_text()

        assert before != after
        assert "live" in first
        assert "flow" in first
        assert await page.evaluate("window.notReloaded") is True
        assert await page.locator('[data-part="card pump"] .spark .flag').count() >= 1


async def test_names_and_notes_are_text_whatever_is_in_them(hub: Hub, client: Client, chromium: Any) -> None:
    """Markup in a series, a note and a feature is seen as it was written, and is no element."""
    await alarm(client, EVIL)
    for route, part in (("", "anomalies"), ("detectors/pump", "said"), ("detectors/kiln", "head")):
        async with visit(chromium, address(hub, route)) as page:
            await page.wait_for_function(  # answers are up to a second old
                "([part, text]) => document.querySelector(`[data-part='${part}']`)?.textContent.includes(text)",
                arg=[part, EVIL],
                timeout=15_000,
            )
            assert await page.locator('img[src="x"]').count() == 0


async def test_a_detector_shows_what_became_of_it(hub: Hub, client: Client, chromium: Any) -> None:
    """Sizes from parent to child, a frontier with its table, lineage, the gate's figures and what left."""
    async with visit(chromium, address(hub, "detectors/pump")) as page:
        await page.wait_for_selector(".scatter")
        await page.wait_for_selector('[data-part="report"] details')
        text = {
            part: await page.locator(f'[data-part="{part}"]').inner_text() for part in ("sizes", "lineage", "cycles")
        }
        report = await page.locator('[data-part="report"]').inner_text()

        assert re.search(r"32\s*→\s*\d+", text["sizes"])
        assert "of 2 ms" in text["sizes"]
        assert "version 2 child for hub" in text["lineage"]
        assert "serves hub" in text["lineage"]
        assert "adopted" in text["cycles"]
        assert re.search(r"\d of \d passed", text["cycles"])
        assert re.search(r"layer0\s+16 → \d+, units removed", report)
        assert await page.locator(".scatter circle.front, .scatter circle.behind").count() == 2
        assert await page.locator(".tree > li > ul > li").count() == 1


async def test_an_address_is_a_view(hub: Hub, client: Client, chromium: Any) -> None:
    """A cycle can be bookmarked, Back goes back, and what is not there says so with a way out."""
    async with visit(chromium, address(hub, "detectors/pump?class=pi4&cycle=1")) as page:
        await page.wait_for_selector('[data-part="report"] details')
        assert await page.title() == "pump, prunewatch"
        assert await page.locator(".choice a[aria-current]").inner_text() == "pi4"
        await page.click("text=All detectors")
        await page.wait_for_selector('[data-part="card pump"]')
        await page.go_back()
        await page.wait_for_selector('[data-part="scores"]')
    async with visit(chromium, address(hub, "detectors/nobody"), strict=False) as page:
        assert "there is no detector 'nobody'" in await page.locator("main").inner_text()
        await page.click("text=All detectors")
        await page.wait_for_selector('[data-part="card pump"]')


@pytest.mark.parametrize("route", ["", "detectors/pump", "detectors/kiln"])
async def test_axe_finds_nothing_wrong(hub: Hub, client: Client, chromium: Any, route: str) -> None:
    """WCAG 2.2 AA and best practices, in light and dark, on a desk and on a phone, with everything unfolded."""
    async with visit(chromium, address(hub, route)) as page:
        if route == "detectors/pump":
            await page.wait_for_selector(".scatter")
            await page.wait_for_selector('[data-part="report"] details')
        await page.evaluate("document.querySelectorAll('details').forEach(it => { it.open = true })")
        found = await violations(page)
        await page.set_viewport_size(PHONE)
        await page.emulate_media(color_scheme="dark")
        found += await violations(page)

        assert found == []


async def test_light_and_dark_are_what_the_reader_prefers(hub: Hub, client: Client, chromium: Any) -> None:
    """The ground is light or dark with `prefers-color-scheme`, and changes with it."""
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    async with visit(chromium, address(hub), scheme="light") as page:
        light = await page.evaluate(brightness)
        await page.emulate_media(color_scheme="dark")
        dark = await page.evaluate(brightness)

    assert min(light) > 200
    assert max(dark) < 60


@pytest.mark.parametrize("route", ["", "detectors/pump", "detectors/kiln"])
async def test_a_phone_scrolls_down_and_never_sideways(hub: Hub, client: Client, chromium: Any, route: str) -> None:
    """At 390 and at 320 pixels nothing is wider than the screen; tables scroll by themselves."""
    async with visit(chromium, address(hub, route), viewport=PHONE) as page:
        if route == "detectors/pump":
            await page.wait_for_selector('[data-part="report"] details')
            assert await page.locator(".scroll").first.evaluate("it => it.scrollWidth > it.clientWidth")
        for width in (390, 320):
            await page.set_viewport_size({"width": width, "height": 800})
            wide = await page.evaluate(WIDE)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, wide


async def test_the_keyboard_reaches_everything_and_keeps_its_place(hub: Hub, client: Client, chromium: Any) -> None:
    """Skip link first; each stop is visible and outlined; Enter follows; a live update does not steal the focus."""
    async with visit(chromium, address(hub)) as page:
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "skip"
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        stops = []
        while (stop := await page.evaluate("document.activeElement.textContent")) != "pump" and len(stops) < 40:
            await page.keyboard.press("Tab")
            outline = await page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
            assert outline >= 2
            stops.append(stop)
        assert len(stops) < 40
        await send(client, NORMAL[:5], "keyboard")
        await page.wait_for_function(
            "before => document.querySelector('[data-part=\"card pump\"] .figures').textContent !== before",
            arg=await page.locator('[data-part="card pump"] .figures').text_content(),
            timeout=9000,
        )
        assert await page.evaluate("document.activeElement.textContent") == "pump"
        await page.keyboard.press("Enter")
        await page.wait_for_selector('[data-part="scores"]')
        await page.wait_for_function("() => document.activeElement.id === 'main'")


async def test_a_live_update_leaves_alone_what_was_opened(hub: Hub, client: Client, chromium: Any) -> None:
    """Details that somebody opened stay open while their section is drawn again."""
    async with visit(chromium, address(hub, "detectors/pump")) as page:
        await page.click('[data-part="head"] summary')
        before = await page.locator('[data-part="head"] .facts').inner_text()
        await send(client, NORMAL[:5], "opened")
        await page.wait_for_function(
            "before => document.querySelector('[data-part=\"head\"] .facts').innerText !== before",
            arg=before,
            timeout=9000,
        )

        assert await page.locator('[data-part="head"] details').evaluate("it => it.open")
        assert await page.evaluate("document.activeElement.tagName") == "SUMMARY"


async def test_a_hub_that_does_not_answer_is_waited_for(hub: Hub, client: Client, chromium: Any) -> None:
    """The page says so, keeps what it shows, and goes on when there are answers again."""
    async with visit(chromium, address(hub), strict=False) as page:
        await page.wait_for_selector('[data-part="card pump"]')
        await page.route("**/api/**", lambda route: route.abort())
        await page.wait_for_selector("#link.bad", timeout=9000)
        assert await page.locator('[data-part="card pump"]').count() == 1
        await page.unroute("**/api/**")
        await page.wait_for_selector("#link.good", timeout=15000)


async def test_an_empty_hub_says_what_to_do_first(tmp_path: Path, chromium: Any) -> None:
    """No detector: the command that makes one, with the address of this very hub."""
    empty = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await empty.start()
    try:
        async with visit(chromium, address(empty)) as page:
            text = await page.locator("main").inner_text()
            assert "prunewatch fit pump --data train.csv --server" in text
            assert await violations(page) == []
            await publish(empty, ewma_bundle("fan"))
            await page.wait_for_selector('[data-part="card fan"]', timeout=9000)
            assert "prunewatch fit" not in await page.locator("main").inner_text()
    finally:
        await empty.stop()


async def test_a_device_has_the_page_too(tmp_path: Path, chromium: Any) -> None:
    """Its one detector with live scores and anomalies; nothing of cycles, and axe finds nothing wrong."""
    edge = Edge(ewma_bundle("pump", warm_up_points=0, gain=10), hub_settings(tmp_path))
    await edge.start()
    try:
        async with Client(f"127.0.0.1:{edge.listener.port}") as device:
            await device.score("pump", series=["a"], stamps=time.time_ns() + np.arange(4), values=np.eye(4, 2) * 9)
        async with visit(chromium, address(edge, "detectors/pump")) as page:
            assert await page.locator('[data-part="anomalies"] li').count() >= 1
            assert await page.locator('[data-part="cycles"]').count() == 0
            assert await violations(page) == []

            async def told() -> bool:
                return "edge" in await page.locator("#process").inner_text()

            await eventually(told)
    finally:
        await edge.stop()
    await asyncio.sleep(0)
