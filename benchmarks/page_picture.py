"""Takes the picture of the page that the README shows: `python benchmarks/page_picture.py`, a few minutes.

It builds the scene of `page_scene.py`, lets points stream for a while, and looks with a headless Chromium. With
`--all FOLDER` it takes every view too, on a desk and on a phone, light and dark, to be looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from page_scene import scene
from playwright.async_api import async_playwright

OUT = Path(__file__).resolve().parent.parent / "docs" / "page.png"
STREAM_SECONDS = 75.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
DESK, PHONE = (1440, 900), (390, 844)
VIEWS = {"overview": "", "pump": "detectors/pump", "pump-pi4": "detectors/pump?class=pi4", "press": "detectors/press"}


async def picture(browser: Any, address: str, out: Path, size: tuple[int, int], scheme: str, *, whole: bool) -> None:
    """One view, once everything on it has come."""
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = await context.new_page()
    await page.goto(address)
    await page.wait_for_selector("main h1, main h2", state="attached")
    await page.wait_for_timeout(3000)
    await page.screenshot(path=str(out), full_page=whole)
    await context.close()


async def take(out: Path, everything: Path | None) -> None:
    """Builds the scene and looks at it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as hub, async_playwright() as driver:
            await asyncio.sleep(STREAM_SECONDS)
            browser = await driver.chromium.launch(executable_path=chromium, args=FLAGS)
            base = f"http://127.0.0.1:{hub.listener.admin_port}/#/"
            await picture(browser, base, out, DESK, "light", whole=False)
            for name, route in VIEWS.items() if everything else ():
                for scheme in ("light", "dark"):
                    for kind, size in (("desk", DESK), ("phone", PHONE)):
                        file = everything / f"{name}-{kind}-{scheme}.png"
                        await picture(browser, base + route, file, size, scheme, whole=True)
            await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    asyncio.run(take(given.out, given.all))
