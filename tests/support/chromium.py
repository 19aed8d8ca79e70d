"""A report in Debian's Chromium, driven by Playwright: opened, used, measured and pictured."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Dialog, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-sync", "--no-first-run")
LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (360, "light")}  # name -> width, colour scheme
CARD = ".card:visible"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
# Least contrast of any text on its ground by WCAG 2.2, and that text.
CONTRAST = """
() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(channel);
  const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const solid = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("main *, nav *, header *")) {
    if (!e.textContent.trim() || e.closest("svg") || !e.checkVisibility()) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(solid(e)))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + ": " + e.textContent.trim().slice(0, 60)];
  }
  return worst;
}
"""


@contextmanager
def opened(report: Path, look: str = "light") -> Iterator[Page]:
    """The page of a report. At the end: no message, no error, no dialog, no request but the page itself."""
    width, scheme = LOOKS[look]
    problems: list[str] = []
    requests: list[str] = []

    def refuse(dialog: Dialog) -> None:
        problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        size = {"width": width, "height": 1000}
        page = browser.new_page(viewport=size, color_scheme=scheme, is_mobile=width < 600)
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", refuse)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.resolve().as_uri())
        yield page
        page.evaluate("0")  # what the page has sent until now has arrived
        browser.close()
    assert problems == []
    assert {r for r in requests if not r.startswith(("data:", "blob:"))} == {report.resolve().as_uri()}


def shown(page: Page) -> list[str]:
    """Names of the classes whose cards are visible."""
    names: list[str] = page.locator(CARD).evaluate_all("(cards) => cards.map((card) => card.dataset.name)")
    return names


def filter_to_one_class(page: Page) -> None:
    """Search for the second class, and open the table of its images."""
    names = shown(page)
    wanted = names[1]
    page.fill("#search", wanted)
    assert shown(page) == [wanted]
    assert page.text_content("#count") == f"1 of {len(names)} classes"
    page.locator(f"{CARD} details").first.evaluate("(details) => { details.open = true; }")
    images = page.locator(f"{CARD} tbody tr > :nth-child(2)").all_text_contents()
    assert images
    assert len(images) == len(set(images))
    assert page.locator(f"{CARD} table").first.locator("img, script, b").count() == 0


def look_around(page: Page, folder: Path, look: str) -> None:
    """Open everything, measure contrast and width, and take a picture of each section.

    The pictures are kept where UPL_SCREENSHOTS says, to be looked at.
    """
    folder = Path(os.environ.get("UPL_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    everything = "(open) => document.querySelectorAll('details').forEach((d) => { d.open = open; })"
    page.evaluate(everything, True)
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where  # WCAG 2.2, level AA
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    page.evaluate(everything, False)
    for section in ("verdict", "correct", "classes", "observations", "members-section", "changes", "calibration"):
        page.evaluate("(id) => document.getElementById(id).scrollIntoView()", section)
        with Image.open(io.BytesIO(page.screenshot(path=folder / f"{look}-{section}.png"))) as image:
            assert (np.asarray(image.convert("L")).mean() < 100) == (LOOKS[look][1] == "dark")
