"""A page that compares finished runs: what differs in what was asked, and in what came out.

Runs over the same images are compared image by image, which tells smaller differences than two intervals side by side.
"""

from __future__ import annotations

import logging
import string
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from upl_ray.artifacts import Store
from upl_ray.config import ConfigError
from upl_ray.corpus import Shard
from upl_ray.metrics import UNLABELED, paired_difference
from upl_ray.report.charts import Estimate, estimates
from upl_ray.report.exhibit import NAMES_OF_PARTS, Exhibit
from upl_ray.report.export import address
from upl_ray.report.figures import figure_style
from upl_ray.report.findings import Findings, accuracies, agreements, gather, zero_shot_accuracy
from upl_ray.report.finished import FinishedRun, fields, open_run
from upl_ray.report.html import cell, render, share
from upl_ray.report.page import show
from upl_ray.report.read_ahead import read_ahead
from upl_ray.score import labels_of

log = logging.getLogger(__name__)

FOLDER = "report/comparison"
COUNTS = ("images", "versions", "same", "labeled", "gained", "lost")  # of a pair of runs
PAIRED_IMAGES = 200_000  # images that runs are compared on one by one; of a larger corpus a sample by id


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
        shown = show(stores[0], FOLDER, _figure(compared, part))
    html = render(
        "compare.html.j2",
        compared=compared,
        exhibit=shown,
        overview=_overview(compared),
        differences=differences({c.letter: c.run.config for c in compared}),
        pairs=[_pair(compared[0], other, part) for other in compared[1:]],
        part=NAMES_OF_PARTS[part],
    )
    stores[0].write(f"{FOLDER}/index.html", html.encode())
    log.info("%-12s %d runs: %s", "comparison", len(runs), stores[0].join(f"{FOLDER}/index.html"))
    return stores[0].join(f"{FOLDER}/index.html")


def _figure(compared: list[Compared], part: str) -> Exhibit:
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
        "intervals (Wilson), for members the range. Whether two runs over the same images differ is told below."
    )
    xlabel = "accuracy" if judged else "share of images with the same label"
    figure = estimates({NAMES_OF_PARTS[part]: rows}, xlabel)
    table = [[e.label, e.value, e.low, e.high] for e in rows]
    return Exhibit("runs", title, caption, figure, ["what", "share", "low", "high"], table)


def _overview(compared: list[Compared]) -> tuple[list[str], list[list[Any]]]:
    """A line for each thing that is told of every run."""

    def ensemble(c: Compared, part: str) -> str:
        numbers = c.first.parts.get(part)
        if not numbers or not numbers["labeled"]:
            return "–"
        return share(sum(numbers["right"]["ensemble"]) / numbers["labeled"])

    def zero_shot(c: Compared, part: str) -> str:
        return share(zero_shot_accuracy(c.first, part)) if ensemble(c, part) != "–" else "–"

    rows: list[tuple[str, list[Any]]] = [
        ("storage", [c.run.store.uri for c in compared]),
        ("variant", [c.first.title for c in compared]),
        ("target", [c.run.target for c in compared]),
        ("labeled by", [", ".join(c.first.variant.labelers) for c in compared]),
        ("images", [c.run.summary["images"] for c in compared]),
        ("rejected", [c.run.summary["rejected"] for c in compared]),
        ("classes", [len(c.run.classnames) for c in compared]),
        ("starved classes", [len(c.first.scores["selection"]["starved"]) for c in compared]),
        ("precision of the top-K", [share(c.first.scores["selection"]["precision"]) for c in compared]),
        *(
            (f"zero-shot of the target, {name}", [zero_shot(c, p) for c in compared])
            for p, name in NAMES_OF_PARTS.items()
        ),
        *((f"ensemble, {name}", [ensemble(c, p) for c in compared]) for p, name in NAMES_OF_PARTS.items()),
    ]
    return ["", *(c.letter for c in compared)], [[what, *map(cell, values)] for what, values in rows]


def differences(configs: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """Fields of the configurations that are not equal in all: name, and the value of each."""
    flat = {letter: dict(fields(config)) for letter, config in configs.items()}
    names = list(dict.fromkeys(name for of in flat.values() for name in of))
    rows = [[name, *(of.get(name, "–") for of in flat.values())] for name in names]
    return [[str(value) for value in row] for row in rows if any(value != row[1] for value in row[2:])]


def _pair(one: Compared, other: Compared, part: str) -> dict[str, Any]:
    """Two runs on the images that both have, in the same version."""
    told: dict[str, Any] = {"names": (one.name, other.name), **dict.fromkeys(COUNTS, 0)}
    if part in one.run.corpora and part in other.run.corpora:
        # A data set's names may repeat, so classes are told apart by their place in the list where both have the same.
        by_name = one.run.classnames != other.run.classnames
        mine = {judged.image_id: judged for judged in _labels(one, part, by_name)}
        for judged in _labels(other, part, by_name):
            first = mine.get(judged.image_id)
            if first is None:
                continue
            if first.version != judged.version:
                told["versions"] += 1
                continue
            true = judged.true
            told["images"] += 1
            told["same"] += judged.label == first.label
            told["labeled"] += true is not None
            told["gained"] += true is not None and judged.label == true != first.label
            told["lost"] += true is not None and first.label == true != judged.label
    if told["versions"]:
        log.warning(
            "%-12s %d images of %s and %s have the same name but are other files or versions, and are not compared",
            "comparison",
            told["versions"],
            one.letter,
            other.letter,
        )
    if told["labeled"]:
        told["difference"] = (told["gained"] - told["lost"]) / told["labeled"]
        told["interval"] = paired_difference(told["gained"], told["lost"], told["labeled"])
    return told


class Judged(NamedTuple):
    """An image, which class the ensemble names, and which is true."""

    image_id: str
    version: str  # its address where the source tells none
    label: int | str  # index of the class, or its name
    true: int | str | None


def _labels(c: Compared, part: str, by_name: bool) -> Iterator[Judged]:
    """At most PAIRED_IMAGES images, which only their ids choose; classes as names or as indices."""
    corpus, names, predictions = c.run.corpora[part], c.run.classnames, c.first.variant.predictions
    limit = min(1.0, PAIRED_IMAGES / max(corpus.images, 1)) * 2**32
    columns, about = ["image_id", "label"], ["image_id", "version", "file"]
    classes: Sequence[int | str] = names if by_name else range(len(names))

    def read(shard: Shard) -> tuple[Shard, pa.Table, pa.Table]:
        return shard, predictions.read_shard(shard.state, columns), corpus.listing(shard, about)

    for shard, table, listing in read_ahead(c.first.variant.shards(corpus), read):
        ids = table["image_id"].to_pylist()
        versions = {
            r["image_id"]: r["version"] or address(shard.root, r["file"], False, "") for r in listing.to_pylist()
        }
        true = labels_of(corpus, shard, ids, c.run.label_rule(part), names).tolist()
        for image_id, label, t in zip(ids, table["label"].to_pylist(), true, strict=True):
            if zlib.crc32(image_id.encode()) < limit:
                yield Judged(image_id, versions[image_id], classes[label], None if t == UNLABELED else classes[t])
