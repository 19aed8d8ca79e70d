"""Made-up runs and their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_pages import FILE_NAMES, NASTY, MakeRun, reported, write_images

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.storage.store import Store


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Runs over the same images, of the variant `upl` unless another is named."""

    def make(
        names: tuple[str, ...] = ("a", "b"), files: tuple[str, ...] = FILE_NAMES, folder: str = "run", **changes: Any
    ) -> SyntheticRun:
        if not (tmp_path / "images").exists():
            write_images(tmp_path / "images", names, files)
        return SyntheticRun(tmp_path / folder, tmp_path / "images", names, **{"variants": ("upl",), **changes})

    return make


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A reported run whose every name is an attempt to break the page; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("nasty")
    write_images(folder / "images", NASTY, FILE_NAMES)
    bad = f"{NASTY[1]}/<img src=x onerror=alert(2)>.png"
    rejected = {bad: "damaged image: <b>boo</b>"}
    return reported(SyntheticRun(folder / "run", folder / "images", NASTY, starved=(4,), rejected=rejected))
