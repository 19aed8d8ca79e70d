"""The corrections step: labels that a person gave to images of the corpus, found in its shards.

A corrected image is pinned. It is selected for its class and for no other, or for none at all; refined labels take its
label as it is. It is never scored, and never votes on whether labels are better: it would not be a prediction.

Only selections and what follows them depend on corrections, so new ones cost no features and no pseudo-labels.
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from upl_ray.corpus.archives import as_text, class_names, label_text
from upl_ray.corpus.manifests import text_records
from upl_ray.corpus.shards import Corpus
from upl_ray.errors import ConfigError, first_line, quoted
from upl_ray.storage.step import Step
from upl_ray.storage.store import (
    PARQUET_ERRORS,
    UNREACHABLE,
    Store,
    absolute,
    open_filesystem,
    open_parquet,
    read_ahead,
)
from upl_ray.upl.metrics import UNLABELED, class_numbers, true_labels

log = logging.getLogger(__name__)

FILE = "corrections.parquet"
OWN_COLUMNS = ("members_agree", "labelers_agree")  # of the tables of labels that a report exports
FORMS = (".csv", ".jsonl", ".parquet")
NONE = UNLABELED  # the image shows none of the classes
ByShard = Mapping[str, Mapping[str, int]]  # shard id -> image id -> index of its class, or NONE

SCHEMA = pa.schema([("image_id", pa.string()), ("label", pa.int32()), ("shard", pa.string())])


def read_corrections(files: Sequence[str], classnames: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """Image id -> class, or NONE, and where that stands, of files with the columns `image_id` and `label`.

    Args:
        files: CSV, JSON lines or Parquet; an empty label is none of the classes. A column `classname` is only compared.
        classnames: a label is one of these, or its number from 0.

    Raises:
        ConfigError: a file cannot be read, lacks a column, names an unknown class or is a table of the job's own; or an
            image has two labels.
    """
    rows = [(row, f"row {i} of {file!r}") for file in files for i, row in enumerate(_read_rows(file), 1)]
    labels, others = (true_labels([r[c] for r, _ in rows], classnames).tolist() for c in ("label", "classname"))
    numbers = class_numbers(classnames)
    if number := next((r["label"] for r, _ in rows if r["label"] in numbers), None):
        log.info(
            "%-12s labels that are numbers count from 0: %s is %r", "corrections", number, classnames[numbers[number]]
        )
    found: dict[str, tuple[int, str]] = {}
    for (row, where), label, beside in zip(rows, labels, others, strict=True):
        if not row["image_id"]:
            raise ConfigError(f"label.corrections: {where} names no image; give its image_id.")
        if row["label"].strip() and label == UNLABELED:
            raise ConfigError(
                f"label.corrections: {where} names the class {quoted(row['label'])}, which is not among the "
                f"{len(classnames)} class names; correct it, or leave it empty where the image shows none of them."
            )
        if beside not in (UNLABELED, label):  # also beside an empty label, which is none of the classes
            raise ConfigError(
                f"label.corrections: {where} has the label {quoted(row['label'])} and the classname "
                f"{quoted(row['classname'])}, which is another class; write the right one as label, and no classname."
            )
        before = found.setdefault(row["image_id"], (label, where))
        if before[0] != label:
            raise ConfigError(
                f"label.corrections: {where} gives {quoted(row['image_id'])} another label than {before[1]}; keep one "
                f"of them."
            )
    return found


def _read_rows(file: str) -> list[dict[str, str]]:
    try:
        place = absolute(file)
        fs, path = open_filesystem(place)
        if path.lower().endswith(".parquet"):
            with fs.open_input_file(path) as source:
                parquet = open_parquet(source, file)
                records: list[dict[str, Any]] = parquet.read().to_pylist()
            if names := class_names(parquet.schema_arrow, "label"):
                records = [{**r, "label": label_text(r["label"], names)} for r in records]
        else:
            records = text_records(fs, path)
    except ConfigError as error:
        raise ConfigError(f"label.corrections: {error}") from None
    except (*UNREACHABLE, *PARQUET_ERRORS, RecursionError, csv.Error) as error:
        remedy = "correct it" if path.lower().endswith(FORMS) else f"make it one of {', '.join(FORMS)}"
        raise ConfigError(f"label.corrections: {file!r} cannot be read: {first_line(error)}; {remedy}.") from None
    own = next((c for c in OWN_COLUMNS if records and c in records[0]), None)
    if own:
        raise ConfigError(
            f"label.corrections: {file!r} is a table of the job's own labels (it has a column {own!r}), and would make "
            f"all of them a person's; keep the rows that you have looked at, with the columns image_id and label."
        )
    for i, record in enumerate(records, 1):
        lacking = next((c for c in ("image_id", "label") if c not in record), None)
        if lacking:  # which is not an empty label
            raise ConfigError(
                f"label.corrections: row {i} of {file!r} has no {lacking!r} among {', '.join(map(quoted, record))}; it "
                f"needs image_id and label."
            )
    return [{c: as_text(r.get(c)) or "" for c in ("image_id", "label", "classname")} for r in records]


def find_corrections(store: Store, corpus: Corpus, labels: Mapping[str, tuple[int, str]]) -> Step | None:
    """The finished step of some corrections of a corpus; None without any.

    Raises:
        ConfigError: an image is not in the corpus.
    """
    if not labels:
        return None
    given = sorted([i, label] for i, (label, _) in labels.items())
    step = Step.of(store, "corrections", version=1, inputs={"corpus": corpus.digest, "labels": given})
    if not step.finished:
        rows = _rows_in(corpus, labels)
        lost = next((i for i in labels if i not in rows), None)
        if lost is not None:
            raise ConfigError(
                f"label.corrections: {labels[lost][1]} names {quoted(lost)}, which is no image of the corpus; correct "
                f"its image_id, or remove the row."
            )
        table = pa.Table.from_pylist([rows[i] for i in sorted(labels)], schema=SCHEMA)
        step.finish(files=step.write_file(FILE, table), images=len(table))
    return step


def _rows_in(corpus: Corpus, labels: Mapping[str, tuple[int, str]]) -> dict[str, dict[str, Any]]:
    listings = read_ahead(corpus.shards, lambda shard: corpus.listing(shard, ["image_id"]))
    return {
        i: {"image_id": i, "label": labels[i][0], "shard": shard.id}
        for shard, listing in zip(corpus.shards, listings, strict=True)
        for i in listing["image_id"].to_pylist()
        if i in labels and i not in shard.removed
    }


def corrections_of(step: Step | None) -> ByShard:
    """The corrections of a step; empty without one."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in step.read_table(FILE).to_pylist() if step else []:
        found[row["shard"]][row["image_id"]] = row["label"]
    return found
