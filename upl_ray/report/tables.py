"""Tables that no figure stands for: classes, selected, changed and rejected images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from upl_ray.report.cards import Card
from upl_ray.report.findings import Findings
from upl_ray.report.finished import FinishedRun
from upl_ray.snapshot import REJECTED

Table = tuple[list[str], list[list[Any]]]  # header, rows
CLASSES = ["class", "classname", "selected", "pseudo_labels", "labelers_agree", "members_agree", "right", "labeled"]
SELECTED = ["pseudo_label", "rank", "confidence", "labelers_agree", "members_agree", "label", "true_label"]
CHANGED = ["image_id", "before", "before_confidence", "after", "after_confidence", "true"]


def all_tables(
    run: FinishedRun, found: list[Findings], cards: list[Card]
) -> Iterator[tuple[str, list[str], list[Any]]]:
    """Name, header and rows of each table."""
    for f in found:
        yield f"classes-{f.slug}", *classes(f, cards, run.target)
        yield f"selected-{f.slug}", *selected(f, run.classnames)
        yield f"changed-{f.slug}", CHANGED, [[e[field] for field in CHANGED] for e in f.corpus["examples"]]
        if f.judged_part:
            yield f"confusion-matrix-{f.slug}", *confusion_matrix(f, run.classnames)
    yield "rejected", *rejected_images(run)


def classes(f: Findings, cards: list[Card], target: str) -> Table:
    """What is known of each class, in the order of indices; of each labeled part also images and accuracies [0-1]."""
    mine = sorted((c for c in cards if c.variant == f.slug), key=lambda c: c.label)
    rows: list[list[Any]] = [
        [c.label, c.classname, c.images, c.predicted, c.labelers_agree, c.members_agree, c.right, c.known] for c in mine
    ]
    header = list(CLASSES)
    for part in (p for p in f.parts if f.parts[p]["labeled"]):
        header += [f"{part}_images", f"{part}_zero_shot_accuracy", f"{part}_ensemble_accuracy"]
        images, right = f.parts[part]["true"], f.parts[part]["right"]
        for row, n, *correct in zip(rows, images, right[f"labeler {target}"], right["ensemble"], strict=True):
            row += [n, *(x / n if n else None for x in correct)]
    return header, rows


def confusion_matrix(f: Findings, names: tuple[str, ...]) -> Table:
    """Every pair of true class and what the ensemble says that occurs among the judged images; the right ones, too."""
    header = ["true", "predicted", "images", "true_classname", "predicted_classname"]
    return header, [[a, b, n, names[a], names[b]] for a, b, n in f.confusion]


def selected(f: Findings, names: tuple[str, ...]) -> Table:
    """The top-K of every class."""
    header = ["image_id", "classname", *SELECTED]
    return header, [[r["image_id"], names[r["pseudo_label"]], *(r[field] for field in SELECTED)] for r in f.selected]


def rejected_images(run: FinishedRun) -> Table:
    """Images that could not be read, and why."""
    rows = run.rejected.read_table(REJECTED).to_pylist()
    return ["image_id", "reason"], [[r["image_id"], r["reason"]] for r in rows]
