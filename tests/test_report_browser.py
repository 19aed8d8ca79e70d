"""Reports in a real browser: no error, no request, usable by hand and keyboard, readable in every light and width."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Page, find_chromium, visit
from PIL import Image
from test_report import FILE_NAMES, NASTY, write_images

from benchmarks.report import write_images as write_photographs
from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report

if find_chromium() is None:
    pytest.skip("Chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)

# Contrast of two colours by WCAG 2.2; `Canvas` colours come from the page as rgb(...).
CONTRAST = """
(() => {
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
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's report if UPL_REPORT names one, else that of a made-up run with hostile names."""
    if os.environ.get("UPL_REPORT"):
        return Path(os.environ["UPL_REPORT"])
    folder = tmp_path_factory.mktemp("browser")
    write_images(folder / "images", NASTY, FILE_NAMES)
    store = SyntheticRun(folder / "run", folder / "images", NASTY, starved=(4,)).write()
    return Path(write_report(store))


def nothing_wrong(page: Page, report: Path) -> None:
    assert page.problems == []
    assert [r for r in page.requests if not r.startswith("data:")] == [report.resolve().as_uri()]


SHOWN = "[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility()).map((c) => c.dataset.name)"


def test_a_person_filters_to_one_class_and_reads_its_images(report: Path) -> None:
    async def use(page: Page) -> None:
        await page.open(report)
        everything = await page.run(SHOWN)
        wanted = everything[1]
        await page.run("document.getElementById('search').focus()")
        await page.type(wanted)
        assert await page.run(SHOWN) == [wanted]
        assert await page.run("document.getElementById('count').textContent") == f"1 of {len(everything)} classes"
        await page.run("[...document.querySelectorAll('.card details')].find((d) => d.checkVisibility()).open = true")
        await page.run("new Promise((done) => setTimeout(done, 200))")
        rows = await page.run("[...document.querySelectorAll('.card tbody tr')].map((r) => r.cells[1].textContent)")
        assert rows
        assert len(rows) == len(set(rows))
        assert await page.run("document.querySelector('.card table').querySelectorAll('img, script, b').length") == 0
        nothing_wrong(page, report)

    visit(use)


def test_classes_can_be_ordered_and_the_labelers_chosen(report: Path) -> None:
    async def use(page: Page) -> None:
        await page.open(report)
        first = await page.run(SHOWN)
        choose = "((id, value) => { const s = document.getElementById(id); s.value = value; "
        choose += "s.dispatchEvent(new Event('change')); })"
        await page.run(f"{choose}('order', 'name')")
        by_name = await page.run(SHOWN)
        assert sorted(by_name) == sorted(first)
        assert by_name != first
        await page.run(f"{choose}('variant', 'upl')")
        variants = await page.run(
            "[...new Set([...document.querySelectorAll('.card')].filter((c) => c.checkVisibility())"
            ".map((c) => c.dataset.variant))]"
        )
        assert variants == ["upl"]
        nothing_wrong(page, report)

    visit(use)


def test_the_keyboard_reaches_everything_in_order(report: Path) -> None:
    async def use(page: Page) -> None:
        await page.open(report)
        reached: list[str] = []
        for _ in range(14):
            await page.press("Tab", 9)
            reached.append(await page.run("document.activeElement.textContent.trim() || document.activeElement.id"))
            outline = await page.run("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", reached[-1]
        assert reached[0] == "Skip to the content"
        assert reached[1:4] == ["Verdict", "Pseudo-labels", "Observations"]
        nothing_wrong(page, report)

    visit(use)


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1280, "light"), ("dark", 1280, "dark"), ("narrow", 360, "light")]
)
def test_it_can_be_read_in_every_light_and_width(
    report: Path, tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    """Pictures are kept where UPL_SCREENSHOTS says, to be looked at."""
    folder = Path(os.environ.get("UPL_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    async def use(page: Page) -> tuple[Any, int, bytes]:
        await page.look(width, 1000, scheme)
        await page.open(report)
        await page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        await page.run("new Promise((done) => setTimeout(done, 300))")
        contrast = await page.run(CONTRAST)
        overflow = await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        await page.run("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
        for section in ("verdict", "classes", "observations", "members-section", "changes", "calibration"):
            await page.run(f"document.getElementById('{section}').scrollIntoView()")
            await page.run("new Promise((done) => setTimeout(done, 300))")
            picture = await page.screenshot(folder / f"{name}-{section}.png")
        nothing_wrong(page, report)
        return contrast, overflow, picture

    (ratio, where), overflow, picture = visit(use)
    assert ratio >= 4.5, where
    assert overflow <= 0
    with Image.open(io.BytesIO(picture)) as image:
        brightness = np.asarray(image.convert("L")).mean()
    assert (brightness < 100) == (scheme == "dark")


def test_a_thousand_classes_stay_below_10_mb_and_load_within_3_seconds(tmp_path: Path) -> None:
    names = [f"class number {i:04d}" for i in range(1000)]
    write_photographs(tmp_path / "images", names, 16)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", tuple(names), ("upl*",), members=16, top_k=16).write()
    page_file = Path(write_report(store))
    assert (tmp_path / "run" / PAGE).stat().st_size < 10e6

    async def use(page: Page) -> float:
        await page.look(1280, 900)
        seconds = await page.open(page_file)
        await page.run("document.getElementById('search').focus()")
        await page.type("0042")
        assert await page.run(SHOWN) == ["class number 0042"]
        nothing_wrong(page, page_file)
        return seconds

    assert visit(use) < 3
