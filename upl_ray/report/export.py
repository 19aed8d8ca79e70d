"""Files beside the page, for other programs: tables as CSV and JSON, curves for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow.compute as pc

from upl_ray.corpus.shards import REJECTED
from upl_ray.report.cards import Card
from upl_ray.report.findings import Findings, mean_confidence, zero_shot_accuracy
from upl_ray.report.finished import FinishedRun, fields
from upl_ray.storage.store import Store

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CLASSES = ["class", "classname", "selected", "pseudo_labels", "labelers_agree", "members_agree", "right", "labeled"]
CONFUSION = ["true", "predicted", "images", "true_classname", "predicted_classname"]
SELECTED = ["pseudo_label", "rank", "confidence", "labelers_agree", "members_agree", "label", "true_label"]
CHANGED = ["image_id", "before", "before_confidence", "after", "after_confidence", "true"]
# TensorBoard draws all `tfevents` files of a folder as one curve: under one name, a later training replaces its curve.
EVENTS_FILE = "events.out.tfevents.upl"
FORMULA = re.compile(r"[=+\-@\t\r]")  # OWASP, "CSV Injection"
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")

Rows = list[list[Any]]


# Tables as CSV and JSON.


def all_tables(run: FinishedRun, found: list[Findings], cards: list[Card]) -> Iterator[tuple[str, list[str], Rows]]:
    """Name, header and rows of each table that belongs to no figure."""
    for f in found:
        yield f"classes-{f.slug}", *class_table(f, cards, run.target)
        yield f"selected-{f.slug}", ["image_id", "classname", *SELECTED], selected_rows(f, run.classnames)
        yield f"changed-{f.slug}", CHANGED, [[e[field] for field in CHANGED] for e in f.corpus["examples"]]
        if f.judged_part:
            names = run.classnames
            yield f"confusion-matrix-{f.slug}", CONFUSION, [[a, b, n, names[a], names[b]] for a, b, n in f.confusion]
    yield "rejected", ["image_id", "reason"], rejected_rows(run)


def class_table(f: Findings, cards: list[Card], target: str) -> tuple[list[str], Rows]:
    """Numbers of each class, in the order of indices; for each labeled part also images and accuracies [0-1]."""
    mine = sorted((c for c in cards if c.variant == f.slug), key=lambda c: c.label)
    rows: Rows = [
        [c.label, c.classname, c.images, c.predicted, c.labelers_agree, c.members_agree, c.right, c.known] for c in mine
    ]
    header = list(CLASSES)
    for part in (p for p in f.parts if f.parts[p]["labeled"]):
        header += [f"{part}_images", f"{part}_zero_shot_accuracy", f"{part}_ensemble_accuracy"]
        images, right = f.parts[part]["true"], f.parts[part]["right"]
        for row, n, *correct in zip(rows, images, right[f"labeler {target}"], right["ensemble"], strict=True):
            row += [n, *(x / n if n else None for x in correct)]
    return header, rows


def selected_rows(f: Findings, names: tuple[str, ...]) -> Rows:
    """The selected images of each class: its top-K, or those of the uniform sample."""
    return [[r["image_id"], names[r["pseudo_label"]], *(r[field] for field in SELECTED)] for r in f.selected]


def rejected_rows(run: FinishedRun) -> Rows:
    """Images that could not be read, each with the reason."""
    return [[r["image_id"], r["reason"]] for r in run.rejected.read_table(REJECTED).to_pylist()]


def write_table(store: Store, folder: str, name: str, header: list[str], rows: Rows) -> None:
    """Write a table as `tables/<name>.csv` and, as a list of objects, `tables/<name>.json`."""
    text = io.StringIO(newline="")
    write_csv(text, header, rows)
    store.write(f"{folder}/tables/{name}.csv", text.getvalue().encode())
    objects = json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
    store.write(f"{folder}/tables/{name}.json", f"{objects}\n".encode())


def write_csv(out: TextIO, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write rows as CSV in which no spreadsheet finds a formula: `'` stands before text that begins like one.

    Class names and image ids may come from strangers. Numbers stay numbers; JSON and Parquet hold all text as it is.
    """
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows([_without_formula(cell) for cell in row] for row in rows)


def _without_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


# TensorBoard.


def write_events(run: FinishedRun, folder: str, found: list[Findings]) -> None:
    """Write an event file of each member (loss and learning rate by epoch) and of each variant.

    A variant's file has every parameter and the final figures, which TensorBoard's page HPARAMS lays side by side for
    all runs below its folder. The time of every event is the end of the training. Only the record that opens a file
    holds the time of writing, so a rebuilt report has other bytes there.
    """
    from tensorboardX import SummaryWriter  # here: it imports torch if that is installed
    from tensorboardX.summary import hparams

    for f in found:
        history = f.variant.chain.members.read_table("history.parquet")
        ended = datetime.fromisoformat(f.variant.chain.members.manifest()["provenance"]["time"]).timestamp()
        for member in sorted(set(history["member"].to_pylist())):
            rows = history.filter(pc.field("member") == member).sort_by("epoch").to_pylist()
            with tempfile.TemporaryDirectory() as local:
                with SummaryWriter(local) as writer:
                    for r in rows:
                        _add_scalars(writer, {"loss": r["loss"], "lr": r["lr"]}, r["epoch"], ended)
                _store_events(run.store, f"{folder}/{f.slug}/member-{member:02d}", local)
        parameters = {n: v if isinstance(v, bool | int | float) else str(v) for n, v in fields(run.config)}
        named, figures = {"run": run.store.uri, "variant": f.variant.name}, final_figures(f)
        with tempfile.TemporaryDirectory() as local:
            with SummaryWriter(local) as writer:
                for summary in hparams(named | parameters, figures):  # `add_hparams` would take the present time
                    writer.file_writer.add_summary(summary, 0, ended)
                _add_scalars(writer, figures, 0, ended)
            _store_events(run.store, f"{folder}/{f.slug}", local)


def _add_scalars(writer: SummaryWriter, values: dict[str, float], step: int, time: float) -> None:
    for tag, value in values.items():
        writer.add_scalar(tag, value, step, time)


def _store_events(store: Store, folder: str, local: str) -> None:
    (file,) = Path(local).iterdir()
    store.write(f"{folder}/{EVENTS_FILE}", file.read_bytes())


def final_figures(f: Findings) -> dict[str, float]:
    """Results of a variant [0-1] by tag: confidences, accuracies where labels exist, and the final loss."""
    figures = {f"mean_confidence/{part}": mean_confidence(f, part, "ensemble") for part in f.parts}
    for part in (p for p in f.parts if f.parts[p]["labeled"]):
        right, labeled = sum(f.parts[part]["right"]["ensemble"]), f.parts[part]["labeled"]
        figures |= {f"accuracy/{part}": right / labeled, f"zero_shot_accuracy/{part}": zero_shot_accuracy(f, part)}
    return figures | {"final_loss": float(f.losses[:, -1].mean())}
