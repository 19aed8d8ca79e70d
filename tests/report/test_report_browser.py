"""Reports in a real browser: no error, no request, usable by hand and keyboard, readable in every light and width."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from chromium import CARD, CONTRAST, LOOKS, filter_to_one_class, look_around, needs_chromium, opened, shown
from PIL import Image
from playwright.sync_api import Page, expect
from report_pages import NASTY

from benchmarks.report import write_images as write_photographs
from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report
from upl_ray.storage.store import Store

pytestmark = needs_chromium
DATA = "JSON.parse(document.getElementById('data').textContent)"


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
        assert reached[1:4] == ["Verdict", "Correct", "Pseudo-labels"]


@pytest.mark.parametrize("look", LOOKS)
def test_it_can_be_read_in_every_light_and_width(report: Path, tmp_path: Path, look: str) -> None:
    with opened(report, look) as page:
        look_around(page, tmp_path, look)


def corrections_of(page: Page, folder: Path) -> list[list[str]]:
    """The rows of the file that the page offers, in the order of ids."""
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "corrections.csv"
    download.value.save_as(folder / "corrections.csv")
    with (folder / "corrections.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_id", "label", "mark"]
    return sorted(rows)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.parametrize("look", ["light", "narrow"])
def test_labels_are_corrected_by_keyboard_alone_and_kept(report: Path, tmp_path: Path, look: str) -> None:
    with opened(report, look) as page:
        first = NASTY[0]
        page.fill("#search", first)
        page.locator(f"{CARD} .check").first.focus()
        press(page, "Enter")
        assert page.text_content("#review-label") == first
        shown_id = page.text_content("#review-id")
        ids = [
            row[0]
            for row in page.evaluate("JSON.parse(document.getElementById('data').textContent)")["images"]["upl-star"][
                "0"
            ]
        ]
        assert shown_id == ids[0]
        press(page, "r", "w", "n", "c")
        page.keyboard.type("more")  # a part of another class' name
        press(page, "Enter")
        assert (
            page.text_content("#corrected")
            == "4 corrections: 1 right, 1 wrong, 1 none of the classes, 1 another class."
        )
        expected = [[ids[0], first, "right"], [ids[1], "", "wrong"], [ids[2], "", "none"], [ids[3], NASTY[1], "other"]]
        assert corrections_of(page, tmp_path) == sorted(expected)
        page.locator(f"{CARD} .check").first.focus()
        press(page, "Enter", "ArrowRight", "ArrowRight", "ArrowLeft", "r")  # the second one again: right after all
        assert corrections_of(page, tmp_path) == sorted([*expected[:1], [ids[1], first, "right"], *expected[2:]])
        page.locator(f"{CARD} .check").first.focus()
        press(page, "Enter", "u", "u", "Escape")
        assert page.evaluate("document.activeElement.className") == "check"
        assert not page.locator("#review").is_visible()
        assert corrections_of(page, tmp_path) == sorted(expected[:3])
        page.reload()
        assert corrections_of(page, tmp_path) == sorted(expected[:3])
        assert page.locator(f"{CARD} .marks text").count() >= 3
        page.locator("#bar").screenshot()


def test_answers_in_two_open_pages_are_all_kept(report: Path, tmp_path: Path) -> None:
    with opened(report) as page:
        with page.expect_popup() as popup:
            page.evaluate("() => { open(location.href) }")
        other, ids = popup.value, []
        for where in (page, other, page):
            where.locator(f"{CARD} .check").nth(len(ids)).click()
            ids.append(where.text_content("#review-id"))
            press(where, "n", "Escape")
        assert len(set(ids)) > 1
        expect(other.locator("#corrected")).to_contain_text(f"{len(set(ids))} corrections")
        assert corrections_of(page, tmp_path) == sorted([i, "", "none"] for i in set(ids))


def test_what_is_typed_stays_when_the_window_changes_and_old_class_names_are_left_out(report: Path) -> None:
    with opened(report) as page:
        page.locator(f"{CARD} .check").first.click()
        press(page, "c")
        page.keyboard.type("cla")
        page.set_viewport_size({"width": 700, "height": 500})
        page.wait_for_timeout(100)
        assert page.input_value("#other") == "cla"
        key = f"upl_ray corrections of {page.evaluate(DATA)['corpus']}"
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, '[["x.png", "gone", "other"]]'])
        page.reload()
        assert page.text_content("#corrected") == "No correction yet."


def test_a_click_on_a_thumbnail_asks_about_that_image(report: Path) -> None:
    with opened(report, "narrow") as page:
        box = page.locator("[data-list=doubtful] .strip").bounding_box()
        rows = page.evaluate(DATA)["doubtful"]
        assert box
        assert len(rows) > 9
        place = {"x": box["width"] * 1.5 / 8, "y": box["height"] - 3}
        page.locator("[data-list=doubtful] .strip img").click(position=place)
        lowest = 8 * ((len(rows) - 1) // 8) + 1
        assert page.text_content("#review-place") == f"{lowest + 1} of {len(rows)}"
        assert page.text_content("#review-id") == rows[lowest][0]
        page.click("[data-answer=none]")
        assert page.text_content("#corrected") == "1 correction: 1 none of the classes."
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


@pytest.mark.parametrize("look", LOOKS)
def test_the_panel_can_be_read_and_fits(report: Path, look: str) -> None:
    with opened(report, look) as page:
        page.locator("[data-list=least_known] .check").click()
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
        size, window = page.locator("#review").bounding_box(), page.viewport_size
        assert size
        assert window
        assert 0 <= size["x"] <= window["width"] - size["width"]
        assert 0 <= size["y"] <= window["height"] - size["height"] + 1
        zoom = page.locator("#zoom")
        folder = Path(os.environ.get("UPL_SCREENSHOTS", report.parent))
        page.screenshot(path=folder / f"{look}-review.png")
        with Image.open(io.BytesIO(zoom.screenshot())) as picture:
            assert picture.convert("L").entropy() > 3  # it shows an image


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
        page.locator("[data-list=least_known] .check").click()
        first = page.text_content("#review-id")
        press(page, "c")
        page.keyboard.type("number 0042")
        assert page.locator("#classnames option").count() == 1
        press(page, "Enter", "Escape")
        assert corrections_of(page, tmp_path) == [[first, "class number 0042", "other"]]
