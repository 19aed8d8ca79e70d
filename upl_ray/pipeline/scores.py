"""The scores step: sums over all pseudo-labels and predictions; `run.json` and the report take their numbers from it.

    from_items        index                       one row a shard of the corpus and of the held-out images
    map (CPU tasks)   tally, selected             joins pseudo-labels, predictions and true labels by image id
    fold on driver                                one `Tally` for each of the two, in the order of shards

True labels are read here, and nothing of it flows back into a step. The driver holds sums and the top-K, however large
the corpus is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from upl_ray.config.settings import Compute
from upl_ray.corpus.corrections import corrections_of
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.corpus.true_labels import true_labels_of
from upl_ray.errors import JobError
from upl_ray.pipeline.selection import read_selection
from upl_ray.pipeline.shardwise import map_shards
from upl_ray.storage import schema
from upl_ray.storage.chain import Chain
from upl_ray.storage.step import Step
from upl_ray.upl import metrics
from upl_ray.upl.tally import THRESHOLD, Models, Rows, Tally, join, numbers, tally_shard

if TYPE_CHECKING:  # with open_clip, which tasks do without
    from upl_ray.pipeline.inputs import Inputs

SCORES = ("labelers", "selection", "zero_shot", "known", "predictions")  # of the manifest, which `run.json` shows
Sources = Mapping[str, tuple[Corpus, str]]  # `corpus`, `scored` -> images, and where their true labels come from
Selected = dict[str, dict[str, Any]]  # image id -> the columns of `schema.SELECTED` that `schema.SELECTION` lacks


@dataclass(frozen=True)
class ScoreTask:
    """Everything that the tally of a shard takes."""

    chain: Chain
    sources: Sources
    models: Models
    classnames: tuple[str, ...]
    corrections: Step | None = None  # labels of images of the corpus that are not scored

    def shards(self) -> list[tuple[str, Shard]]:
        """All shards with their part, the corpus first."""
        return [(part, shard) for part, (corpus, _) in self.sources.items() for shard in corpus.shards]


def labeled_sources(inputs: Inputs) -> Sources:
    """The images that are scored, and the rules of their true labels."""
    sources = {"corpus": (inputs.corpus, inputs.config.corpus.labels)}
    return sources | ({"scored": (inputs.scored, inputs.config.scored.labels)} if inputs.scored else {})


def scores_step(predictions: Step, sources: Sources) -> Step:
    """The scores of one variant; they change with the true labels."""
    about = {part: [corpus.labels_digest, rule] for part, (corpus, rule) in sources.items()}
    return Step.of(predictions.store, "scores", version=7, inputs={"sources": about}, needs=[predictions])


def make_scores(task: ScoreTask, compute: Compute) -> None:
    """Tally every shard in Ray tasks, and store scores, the report's numbers and what is known of selected images."""
    shards, chosen, corrected = task.shards(), selected_images(task.chain.selection), corrections_of(task.corrections)

    def tally(index: int) -> dict[str, Any]:
        part, shard = shards[index]
        unscored = corrected.get(shard.id, {}).keys() if part == "corpus" else set()
        found, selected = tally_of(task, part, shard, chosen.get(shard.id, {}), unscored)
        return {"tally": json.dumps(found.to_json()), "selected": json.dumps(selected)}

    def tallies() -> Iterator[tuple[str, Tally, Selected]]:
        rows = map_shards("scores", [s for _, s in shards], tally, compute, in_order=True)
        for (part, _), row in zip(shards, rows, strict=True):
            yield part, Tally.from_json(json.loads(row["tally"])), json.loads(row["selected"])

    store_scores(task, tallies())


def selected_images(selection: Step) -> dict[str, dict[str, int]]:
    """Shard id -> its selected images and their pseudo-labels."""
    chosen: dict[str, dict[str, int]] = defaultdict(dict)
    for row in read_selection(selection, ["shard", "image_id", "pseudo_label"]).to_pylist():
        chosen[row["shard"]][row["image_id"]] = row["pseudo_label"]
    return chosen


def tally_of(
    task: ScoreTask, part: str, shard: Shard, chosen: Mapping[str, int], unscored: Set[str] = frozenset()
) -> tuple[Tally, Selected]:
    """The tally of one shard, and what is known of its selected images; corrected ones are not scored."""
    corpus, rule = task.sources[part]
    pseudo, predicted = (s.read_shard(shard.state) for s in (task.chain.pseudo_labels, task.chain.predictions))
    ids = list({*pseudo["image_id"].to_pylist(), *predicted["image_id"].to_pylist()})
    true = dict(zip(ids, true_labels_of(corpus, shard, ids, rule, task.classnames).tolist(), strict=True))
    true |= dict.fromkeys(unscored & true.keys(), metrics.UNLABELED)
    rows = join(pseudo, predicted, true)
    listed = shard.rows - len(shard.removed)
    tally = tally_shard(predicted, rows, true, task.models, shard.id, listed, unscored)
    return tally, _details(rows, chosen) if part == "corpus" else {}


def _details(rows: Rows, chosen: Mapping[str, int]) -> Selected:
    at = {image_id: i for i, image_id in enumerate(rows.image_ids)}
    return {
        image_id: {
            "backbone_labels": rows.own[i].tolist(),
            "labelers_agree": float((rows.own[i] == label).mean()),
            "members_agree": float((rows.members[i] == label).mean()),
            "label": int(rows.label[i]),
            "true_label": None if rows.true[i] == metrics.UNLABELED else int(rows.true[i]),
        }
        for image_id, i, label in ((x, at[x], label) for x, label in chosen.items() if x in at)
    }


