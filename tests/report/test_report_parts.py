"""Parts of a report: pictures within their budget, text in figures."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from report_pages import MakeRun, Seen, page_of, reported, table_of

from upl_ray.report import cards, thumbnails
from upl_ray.report.figures import figure_style, new_figure, to_svg
from upl_ray.report.page import write_report


def test_a_persons_own_settings_of_matplotlib_change_nothing() -> None:
    figures = []
    for settings in ({}, {"text.usetex": True, "axes.facecolor": "black", "font.size": 40}):
        with mpl.rc_context(settings):
            with figure_style():
                figure, axes = new_figure()
                axes.plot([0, 1], [0, 1], label="cat")
                figures.append(to_svg(figure, "f", "title", "about"))
            assert all(mpl.rcParams[name] == value for name, value in settings.items())
    assert figures[0] == figures[1]


def test_a_class_name_that_looks_like_a_colour_or_an_id_stays_text() -> None:
    name = 'id="x #0072b2 url(#a)'
    with figure_style():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], color="#0072b2", label=name)
        axes.legend()
        svg = to_svg(figure, "f", name, name)
    seen = Seen(svg)
    assert "".join(seen.text).count(name) == 3  # title, description, legend
    assert "var(--series-1)" in svg
    assert not any("#0072b2" in (value or "") for _, attributes in seen.elements for value in attributes.values())


def test_sprites_stay_within_their_budget() -> None:
    rng = np.random.default_rng(0)
    tiles: dict[str, list[thumbnails.Tile]] = {
        str(k): [rng.integers(0, 255, (96, 96, 3)).astype(np.uint8) for _ in range(16)] for k in range(6)
    }
    sizes = []
    for budget in (10**9, 60_000, 30_000):
        made = list(thumbnails.within(tiles, budget))
        assert [k for k, *_ in made] == list(tiles)
        assert sum(len(webp) for _, _, webp, _ in made) <= budget
        for _, _, webp, size in made:
            with Image.open(io.BytesIO(webp)) as image:
                assert image.size == (8 * size, 2 * size)
        sizes.append(made[0][3])
    assert sizes[0] == 96
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_long_names_cost_pictures_and_not_the_size_of_the_page(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, files = tuple(f"class {i:02d}" for i in range(20)), tuple(f"{i}{'x' * 150}.png" for i in range(8))
    store = reported(make_run(names, files, variants=("upl*", "upl"), top_k=8))
    roomy = Seen(page_of(store))
    other = len(re.sub(r"<article.*</article>|<script type=.*?</script>", "", page_of(store), flags=re.S))
    monkeypatch.setattr(cards, "OTHER_BYTES", other)  # of a small page the figures are most
    for limit in (other + 120_000, other + 80_000):
        monkeypatch.setattr(cards, "PAGE_BYTES", limit)
        write_report(store, again=True)
        assert len(page_of(store).encode()) < limit
    seen = Seen(page_of(store))
    assert len([t for t, _ in seen.elements if t == "article"]) == 40
    pixels = [sum(int(a["width"] or 0) for t, a in s.elements if t == "img") for s in (roomy, seen)]
    assert pixels[1] < pixels[0]
    monkeypatch.setattr(cards, "MAX_CARDS", 30)
    write_report(store, again=True)
    assert page_of(store).count("<article") == 30
    assert "The 10 cards that need a look least are left out" in page_of(store)
    assert len(table_of(store, "classes-upl")) == 20


def test_a_tile_shows_the_centre_of_its_image() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = (200, 100, 50)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    tile = thumbnails.make_tile(out.getvalue(), 20)
    assert not isinstance(tile, str)
    np.testing.assert_allclose(tile[:, 3:-3], np.broadcast_to([200, 100, 50], (20, 14, 3)), atol=3)
