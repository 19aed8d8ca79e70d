"""Reports in a real browser: no error, no request, usable by hand and keyboard, readable in every light and width."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import LOOKS, SHOWN, Page, filter_to_one_class, find_chromium, look_around, nothing_wrong, visit
from report_pages import FILE_NAMES, NASTY, write_images

from benchmarks.report import write_images as write_photographs
from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report

if find_chromium() is None:
    pytest.skip("Chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made-up run with hostile names; that of the demo is opened in `test_demo.py`."""
    folder = tmp_path_factory.mktemp("browser")
    write_images(folder / "images", NASTY, FILE_NAMES)
    store = SyntheticRun(folder / "run", folder / "images", NASTY, starved=(4,)).write()
    return Path(write_report(store))


def test_a_person_filters_to_one_class_and_reads_its_images(report: Path) -> None:
    visit(lambda page: filter_to_one_class(page, report))


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


@pytest.mark.parametrize("name", LOOKS)
def test_it_can_be_read_in_every_light_and_width(report: Path, tmp_path: Path, name: str) -> None:
    visit(lambda page: look_around(page, report, tmp_path, name))


@pytest.mark.slow
def test_a_thousand_classes_stay_below_10_mb_and_one_is_found(tmp_path: Path) -> None:
    names = [f"class number {i:04d}" for i in range(1000)]
    write_photographs(tmp_path / "images", names, 16, letters=80)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", tuple(names), members=16, top_k=16).write()
    page_file = Path(write_report(store))
    assert (tmp_path / "run" / PAGE).stat().st_size < 10e6

    async def use(page: Page) -> None:
        await page.look(1280, 900)
        await page.open(page_file)  # benchmarks.report says how fast
        await page.run("document.getElementById('search').focus()")
        await page.type("0042")
        assert await page.run(SHOWN) == ["class number 0042"]
        nothing_wrong(page, page_file)

    visit(use)