def store_scores(task: ScoreTask, tallies: Iterable[tuple[str, Tally, Selected]]) -> None:
    """Add up the tallies of all shards, in their order, and finish the step.

    Its manifest holds the scores and, as `parts`, the report's numbers; `selected.parquet` has rows of
    `schema.SELECTED`, `confusion.parquet` those of `schema.CONFUSION`.
    """
    sums: dict[str, Tally] = {part: Tally() for part in task.sources}
    known: Selected = {}
    for part, tally, selected in tallies:
        sums[part].add(tally)
        known |= selected
    parts = {part: numbers(tally, task.models) for part, tally in sums.items()}
    step, selection = task.chain.scores, read_selection(task.chain.selection).to_pylist()
    lost = [row["image_id"] for row in selection if row["image_id"] not in known]
    if lost:
        raise JobError(
            f"{len(lost)} selected images have no prediction, {lost[0]!r} for example: they could be read when they "
            f"were labeled and not since. Put them back or take them out of the corpus, and run the job again."
        )
    rows = [{**row, **known[row["image_id"]]} for row in selection]
    files = step.write_file("selected.parquet", pa.Table.from_pylist(rows, schema=schema.SELECTED))
    confused = [(part, *pair) for part, of in parts.items() for pair in of.pop("confusion")]
    files |= step.write_file("confusion.parquet", _confusion_table(confused))
    label = np.array([r["pseudo_label"] for r in rows], np.int64)
    true = np.array([metrics.UNLABELED if r["true_label"] is None else r["true_label"] for r in rows], np.int64)
    step.finish(
        files=files,
        labelers=list(task.models.labelers),
        selection=selection_scores(label, true, task.classnames),
        zero_shot={part: zero_shot_scores(tally, task.models) for part, tally in sums.items()},
        known={part: known_scores(tally, task.models) for part, tally in sums.items()},
        predictions={part: prediction_scores(tally, task.models) for part, tally in sums.items()},
        parts=parts,
    )


def _confusion_table(pairs: list[tuple[Any, ...]]) -> pa.Table:
    rows = [dict(zip(schema.CONFUSION.names, pair, strict=True)) for pair in pairs]
    return pa.Table.from_pylist(rows, schema=schema.CONFUSION)


def read_scores(step: Step) -> dict[str, Any]:
    """The scores of a variant for `run.json`."""
    manifest = step.manifest()
    return {name: manifest[name] for name in SCORES}


def selection_scores(pseudo_label: metrics.Labels, true: metrics.Labels, classnames: tuple[str, ...]) -> dict[str, Any]:
    """Images of each class in the top-K, starved classes, and the precision of the pseudo-labels."""
    counts = np.bincount(pseudo_label, minlength=len(classnames)).tolist()
    known = int((true != metrics.UNLABELED).sum())
    return {
        "images_per_class": counts,
        "starved": [classnames[c] for c, n in enumerate(counts) if n == 0],
        "precision": metrics.accuracy(pseudo_label, true) if known else None,
        "labeled": known,
    }


def score_selection(corpus: Corpus, selection: pa.Table, labels: str, classnames: tuple[str, ...]) -> dict[str, Any]:
    """The same of a selection without scores, whose true labels are looked up in the corpus' listings."""
    shards = {s.id: s for s in corpus.shards}
    true = np.full(len(selection), metrics.UNLABELED)
    of_rows = np.array(selection["shard"].to_pylist(), dtype=object)
    for shard in set(of_rows):
        rows = np.flatnonzero(of_rows == shard)
        ids = selection["image_id"].take(rows).to_pylist()
        true[rows] = true_labels_of(corpus, shards[shard], ids, labels, classnames)
    return selection_scores(selection["pseudo_label"].to_numpy(), true, classnames)


def zero_shot_scores(tally: Tally, models: Models) -> dict[str, Any]:
    """Accuracy of each labeler and of their fusion, and the images that a confidence threshold would have selected."""
    sums = tally.joined
    labeled, above = sums["labeled"], sums["above"]
    right = {"fused": sums["right"]["fused"], **{name: sums["right"][f"labeler {name}"] for name in models.labelers}}
    return {
        "accuracy": {name: int(of.sum()) / labeled for name, of in right.items()} if labeled else None,
        "labeled": labeled,
        "images_per_class": sums["predicted"]["fused"].tolist(),
        "threshold": {
            "confidence": THRESHOLD,
            "images_per_class": above["images"].tolist(),
            "precision": above["right"] / above["labeled"] if above["labeled"] else None,
        },
    }


def known_scores(tally: Tally, models: Models) -> dict[str, Any] | None:
    """Mean of `known`, the threshold, and how many images it keeps from selection; None where no words compete."""
    images, share, below = (tally.joined[name] for name in ("known_images", "known_share", "known_below"))
    if not images:
        return None
    return {"mean": share / images, "images": images, "min_known": models.min_known, "below": below}


def prediction_scores(tally: Tally, models: Models) -> dict[str, Any]:
    """Accuracy of the ensemble and of each member, their agreement, and the share of images each class gets."""
    labeled, right = (tally.joined["judged"][name] for name in ("labeled", "right"))
    even = tally.joined["judged"]["right_even"]
    names = ["ensemble", *(f"member-{m:02d}" for m in range(models.n_members))]
    return {
        "images": tally.images,
        "accuracy": {n: int(r) / labeled for n, r in zip(names, right, strict=True)} if labeled else None,
        "accuracy_even": even / labeled if labeled else None,
        "labeled": labeled,
        "member_agreement": tally.means()["agreement"],
        "images_per_class": tally.class_counts(models.n_classes).tolist(),
    }
