"""What the pages of a hub and of a device show of devices: a real hub, a real agent, a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Points
from browsing import PHONE, browser, violations, visit
from conftest import Hub, eventually
from fleet_hub import offer
from hub_and_device import hub_and_device, token_for
from test_page import DOCUMENT, see

from server import schema
from server.releases import SigningKey
from server.waiting import Waiting


def class_of(overview: dict[str, Any], name: str) -> dict[str, Any]:
    """What an overview says of a device class."""
    return next(it for it in overview["device_classes"] if it["name"] == name)


def begin_to_wait(hub: Hub) -> None:
    """A cycle for a class without a connected device, whose child waits: in the book as the hub writes it."""
    catalog, now = hub.store.catalog, hub.store.catalog.clock()
    waiting = Waiting({"batch": 1}, "c" * 64, "d" * 64, None, now + 86400)
    made = {"hash": "e" * 64, "version": 2, "bytes": 900}
    with catalog.writing() as connection:
        connection.execute(
            schema.cycles.insert().values(
                detector="pump",
                device_class="pi3",
                trigger="manual",
                cause="",
                started=now - 60,
                outcome="awaiting_device",
                reason="waits for devices of pi3",
                result=waiting.within({"outcome": "awaiting_device", "parent": made, "child": made}),
                operation="",
            )
        )


async def test_a_hub_shows_the_devices_of_its_classes(tmp_path: Path) -> None:
    """Connected and away, their steps, what rolls out; no device is named, and a class without any says so."""
    async with hub_and_device(tmp_path) as (hub, device):
        points = Points(series=("b",))

        async def heard() -> bool:
            await points.send(device, 20)
            return bool(class_of(await see(hub, "/api/overview"), "pi4")["in_use"])

        await eventually(heard)
        await offer(hub, 2)

        async def rolls_out() -> Any:
            return class_of(await see(hub, "/api/overview"), "pi4")["rollouts"]

        rollouts = await eventually(rolls_out)
        pi4 = class_of(await see(hub, "/api/overview"), "pi4")
        pi3 = class_of(await see(hub, "/api/overview"), "pi3")
        token = (await token_for(hub, tmp_path, name="other")).read_text()
        hub.fleet.enrolment.enrol("south-1", "pi4", token, SigningKey.generate().public)
        begin_to_wait(hub)

        async def away() -> bool:
            return class_of(await see(hub, "/api/overview"), "pi4")["devices"] == {"connected": 1, "away": 1}

        await eventually(away)

        async def waits() -> Any:
            return class_of(await see(hub, "/api/overview"), "pi3")["waiting"]

        (waiting,) = await eventually(waits)
        text = str(await see(hub, "/api/overview"))
        list(hub.metrics.collect())  # as a scrape does
        shown = hub.metrics.registry.get_sample_value
        place = {"detector": "pump", "device_class": "pi4"}
        begun = {
            shown("prunewatch_bundle_rejections_total", {"device_class": "pi4", "reason": "refused"}),
            shown("prunewatch_rollouts_ended_total", {"device_class": "pi4", "outcome": "stopped"}),
            shown("prunewatch_field_points_total", {"detector": "pump", "outcome": "repeated"}),
        }
        steps = [shown("prunewatch_devices_step_seconds", {**place, "quantile": it}) for it in ("0.5", "0.99")]
        table = shown("prunewatch_class_table_devices", place)
        expires = shown(
            "prunewatch_child_waiting_expires_timestamp_seconds", {"detector": "pump", "device_class": "pi3"}
        )

    assert (pi4["devices"], pi3["devices"]) == ({"connected": 1, "away": 0}, None)
    assert 0 < pi4["in_use"]["pump"]["p50_seconds"] <= pi4["in_use"]["pump"]["p99_seconds"] < 1
    assert [(it["detector"], it["version"], it["stage"]) for it in rollouts] == [("pump", 2, "canary")]
    assert (waiting["detector"], waiting["answers"]) == ("pump", 0)
    assert waiting["expires_seconds"] - waiting["started_seconds"] == 86460
    assert begun == {0.0}  # an alert sees the first one as an increase
    assert 0 < steps[0] <= steps[1] < 1
    assert table in {0, 1}
    assert expires == waiting["expires_seconds"]
    assert "north-7" not in text
    for key in {*pi4, *pi4["devices"], *rollouts[0], *waiting, *pi4["in_use"]["pump"]}:
        assert f"`{key}`" in DOCUMENT, key


async def test_a_device_shows_its_detectors_its_slots_and_its_link(tmp_path: Path) -> None:
    """What scores with its anomalies, what lies in which slot, whether the hub is there, what waits to be told."""
    async with hub_and_device(tmp_path) as (hub, device):
        await Points(series=("b",)).send(
            device, 10, lambda rows: rows + np.float32(50) * (np.arange(len(rows)) > 8)[:, None, None]
        )
        before = await see(device, "/api/overview")
        detector = await see(device, "/api/detectors/pump")
        hub.fleet.links.close()

        async def gone() -> Any:
            told = (await see(device, "/api/overview"))["device"]
            return None if told["connected"] else told

        after = await eventually(gone)

    own = before["device"]
    assert (own["name"], own["device_class"], own["connected"]) == ("north-7", "pi4", True)
    (release,) = own["releases"]
    assert (release["detector"], release["state"], release["reason"]) == ("pump", "serving", "")
    assert [(it["slot"], it["use"]) for it in release["slots"]] == [("a", "serves")]
    assert (before["process"]["role"], before["detectors"][0]["state"]) == ("edge", "ready")
    assert before["detectors"][0]["served"][0]["bundle"]["hash"] == release["bundle"]
    assert detector["anomalies"]
    assert detector["bundles"][0]["hash"] == release["bundle"]
    assert after["last_contact_seconds"] > own["last_contact_seconds"] - 1
    for key in {*own, *release, *release["slots"][0]}:
        assert f"`{key}`" in DOCUMENT, key


@pytest.mark.slow
async def test_both_pages_in_a_browser(tmp_path: Path) -> None:
    """On a screen and on a phone: badges and words are there, nothing sticks out; axe finds nothing wrong."""
    async with browser() as chromium, hub_and_device(tmp_path) as (hub, device):
        await offer(hub, 2)
        begin_to_wait(hub)

        async def tries() -> bool:
            return device.convergence.deployments["pump"].slots.state.trial is not None

        await eventually(tries)
        at = {name: f"http://127.0.0.1:{it.listener.admin_port}/" for name, it in (("hub", hub), ("device", device))}
        for viewport in ({"width": 1280, "height": 900}, PHONE):
            async with visit(chromium, at["hub"], viewport=viewport) as page:
                classes = await page.locator('[data-part="classes"]').inner_text()
                assert viewport == PHONE or await violations(page) == []
                assert not await page.evaluate("document.documentElement.scrollWidth > innerWidth")
            async with visit(chromium, at["device"], viewport=viewport) as page:
                own = await page.locator('[data-part="device"]').inner_text()
                assert await page.locator('[data-part="card pump"]').count() == 1
                assert viewport == PHONE or await violations(page) == []
                assert not await page.evaluate("document.documentElement.scrollWidth > innerWidth")
            for words in ("1 connected", "canary", "version 2 rolls out", "waits for devices", "0 answers so far"):
                assert words in classes, classes
            for words in ("north-7", "connected", "trying", "slot a", "to go back to", "slot b", "on trial"):
                assert words in own, own
