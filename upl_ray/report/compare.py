"""A page that compares finished runs: their configurations, their results, and their labels image by image.

Two runs on the same images are compared by the images on which they differ, which shows smaller differences than the
intervals of both.
"""

from __future__ import annotations

import logging
import string
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from upl_ray.corpus.shards import Shard
from upl_ray.corpus.true_labels import true_labels_of
from upl_ray.errors import ConfigError
from upl_ray.report.exhibits import Exhibit
from upl_ray.report.figures import estimates, figure_style
from upl_ray.report.findings import (
    NAMES_OF_PARTS,
    Estimate,
    Findings,
    accuracies,
    agreements,
    gather,
    share,
    zero_shot_accuracy,
)
from upl_ray.report.finished import FinishedRun, fields, open_run
from upl_ray.report.labels import SHARDS_AHEAD, address
from upl_ray.report.page import cell, render, write_exhibit
from upl_ray.storage.store import Store, read_ahead
from upl_ray.upl.metrics import UNLABELED, paired_difference

log = logging.getLogger(__name__)

FOLDER = "report/comparison"
COUNTS = ("images", "versions", "same", "corrected", "labeled", "gained", "lost")  # of a pair of runs
PAIRED_IMAGES = 200_000  # images that are compared one by one; of a larger corpus a sample by id


@dataclass(frozen=True)
class Compared:
    """One run under its letter."""

    letter: str
    run: FinishedRun
    found: list[Findings]

    @property
    def first(self) -> Findings:
        """The exported variant."""
        return self.found[0]

    @property
    def name(self) -> str:
        """Letter and variant."""
        return f"{self.letter}: {self.first.title}"


def write_comparison(stores: list[Store]) -> str:
    """Compare the runs in several storages; the page is written into the first one, and its address returned.

    Raises:
        ConfigError: one of them holds no finished run, or there are more runs than letters.
    """
    if len(stores) > len(string.ascii_uppercase):
        raise ConfigError(
            f"{len(stores)} runs are too many for one page; compare at most {len(string.ascii_uppercase)}."
        )
    runs = [open_run(store.uri) for store in stores]
    compared = [Compared(letter, run, gather(run)) for letter, run in zip(string.ascii_uppercase, runs, strict=False)]
    part = next((c.first.judged_part for c in compared if c.first.judged_part), "corpus")
    with figure_style():
        exhibit = write_exhibit(stores[0], FOLDER, _results(compared, part))
    html = render(
        "compare.html.j2",
        compared=compared,
        exhibit=exhibit,
        overview=_overview(compared),
        differences=differences({c.letter: c.run.config for c in compared}),
        pairs=[_pair(compared[0], other, part) for other in compared[1:]],
        part=NAMES_OF_PARTS[part],
    )
    stores[0].write(f"{FOLDER}/index.html", html.encode())
    log.info("%-12s %d runs: %s", "comparison", len(runs), stores[0].join(f"{FOLDER}/index.html"))
    return stores[0].join(f"{FOLDER}/index.html")


def _results(compared: list[Compared], part: str) -> Exhibit:
    judged = all(part in c.first.parts and c.first.parts[part]["labeled"] for c in compared)
    rows: list[Estimate] = []
    for c in compared:
        if part not in c.first.parts:
            continue
        of = accuracies(c.found, part) if judged else agreements(c.found, part)
        rows += [Estimate(f"{c.letter}: {e.label}", e.value, e.low, e.high) for e in of]
    title = "Accuracy of all runs" if judged else "Agreement of all runs (no accuracy)"
    caption = (
        "Look first at the zero-shot lines: where these differ, the runs do not start from the same place. Bars: 95 % "
        "intervals (Wilson), for members the range. Below, runs on the same images are compared image by image."
    )
    xlabel = "accuracy" if judged else "share of images with the same label"
    figure = estimates({NAMES_OF_PARTS[part]: rows}, xlabel)
    table = [[e.label, e.value, e.low, e.high] for e in rows]
    return Exhibit("runs", title, caption, figure, ["what", "share", "low", "high"], table)


