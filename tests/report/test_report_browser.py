"""Reports in a real browser: no error, no request, usable by hand and keyboard, readable in every light and width."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import LOOKS, filter_to_one_class, look_around, needs_chromium, opened, shown

from benchmarks.report import write_images as write_photographs
from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report
from upl_ray.storage.store import Store

pytestmark = needs_chromium


@pytest.fixture
def report(nasty: Store) -> Path:
    """The page with hostile names; that of the demo is opened in `test_demo.py`."""
    return Path(nasty.uri) / PAGE


def test_a_person_filters_to_one_class_and_reads_its_images(report: Path) -> None:
    with opened(report) as page:
        filter_to_one_class(page)


def test_classes_can_be_ordered_and_the_labelers_chosen(report: Path) -> None:
    with opened(report) as page:
        first = shown(page)
        page.select_option("#order", "name")
        by_name = shown(page)
        assert sorted(by_name) == sorted(first)
        assert by_name != first
        page.select_option("#variant", "upl")
        variants = page.locator(".card:visible").evaluate_all("(cards) => cards.map((card) => card.dataset.variant)")
        assert set(variants) == {"upl"}


def test_the_keyboard_reaches_everything_in_order(report: Path) -> None:
    with opened(report) as page:
        reached: list[str] = []
        for _ in range(14):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
        assert reached[0] == "Skip to the content"
        assert reached[1:4] == ["Verdict", "Pseudo-labels", "Observations"]


@pytest.mark.parametrize("look", LOOKS)
def test_it_can_be_read_in_every_light_and_width(report: Path, tmp_path: Path, look: str) -> None:
    with opened(report, look) as page:
        look_around(page, tmp_path, look)


@pytest.mark.parametrize(
    "fault",
    [
        "<script>console.warn('look here')</script>",
        "<script>throw new Error('no such thing')</script>",
        "<script>alert('hello')</script>",
        "<script>setTimeout(() => { no_such_name() })</script>",
        "<img src='http://127.0.0.1:9/picture.png' alt=''>",
        "<link rel='stylesheet' href='other.css'>",
        "<script>fetch('http://127.0.0.1:9/').catch(() => 0)</script>",
    ],
)
def test_a_page_that_complains_or_asks_for_more_is_found(tmp_path: Path, fault: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'><title>page</title>{fault}")
    with pytest.raises(AssertionError), opened(tmp_path / "page.html"):
        pass


@pytest.mark.slow
def test_a_thousand_classes_stay_below_10_mb_and_one_is_found(tmp_path: Path) -> None:
    names = [f"class number {i:04d}" for i in range(1000)]
    write_photographs(tmp_path / "images", names, 16, letters=80)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", tuple(names), members=16, top_k=16).write()
    report = Path(write_report(store))
    assert (tmp_path / "run" / PAGE).stat().st_size < 10e6
    with opened(report) as page:
        page.fill("#search", "0042")
        assert shown(page) == ["class number 0042"]
