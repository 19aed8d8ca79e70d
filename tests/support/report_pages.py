"""Images and names for made-up runs, and what their reports hold."""

from __future__ import annotations

import csv
import html.parser
import io
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store

NASTY = ("<script>alert(1)<script>", "\"quotes\" & 'more'", "$a_1$ <title>", "日本 \u2028 \u202e rtl", "{{ 7*7 }}")
FILE_NAMES = ("it's.png", 'a "b".png', "<img src=x onerror=alert(2)>.png", "line\u2028.png", "plain.png", "=1+1.png")


def write_images(folder: Path, names: tuple[str, ...], per_class: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for file in per_class:
            noise = rng.integers(0, 40, (30, 50, 3)) + 20 * i
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / file, "PNG")


class MakeRun(Protocol):
    """`make_run(("a", "b"), FILE_NAMES, folder="run", top_k=4)`: writes images, and returns a run to be written."""

    def __call__(
        self, names: tuple[str, ...] = ..., files: tuple[str, ...] = ..., folder: str = ..., **changes: Any
    ) -> SyntheticRun: ...


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


def reported(run: SyntheticRun) -> Store:
    """Write a run and its report."""
    store = run.write()
    write_report(store)
    return store


def page_of(store: Store) -> str:
    return store.read(PAGE).decode()


def text_of(page: str) -> str:
    """Everything that a page says, with single blanks."""
    return " ".join("".join(Seen(page).text).split())


def rows_of(store: Store, name: str) -> list[dict[str, str]]:
    """Rows of a table, without the mark that keeps spreadsheets from running what begins like a formula."""
    rows = csv.DictReader(io.StringIO(store.read(name).decode(), newline=""))
    return [{k: v[v.startswith(("'=", "'+", "'-", "'@")) :] for k, v in r.items()} for r in rows]


def table_of(store: Store, name: str) -> list[dict[str, Any]]:
    """Rows of `report/tables/<name>.json`."""
    rows: list[dict[str, Any]] = json.loads(store.read(f"report/tables/{name}.json"))
    return rows


def commits_of(store: Store, folder: str) -> list[list[dict[str, Any]]]:
    step = Step(store, *folder.split("-"))
    return [step.read_shard(c).to_pylist() for c in sorted(step.committed())]
