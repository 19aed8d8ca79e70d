"""Labels for other tools: CSV, and the folder form that FiftyOne imports; plain files, streamed shard by shard."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from upl_ray.corpus import Corpus, Shard
from upl_ray.report.finished import FinishedRun, Variant
from upl_ray.report.read_ahead import read_ahead

PREDICTIONS = ["image_id", "label", "classname", "confidence", "members_agree"]
PSEUDO_LABELS = ["image_id", "pseudo_label", "classname", "confidence", "labelers_agree"]
FORMULA = re.compile(r"[=+\-@\t\r]")  # OWASP, "CSV Injection"
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
AT_ONCE = 200_000  # images of a corpus that every report exports; larger ones on demand


def export_labels(run: FinishedRun, folder: str) -> list[str]:
    """Write pseudo-labels and predictions of the corpus for every variant; returns the files.

    `fiftyone-*/` has `labels.json` (FiftyOneImageClassificationDataset) and `data.json`, which says where the images
    lie, for those that are files of their own.
    """
    written = []
    for variant in run.variants:
        slug = variant.slug
        for name, header, rows in (
            (f"predictions-{slug}", PREDICTIONS, _predictions(run, variant)),
            (f"pseudo_labels-{slug}", PSEUDO_LABELS, _pseudo_labels(run, variant)),
        ):
            file = f"{folder}/{name}.csv"
            with run.store.open_text(file) as out:
                write_csv(out, header, rows)
            written.append(file)
        written += _fiftyone(run, variant, f"{folder}/fiftyone-{slug}")
    return written


def _predictions(run: FinishedRun, variant: Variant) -> Iterator[list[Any]]:
    corpus = run.corpora["corpus"]
    for table in read_ahead(variant.shards(corpus), lambda s: variant.predictions.read_shard(s.state)):
        for r in table.to_pylist():
            votes = r["member_labels"]
            agree = votes.count(r["label"]) / len(votes)
            yield [r["image_id"], r["label"], r["classname"], f"{r['confidence']:.6f}", f"{agree:.4f}"]


def _pseudo_labels(run: FinishedRun, variant: Variant) -> Iterator[list[Any]]:
    corpus, names = run.corpora["corpus"], run.classnames
    for table in read_ahead(variant.shards(corpus), lambda s: variant.pseudo.read_shard(s.state)):
        for r in table.to_pylist():
            votes, label = r["backbone_labels"], r["pseudo_label"]
            agree = votes.count(label) / len(votes)
            yield [r["image_id"], label, names[label], f"{r['confidence']:.6f}", f"{agree:.4f}"]


def _fiftyone(run: FinishedRun, variant: Variant, folder: str) -> list[str]:
    """Samples are called by a running number: FiftyOne takes what follows a dot in a name for a suffix."""
    corpus = run.corpora["corpus"]
    labels, data = f"{folder}/labels.json", f"{folder}/data.json"
    with run.store.open_text(labels) as out:
        out.write(f'{{"classes": {json.dumps(list(run.classnames))}, "labels": {{')
        samples = (
            {
                "label": label,
                "confidence": float(confidence),
                "attributes": {"image_id": image_id, "members_agree": float(agree)},
            }
            for image_id, label, _, confidence, agree in _predictions(run, variant)
        )
        _write_items(out, samples)
        out.write("}}\n")
    with run.store.open_text(data) as out:
        out.write("{")
        _write_items(out, _addresses(corpus, variant))
        out.write("}\n")
    return [labels, data]


def _write_items(out: TextIO, values: Iterator[Any]) -> None:
    for number, value in enumerate(values):
        out.write(f'{"," if number else ""}\n"{number:09d}": {json.dumps(value)}')


def _addresses(corpus: Corpus, variant: Variant) -> Iterator[str]:
    """Where each predicted image lies, in the order of the predictions; inside an archive: `archive#image_id`."""

    def read(shard: Shard) -> list[str]:
        listing = corpus.listing(shard, ["image_id", "file", "offset"]).to_pylist()
        place = {r["image_id"]: (r["file"], r["offset"] is not None) for r in listing}
        ids = variant.predictions.read_shard(shard.state, ["image_id"])["image_id"].to_pylist()
        return [address(shard.root, *place[i], i) for i in ids]

    for addresses in read_ahead(variant.shards(corpus), read):
        yield from addresses


def address(root: str, file: str, archived: bool, image_id: str) -> str:
    """Full address of an image."""
    place = file if "://" in file or file.startswith("/") else f"{root.rstrip('/')}/{file}"
    return f"{place}#{image_id}" if archived else place


def as_csv(header: list[str], rows: list[list[Any]]) -> bytes:
    """A small table as CSV."""
    out = io.StringIO(newline="")
    write_csv(out, header, rows)
    return out.getvalue().encode()


def write_csv(out: TextIO, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Rows as CSV whose text no spreadsheet takes for a formula: `'` stands before what begins like one.

    Class names and image ids come from anybody's files. Numbers stay numbers; JSON and Parquet hold all text as it is.
    """
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def as_json(header: list[str], rows: list[list[Any]]) -> bytes:
    """A small table as a JSON list of objects."""
    return (json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1) + "\n").encode()
