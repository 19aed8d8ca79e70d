"""Images and names for made-up runs, and what their reports hold."""

from __future__ import annotations

import csv
import html.parser
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from upl_ray.artifacts import Artifact, Store
from upl_ray.report.page import PAGE

NASTY = ("<script>alert(1)<script>", "\"quotes\" & 'more'", "$a_1$ <title>", "日本 \u2028 \u202e rtl", "{{ 7*7 }}")
FILE_NAMES = ("it's.png", 'a "b".png', "<img src=x onerror=alert(2)>.png", "line\u2028.png", "plain.png", "=1+1.png")


def write_images(folder: Path, names: tuple[str, ...], per_class: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for file in per_class:
            noise = rng.integers(0, 40, (30, 50, 3)) + 20 * i
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / file, "PNG")


class Seen(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(store: Store) -> str:
    return store.read(PAGE).decode()


def rows_of(store: Store, name: str) -> list[dict[str, str]]:
    """Rows of a table, without the mark that keeps spreadsheets from running what begins like a formula."""
    rows = csv.DictReader(io.StringIO(store.read(name).decode(), newline=""))
    return [{k: v[v.startswith(("'=", "'+", "'-", "'@")) :] for k, v in r.items()} for r in rows]


def commits_of(store: Store, folder: str) -> list[list[dict[str, Any]]]:
    artifact = Artifact(store, *folder.split("-"))
    return [artifact.read_shard(c).to_pylist() for c in sorted(artifact.committed())]
