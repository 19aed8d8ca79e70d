"""The page of a finished run, and everything beside it.

report/index.html      the page; figures/*.png, tables/*.csv, tables/*.json: its contents for slides and programs
report/labels/         pseudo-labels and predictions as CSV, and for FiftyOne, Hugging Face and COCO tools
report/tensorboard/    training curves of the members, parameters and final figures
report/manifest.json   written last

The page needs no other file and loads nothing. Its text and layout are in `templates/`; names from data are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import shlex
import time
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from upl_ray.corpus.corrections import NONE
from upl_ray.corpus.shards import REJECTED
from upl_ray.errors import Damaged
from upl_ray.progress import duration
from upl_ray.report.cards import LOOKS, Card, data_address, frames, image_rows, look_rows, make_cards
from upl_ray.report.exhibits import Exhibit, all_exhibits
from upl_ray.report.export import all_tables, rejected_rows, write_events, write_table
from upl_ray.report.figures import figure_style, to_png, to_svg
from upl_ray.report.findings import (
    Findings,
    Judgement,
    absent_classes,
    describe_selections,
    gather,
    in_words,
    judgements,
    key_numbers,
    share,
    verdict,
)
from upl_ray.report.finished import FinishedRun, open_run
from upl_ray.report.labels import LABELS_LIMIT, export_labels
from upl_ray.report.thumbnails import Sprite
from upl_ray.storage.step import fingerprint
from upl_ray.storage.store import Store

log = logging.getLogger(__name__)

VERSION = 8  # raise when the same run gives another report
FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
TEMPLATES = Path(__file__).parent / "templates"
TABLE_ROWS = 40  # of a table on the page; its file has all
REJECTED_ROWS = 200
STEPS = {
    "refinement": "refinement",
    "pseudo_labels": "pseudo-labels",
    "selection": "selection",
    "views": "views",
    "members": "training",
    "classifier": "export",
    "predictions": "predictions",
}


def write_report(store: Store, again: bool = False, every_label: bool = False) -> str:
    """Write the report of the run in a storage from that storage alone; returns the page's address.

    Args:
        store: the storage of a finished run.
        again: write it even if it is there.
        every_label: export the labels of a corpus of any size, not only of up to `LABELS_LIMIT` images.

    Raises:
        ConfigError: there is no finished run, or one of a version without reports.
    """
    started = time.monotonic()
    run = open_run(store.uri)
    digest = page_fingerprint(run)
    if not again and _fingerprint_of_page(store) == digest:
        log.info("%-12s already there: %s", "report", store.join(PAGE))
        return store.join(PAGE)
    store.write_json(f"{FOLDER}/manifest.json", {"fingerprint": ""})  # a page that is half written is nobody's
    found = gather(run)
    cards, sprites = make_cards(found, run.classnames, run.corpora["corpus"])
    shown = _write_exhibits(run, found)
    for name, header, rows in all_tables(run, found, cards):
        write_table(store, FOLDER, name, header, rows)
    labels = export_labels(run, f"{FOLDER}/labels") if every_label or run.summary["images"] <= LABELS_LIMIT else []
    write_events(run, f"{FOLDER}/tensorboard", found)
    html = render("report.html.j2", **_context(run, found, cards, sprites, shown), labels=labels).encode()
    store.write(PAGE, html)
    store.write_json(f"{FOLDER}/manifest.json", {"fingerprint": digest, "bytes": len(html), "figures": len(shown)})
    took = duration(time.monotonic() - started)
    log.info("%-12s %.1f MB, %d figures in %s: %s", "report", len(html) / 1e6, len(shown), took, store.join(PAGE))
    return store.join(PAGE)


def page_fingerprint(run: FinishedRun) -> str:
    """Identity of everything that the page shows but times, addresses and compute: a moved storage keeps its page."""
    return fingerprint({"version": VERSION, **run.identity})


def _fingerprint_of_page(store: Store) -> str | None:
    """Fingerprint of the page in storage; None if there is none."""
    try:
        manifest = store.read_json(f"{FOLDER}/manifest.json")
        whole = len(store.read(PAGE)) == manifest.get("bytes")
    except (FileNotFoundError, Damaged):  # a page is written again in seconds
        return None
    return str(manifest.get("fingerprint")) if whole else None


def _write_exhibits(run: FinishedRun, found: list[Findings]) -> list[dict[str, Any]]:
    """Draw every figure and write its files; returns the figures for the template."""
    shown = []
    with figure_style():
        for section, exhibit in all_exhibits(found, run.classnames, int(run.config["label"]["top_k"])):
            shown.append({"section": section, **write_exhibit(run.store, FOLDER, exhibit)})
    return shown


def write_exhibit(store: Store, folder: str, exhibit: Exhibit) -> dict[str, Any]:
    """Write the PNG and the table of a figure, within `figure_style`; returns the figure for the template."""
    exhibit.figure.draw_without_rendering()
    exhibit.figure.set_layout_engine("none")  # laid out once for both files: with an engine each file is drawn twice
    store.write(f"{folder}/figures/{exhibit.name}.png", to_png(exhibit.figure))
    write_table(store, folder, exhibit.name, exhibit.header, exhibit.rows)
    return {
        "name": exhibit.name,
        "title": exhibit.title,
        "caption": exhibit.caption,
        "svg": to_svg(exhibit.figure, exhibit.name, exhibit.title, exhibit.caption),
        "header": exhibit.header,
        "rows": exhibit.rows[:TABLE_ROWS],
        "n_rows": len(exhibit.rows),
    }


def _context(
    run: FinishedRun, found: list[Findings], cards: list[Card], sprites: dict[str, Sprite], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """The values that the template shows."""
    rejected, judged, top_k = rejected_rows(run), judgements(run), int(run.config["label"]["top_k"])
    return {
        "run": run,
        "summary": run.summary,
        "names": run.classnames,
        "found": found,
        "verdict": verdict(run, found),
        "judgements": judged,
        "judgement_table": _judgement_table(judged),
        "absent": absent_classes(run),
        "key_numbers": key_numbers(run, found),
        "cards": [c for c in cards if c.shown],
        "hidden": sum(not c.shown for c in cards),
        "sprites": sprites,
        "agreed": found[0].corpus.get("doubtful") == [],
        "looks": [name for name in LOOKS if name in sprites],
        "known": found[0].scores.get("known"),
        "corrections": _corrections(run),
        "exhibits": shown,
        "steps": _step_rows(run),
        "provenance": _provenance(run),
        "rejected": rejected[:REJECTED_ROWS],
        "n_rejected": len(rejected),
        "rejected_file": run.rejected.path(REJECTED),
        "data": _data(run, found, cards, sprites),
        "judged": found[0].judged_part is not None,
        "labeled": found[0].corpus["labeled"] > 0,  # the corpus itself, which the cards are about
        "top_k": top_k,
        "titles": in_words([f.title for f in found]),
        "selections": describe_selections(found, top_k),
    }


def _data(run: FinishedRun, found: list[Findings], cards: list[Card], sprites: dict[str, Sprite]) -> dict[str, Any]:
    """The values that the page's script works on."""
    images = image_rows(found, cards)
    return {
        "names": run.classnames,
        "images": images,
        **look_rows(found[0], sprites),
        "labeled": found[0].corpus["labeled"] > 0,
        "corpus": ", ".join(run.corpora["corpus"].roots),  # corrections of earlier nights are those of the same images
        "corrected": run.corrections,
    }