def _overview(compared: list[Compared]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table with one column for each run."""

    def accuracy(c: Compared, part: str, zero_shot: bool = False) -> str:
        numbers = c.first.parts.get(part)
        if not numbers or not numbers["labeled"]:
            return "–"
        if zero_shot:
            return share(zero_shot_accuracy(c.first, part))
        return share(sum(numbers["right"]["ensemble"]) / numbers["labeled"])

    parts = NAMES_OF_PARTS.items()
    rows: list[tuple[str, list[Any]]] = [
        ("storage", [c.run.store.uri for c in compared]),
        ("variant", [c.first.title for c in compared]),
        ("target", [c.run.target for c in compared]),
        ("labeled by", [", ".join(c.first.variant.labelers) for c in compared]),
        ("images", [c.run.summary["images"] for c in compared]),
        ("rejected", [c.run.summary["rejected"] for c in compared]),
        ("classes", [len(c.run.classnames) for c in compared]),
        ("starved classes", [len(c.first.scores["selection"]["starved"]) for c in compared]),
        ("precision of the selected labels", [share(c.first.scores["selection"]["precision"]) for c in compared]),
        *(
            (f"zero-shot of the target, {name}", [accuracy(c, p, zero_shot=True) for c in compared])
            for p, name in parts
        ),
        *((f"ensemble, {name}", [accuracy(c, p) for c in compared]) for p, name in parts),
    ]
    return ["", *(c.letter for c in compared)], [[name, *map(cell, values)] for name, values in rows]


def differences(configs: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """Fields of the configurations that are not equal in all: name, and the value of each."""
    flat = {letter: dict(fields(config)) for letter, config in configs.items()}
    names = list(dict.fromkeys(name for of in flat.values() for name in of))
    rows = [[name, *(of.get(name, "–") for of in flat.values())] for name in names]
    return [[str(value) for value in row] for row in rows if any(value != row[1] for value in row[2:])]


def _pair(one: Compared, other: Compared, part: str) -> dict[str, Any]:
    """Two runs on the images of the same version in both; with labels also their difference in accuracy."""
    pair: dict[str, Any] = {"names": (one.name, other.name), **dict.fromkeys(COUNTS, 0)}
    if part in one.run.corpora and part in other.run.corpora:
        # Names of a data set's classes may repeat, so indices are compared if both runs have the same list of names.
        by_name = one.run.classnames != other.run.classnames
        corrected = one.run.corrections.keys() | other.run.corrections.keys() if part == "corpus" else set()
        of_one = {judged.image_id: judged for judged in _labels(one, part, by_name)}
        for judged in _labels(other, part, by_name):
            first = of_one.get(judged.image_id)
            if first is None:
                continue
            if first.version != judged.version:
                pair["versions"] += 1
                continue
            true = None if judged.image_id in corrected else judged.true  # which a run has learned
            pair["images"] += 1
            pair["corrected"] += judged.image_id in corrected
            pair["same"] += judged.label == first.label
            pair["labeled"] += true is not None
            pair["gained"] += true is not None and judged.label == true != first.label
            pair["lost"] += true is not None and first.label == true != judged.label
    if pair["versions"]:
        log.warning(
            "%-12s %d images of %s and %s have the same name but are other files or versions, and are not compared",
            "comparison",
            pair["versions"],
            one.letter,
            other.letter,
        )
    if pair["labeled"]:
        pair["difference"] = (pair["gained"] - pair["lost"]) / pair["labeled"]
        pair["interval"] = paired_difference(pair["gained"], pair["lost"], pair["labeled"])
    return pair


class Judged(NamedTuple):
    """An image with the ensemble's label and the true one."""

    image_id: str
    version: str  # or the address, if the source has no versions
    label: int | str  # index of the class, or its name
    true: int | str | None


def _labels(c: Compared, part: str, by_name: bool) -> Iterator[Judged]:
    """At most PAIRED_IMAGES images, a sample that depends on ids only; classes as names or as indices."""
    corpus, names, predictions = c.run.corpora[part], c.run.classnames, c.first.variant.chain.predictions
    limit = min(1.0, PAIRED_IMAGES / max(corpus.images, 1)) * 2**32
    columns, about = ["image_id", "label"], ["image_id", "version", "file"]
    classes: Sequence[int | str] = names if by_name else range(len(names))

    def read(shard: Shard) -> tuple[Shard, pa.Table, pa.Table]:
        return shard, predictions.read_shard(shard.state, columns), corpus.listing(shard, about)

    for shard, table, listing in read_ahead(c.first.variant.shards(corpus), read, SHARDS_AHEAD):
        ids = table["image_id"].to_pylist()
        versions = {
            r["image_id"]: r["version"] or address(shard.root, r["file"], False, "") for r in listing.to_pylist()
        }
        true = true_labels_of(corpus, shard, ids, c.run.label_rule(part), names).tolist()
        for image_id, label, t in zip(ids, table["label"].to_pylist(), true, strict=True):
            if zlib.crc32(image_id.encode()) < limit:
                yield Judged(image_id, versions[image_id], classes[label], None if t == UNLABELED else classes[t])
