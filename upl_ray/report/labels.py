"""Labels of the whole corpus in the forms that other tools read, shard by shard: memory does not grow with the corpus.

predictions-*.csv, pseudo_labels-*.csv    every row
fiftyone-*/                               FiftyOneImageClassificationDataset, with addresses in `data.json`
imagefolder-*/metadata.jsonl              Hugging Face's `imagefolder`: to be put beside the images
coco/annotations/labels_*.json            COCO: images, categories, and an annotation of the whole image each

Images in archives are no files: their address is `archive#image_id`, and `imagefolder` leaves them out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.report.export import write_csv
from upl_ray.report.finished import FinishedRun, Variant
from upl_ray.storage.store import is_remote, read_ahead

log = logging.getLogger(__name__)

LABELS_LIMIT = 200_000  # images of a corpus whose labels every report exports; those of larger ones on demand
SHARDS_AHEAD = 4  # tables of shards that are read ahead
PREDICTIONS = ["image_id", "label", "classname", "confidence", "members_agree", "known"]
EVEN = "even_label"  # of refined ensembles, a column more: the label where no class is taken to be more frequent
PSEUDO_LABELS = ["image_id", "pseudo_label", "classname", "confidence", "labelers_agree", "known"]


@dataclass(frozen=True)
class Prediction:
    """What the ensemble says about an image, and where that lies."""

    image_id: str
    label: int
    classname: str
    numbers: dict[str, float]  # confidence, members_agree and, where words compete, known; rounded
    even: dict[str, int]  # `EVEN`, of refined ensembles
    address: str  # inside an archive `archive#image_id`
    archived: bool

    @property
    def row(self) -> dict[str, Any]:
        """Numbers and the other label by name."""
        return {**self.numbers, **self.even}

    @property
    def attributes(self) -> dict[str, Any]:
        """The same without the confidence, which has a field of its own in most forms."""
        return {name: value for name, value in self.row.items() if name != "confidence"}

    def file_name(self, base: str) -> str:
        """The address as seen from a folder that it lies below, if it does."""
        return self.address.removeprefix(base)


def export_labels(run: FinishedRun, folder: str) -> list[str]:
    """Write pseudo-labels and predictions of the corpus for every variant in every form; returns the files."""
    base = common_folder({s.root for s in run.corpora["corpus"].shards})
    written = []
    for variant in run.variants:
        for name, write in FORMS.items():
            file = f"{folder}/{name.format(variant.slug)}"
            with run.store.open_text(file) as out:
                write(out, run, variant, base)
            written.append(file)
    return written


def predictions(run: FinishedRun, variant: Variant) -> Iterator[Prediction]:
    """The predictions of a variant for the corpus, in the order of its shards."""
    corpus, step = run.corpora["corpus"], variant.chain.predictions

    def read(shard: Shard) -> list[Prediction]:
        places = _places(corpus, shard)
        return [
            _prediction(r, variant.refined, *places[r["image_id"]]) for r in step.read_shard(shard.state).to_pylist()
        ]

    for of_shard in read_ahead(variant.shards(corpus), read, SHARDS_AHEAD):
        yield from of_shard


def _prediction(row: dict[str, Any], refined: bool, place: str, archived: bool) -> Prediction:
    votes, label = row["member_labels"], row["label"]
    numbers = {"confidence": round(row["confidence"], 6), "members_agree": round(votes.count(label) / len(votes), 4)}
    even = {EVEN: row[EVEN]} if refined else {}
    return Prediction(row["image_id"], label, row["classname"], numbers | _known(row), even, place, archived)


def _known(row: dict[str, Any]) -> dict[str, float]:
    share = row.get("known")  # of no run before labels had it
    return {} if share is None else {"known": round(share, 4)}


def _places(corpus: Corpus, shard: Shard) -> dict[str, tuple[str, bool]]:
    """Image id -> its address, and whether it lies in an archive."""
    rows = corpus.listing(shard, ["image_id", "file", "offset"]).to_pylist()
    archived = {r["image_id"]: r["offset"] is not None for r in rows}
    return {i: (address(shard.root, r["file"], archived[i], i), archived[i]) for r in rows if (i := r["image_id"])}


def address(root: str, file: str, archived: bool, image_id: str) -> str:
    """Full address of an image; inside an archive `archive#image_id`."""
    place = file if is_remote(file) or file.startswith("/") else f"{root.rstrip('/')}/{file}"
    return f"{place}#{image_id}" if archived else place


def common_folder(roots: Iterable[str]) -> str:
    """The folder that all addresses lie below, with a slash at its end; empty if there is none."""
    parts = [root.rstrip("/").split("/") for root in roots]
    same = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        same.append(names[0])
    folder = "/".join(same)
    return f"{folder}/" if folder and not folder.endswith((":", ":/")) else ""


# Each form.


def _write_predictions(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    rows = (
        [p.image_id, p.label, p.classname, *_cells(p.numbers, "members_agree"), *p.even.values()]
        for p in predictions(run, variant)
    )
    write_csv(out, [*PREDICTIONS, *([EVEN] * variant.refined)], rows)


def _write_pseudo_labels(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    write_csv(out, PSEUDO_LABELS, _pseudo_labels(run, variant))


def _pseudo_labels(run: FinishedRun, variant: Variant) -> Iterator[list[Any]]:
    shards, step, names = variant.shards(run.corpora["corpus"]), variant.chain.pseudo_labels, run.classnames
    for table in read_ahead(shards, lambda s: step.read_shard(s.state), SHARDS_AHEAD):
        for r in table.to_pylist():
            votes, label = r["backbone_labels"], r["pseudo_label"]
            numbers = {"confidence": r["confidence"], "labelers_agree": votes.count(label) / len(votes), **_known(r)}
            yield [r["image_id"], label, names[label], *_cells(numbers, "labelers_agree")]


def _cells(numbers: dict[str, float], agree: str) -> list[str]:
    known = numbers.get("known")
    return [f"{numbers['confidence']:.6f}", f"{numbers[agree]:.4f}", "" if known is None else f"{known:.4f}"]


def _write_fiftyone_labels(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    samples = (
        {
            "label": p.label,
            "confidence": p.numbers["confidence"],
            "attributes": {"image_id": p.image_id, **p.attributes},
        }
        for p in predictions(run, variant)
    )
    out.write(f'{{"classes": {json.dumps(list(run.classnames))}, "labels": ')
    _write_numbered(out, samples)
    out.write("}\n")


def _write_fiftyone_data(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    _write_numbered(out, (p.address for p in predictions(run, variant)))


def _write_numbered(out: TextIO, values: Iterator[Any]) -> None:
    """A JSON object of values by running numbers: FiftyOne cuts names at a dot, as if a suffix followed."""
    out.write("{")
    for number, value in enumerate(values):
        out.write(f'{"," if number else ""}\n"{number:09d}": {json.dumps(value)}')
    out.write("}\n")


def _write_imagefolder(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    """A line for each image that is a file below the folder; readers refuse a name that leaves it."""
    others = 0
    for p in predictions(run, variant):
        if p.archived or not (base and p.address.startswith(base)):
            others += 1
            continue
        about = {"file_name": p.file_name(base), "image_id": p.image_id, "label": p.label, "classname": p.classname}
        out.write(f"{json.dumps({**about, **p.row})}\n")
    if others:
        log.info("%-12s %d images are no files below one folder, as imagefolder needs them", "labels", others)


def _write_coco(out: TextIO, run: FinishedRun, variant: Variant, base: str) -> None:
    """Category 1 is class 0, as ids of COCO begin at 1; images have no sizes, which the job does not keep."""
    categories = [{"id": i, "name": name} for i, name in enumerate(run.classnames, 1)]
    images = (
        {"id": i, "file_name": p.file_name(base), "image_id": p.image_id}
        for i, p in enumerate(predictions(run, variant), 1)
    )
    annotations = (
        {
            "id": i,
            "image_id": i,
            "category_id": p.label + 1,
            "score": p.numbers["confidence"],
            "attributes": p.attributes,
        }
        for i, p in enumerate(predictions(run, variant), 1)
    )
    out.write(f'{{"info": {json.dumps({"description": variant.title, "folder": base})}')
    for name, values in {"categories": iter(categories), "images": images, "annotations": annotations}.items():
        out.write(f',\n"{name}": [')
        for number, value in enumerate(values):
            out.write(f"{',' if number else ''}\n{json.dumps(value)}")
        out.write("]")
    out.write("}\n")


FORMS: dict[str, Callable[[TextIO, FinishedRun, Variant, str], None]] = {  # by file, with the slug of the variant
    "predictions-{}.csv": _write_predictions,
    "pseudo_labels-{}.csv": _write_pseudo_labels,
    "fiftyone-{}/labels.json": _write_fiftyone_labels,
    "fiftyone-{}/data.json": _write_fiftyone_data,
    "imagefolder-{}/metadata.jsonl": _write_imagefolder,
    "coco/annotations/labels_{}.json": _write_coco,
}