def _corrections(run: FinishedRun) -> str:
    """How many images a person had corrected before the run; empty if none."""
    labels = list(run.corrections.values())
    if not labels:
        return ""
    none = f", {labels.count(NONE):,} of them to none of the classes" if NONE in labels else ""
    return f"Before this run {len(labels):,} image{'s' if len(labels) > 1 else ''} had been corrected by hand{none}."


def _judgement_table(judged: list[Judgement]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the verdicts without labels; the true gain only where it is known."""
    known = any(j.truth for j in judged)
    header = ["what", "answer", "estimate ± standard error [points]", *["true gain [points]"] * known, "what to do"]
    return header, [[j.subject, j.answer, j.estimate, *[j.truth] * known, j.advice] for j in judged]


def _step_rows(run: FinishedRun) -> list[tuple[str, str, str, str]]:
    """Name of each step, how long it took when it last had work, its folder, and when it was finished."""
    seconds: dict[str, float] = run.summary["steps"]

    def took(key: str, otherwise: str = "–") -> str:
        return duration(seconds[key]) if key in seconds else otherwise

    rows = []
    features: dict[str, str] = run.summary["folders"]["features"]
    for i, (name, folder) in enumerate(features.items()):
        when = took("features") if i == 0 else "with the first"
        rows.append((f"features of {name}", when, folder, _finished_at(run, folder)))
    for variant in run.variants:
        grown = variant.chain.predictions.manifest()["shards"] != [s.state for s in run.corpora["corpus"].shards]
        for step, name in STEPS.items():
            if made := getattr(variant.chain, step):
                finished = "has grown since" if step == "predictions" and grown else _finished_at(run, made.folder)
                otherwise = "with the first" if step in ("views", "members") else "–"  # made for all variants at once
                rows.append((f"{variant.title}: {name}", took(made.folder, otherwise), made.folder, finished))
    return rows


def _finished_at(run: FinishedRun, folder: str) -> str:
    written = run.store.read_json(f"{folder}/manifest.json")["provenance"]["time"]
    return str(written).replace("T", " ").replace("+00:00", " UTC")


def _provenance(run: FinishedRun) -> dict[str, Any]:
    """Command, versions and configuration of the run. The predictions' manifest may be a nightly job's."""
    about = run.variants[0].chain.classifier.manifest()["provenance"]
    return {
        "command": _command_line(about["command"]),
        "python": about["python"],
        "versions": about["versions"],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _command_line(arguments: list[str]) -> str:
    """The command of a run as a shell takes it: `python jobs/upl.py ...`, or `upl-ray run ...`."""
    first, *rest = arguments
    return shlex.join([*(first.split() if first.startswith("upl-ray ") else ["python", first]), *rest])


def render(template: str, **context: Any) -> str:
    """A whole page with style and script inside; everything from data is escaped.

    The Content-Security-Policy names both by their hashes: markup that passed a gap in the escaping could not run, and
    nothing can be sent or loaded. SVG needs style attributes, so these are allowed.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "cell": cell, "data_address": data_address, "frames": frames}
    style, *scripts = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js", "review.js")
    )
    script = "".join(scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src-elem '{_hash(style)}'; style-src-attr 'unsafe-inline'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=Markup(policy), **context)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def cell(value: Any) -> str:
    """A value in a table of the page; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
