"""Writes the report of a finished run: one page that needs nothing else, figures as PNG, tables as CSV and JSON.

report/index.html      the page; figures/*.png, tables/*.csv, tables/*.json: what it shows, for slides and programs
report/labels/         pseudo-labels and predictions as CSV, and in a form that FiftyOne imports
report/tensorboard/    training curves of the members, parameters and final figures
report/manifest.json   written last
"""

from __future__ import annotations

import logging
import time
from typing import Any

from upl_ray.artifacts import Store, fingerprint
from upl_ray.integrity import Damaged
from upl_ray.progress import duration
from upl_ray.report import exhibits
from upl_ray.report.cards import Card, image_rows, make_cards
from upl_ray.report.events import write_events
from upl_ray.report.exhibit import Exhibit
from upl_ray.report.export import AT_ONCE, as_csv, as_json, export_labels
from upl_ray.report.figures import figure_style, to_png, to_svg
from upl_ray.report.findings import Findings, gather
from upl_ray.report.finished import FinishedRun, open_run
from upl_ray.report.html import render
from upl_ray.report.tables import all_tables, rejected_images
from upl_ray.report.thumbnails import Sprite
from upl_ray.report.verdict import facts, provenance_rows, sentences, step_rows
from upl_ray.snapshot import REJECTED

log = logging.getLogger(__name__)

VERSION = 3  # raise when the same run gives another report
FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
TABLE_ROWS = 40  # of a table on the page; the whole one lies beside it
REJECTED_ROWS = 200


def write_report(store: Store, again: bool = False, every_label: bool = False) -> str:
    """Make the report of the run in a storage from what lies there; returns the page's address.

    Args:
        store: the storage of a finished run.
        again: make it although it is there.
        every_label: export the labels of a corpus of any size, not only of up to `AT_ONCE` images.

    Raises:
        ConfigError: there is no finished run, or one that was made before reports existed.
    """
    started = time.monotonic()
    run = open_run(store.uri)
    identity = {k: v for k, v in run.summary.items() if k not in ("status", "seconds", "steps")}
    corpora = {part: corpus.labels_digest for part, corpus in run.corpora.items()}
    digest = fingerprint({"version": VERSION, "run": identity, "corpora": corpora})
    if not again and _made(store) == digest:
        log.info("%-12s already there: %s", "report", store.join(PAGE))
        return store.join(PAGE)
    found = gather(run)
    cards, changed = make_cards(found, run.classnames, run.corpora["corpus"])
    shown = _exhibits(run, found)
    for name, header, rows in all_tables(run, found, cards):
        _write_table(store, name, header, rows)
    labels = export_labels(run, f"{FOLDER}/labels") if every_label or run.summary["images"] <= AT_ONCE else []
    write_events(run, f"{FOLDER}/tensorboard", found)
    html = render("report.html.j2", **_context(run, found, cards, changed, shown), labels=labels).encode()
    store.write(PAGE, html)
    store.write_sealed(f"{FOLDER}/manifest.json", {"fingerprint": digest, "bytes": len(html), "figures": len(shown)})
    took = duration(time.monotonic() - started)
    log.info("%-12s %.1f MB, %d figures in %s: %s", "report", len(html) / 1e6, len(shown), took, store.join(PAGE))
    return store.join(PAGE)


def _made(store: Store) -> str | None:
    """Fingerprint of the page that is there."""
    try:
        made = str(store.read_sealed(f"{FOLDER}/manifest.json")["fingerprint"])
    except (FileNotFoundError, Damaged):  # a page is made again in seconds
        return None
    return made if PAGE.rpartition("/")[2] in store.names(FOLDER) else None


def _exhibits(run: FinishedRun, found: list[Findings]) -> list[dict[str, Any]]:
    """Draw every figure, write its files, and return what the page shows of it."""
    shown = []
    with figure_style():
        for section, exhibit in exhibits.all_exhibits(found, run.classnames, int(run.config["label"]["top_k"])):
            shown.append({"section": section, **show(run.store, FOLDER, exhibit)})
    return shown


def show(store: Store, folder: str, exhibit: Exhibit) -> dict[str, Any]:
    """Write a figure's PNG and table, and return what a page shows of it; within `figure_style`."""
    store.write(f"{folder}/figures/{exhibit.name}.png", to_png(exhibit.figure))
    _write_table(store, exhibit.name, exhibit.header, exhibit.rows, folder)
    return {
        "name": exhibit.name,
        "title": exhibit.title,
        "caption": exhibit.caption,
        "svg": to_svg(exhibit.figure, exhibit.name, exhibit.title, exhibit.caption),
        "header": exhibit.header,
        "rows": exhibit.rows[:TABLE_ROWS],
        "n_rows": len(exhibit.rows),
    }


def _write_table(store: Store, name: str, header: list[str], rows: list[list[Any]], folder: str = FOLDER) -> None:
    store.write(f"{folder}/tables/{name}.csv", as_csv(header, rows))
    store.write(f"{folder}/tables/{name}.json", as_json(header, rows))


def _context(
    run: FinishedRun, found: list[Findings], cards: list[Card], changed: dict[str, Sprite], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the template is filled with."""
    _, rejected = rejected_images(run)
    return {
        "run": run,
        "summary": run.summary,
        "names": run.classnames,
        "found": found,
        "sentences": sentences(run, found),
        "facts": facts(run, found),
        "cards": [c for c in cards if c.shown],
        "hidden": sum(not c.shown for c in cards),
        "changed": changed,
        "exhibits": shown,
        "steps": step_rows(run),
        "provenance": provenance_rows(run),
        "rejected": rejected[:REJECTED_ROWS],
        "n_rejected": len(rejected),
        "rejected_file": run.rejected.name(REJECTED),
        "images": image_rows(found, cards),
        "judged": found[0].judged_part is not None,
        "labeled": found[0].corpus["labeled"] > 0,  # the corpus itself, which the cards are about
        "top_k": int(run.config["label"]["top_k"]),
    }
