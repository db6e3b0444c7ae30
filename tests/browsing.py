"""A real Chromium for tests of the page, and what every visit must keep to."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed (group `page`)")
axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed (group `page`)")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """Headless; where there is no Chromium the test is skipped, and says so."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    async with playwright.async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield running
        finally:
            await running.close()


@asynccontextmanager
async def visit(
    running: Any, address: str, *, viewport: dict[str, int] = DESKTOP, scheme: str = "light", strict: bool = True
) -> AsyncIterator[Any]:
    """A page at an address, once something is shown on it.

    With `strict`, it must end without an error on the console, without a dialog, and without having asked another host.
    """
    origin = address.partition("/#")[0].rstrip("/")
    context = await running.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = await context.new_page()
    wrong: list[str] = []
    page.on("console", lambda told: wrong.append(told.text) if told.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda it: wrong.append(it.url) if not it.url.startswith(f"{origin}/") else None)

    async def dismiss(dialog: Any) -> None:
        wrong.append(f"dialog {dialog.message}")
        await dialog.dismiss()

    page.on("dialog", dismiss)
    try:
        await page.goto(address)
        await page.wait_for_selector("main h1, main h2", state="attached")
        yield page
    finally:
        await context.close()
    if strict:
        assert wrong == []


async def violations(page: Any) -> list[str]:
    """What axe finds wrong: rule and element."""
    await page.evaluate(axe.AXE_SCRIPT)
    found = await page.evaluate("options => axe.run(document, options)", RULES)
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
