"""One pass over a run's pseudo-labels and predictions, shard by shard: the figures' numbers, as an artifact of its own.

Memory holds a few shards, the top-K and sums, however large the corpus is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray import schema
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.config import JobError
from upl_ray.corpus import Corpus, Shard
from upl_ray.metrics import UNLABELED
from upl_ray.report.finished import FinishedRun, Variant, manifest_of
from upl_ray.report.read_ahead import read_ahead
from upl_ray.report.tally import Rows, Tally
from upl_ray.score import labels_of

VERSION = 2  # raise when the same run gives other numbers


def analysis_artifact(run: FinishedRun, variant: Variant) -> Artifact:
    """Where the numbers of a variant lie."""
    identity = {
        "version": VERSION,
        "selection": variant.selection.fingerprint,
        "predictions": variant.predictions.fingerprint,
        "pseudo_labels": variant.pseudo.fingerprint,
        "corpora": {part: [c.labels_digest, run.label_rule(part)] for part, c in run.corpora.items()},
    }
    return Artifact(run.store, "analysis", fingerprint(identity))


def analyse(run: FinishedRun, variant: Variant) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """The numbers of a variant, and what is known of its selected images; computed unless they are in storage.

    Returns:
        For each corpus (`corpus`, `scored`) the result of `Tally` without its confusion, the rows of `schema.SELECTED`,
        and the rows of `schema.CONFUSION`.

    Raises:
        JobError: what the run worked on is not known any more.
    """
    artifact = analysis_artifact(run, variant)
    if artifact.manifest() is None:
        selection = variant.selection.read_table("selection.parquet")
        chosen = set(selection["image_id"].to_pylist())
        known: dict[str, dict[str, Any]] = {}
        tallies = {}
        for part, corpus in run.corpora.items():
            tally = _tally(run, variant, part, corpus)
            for shard, rows in _joined(run, variant, part, corpus):
                tally.add(rows, shard.id)
                if part == "corpus":
                    known |= _details(rows, chosen)
            tallies[part] = tally.result()
        files = artifact.write_file("selected.parquet", _selected_table(selection, known))
        confused = [(part, *pair) for part, numbers in tallies.items() for pair in numbers.pop("confusion")]
        files |= artifact.write_file("confusion.parquet", _confusion_table(confused))
        artifact.finish(files=files, parts=tallies)
    parts: dict[str, Any] = manifest_of(artifact)["parts"]
    return parts, artifact.read_table("selected.parquet"), artifact.read_table("confusion.parquet")


def _tally(run: FinishedRun, variant: Variant, part: str, corpus: Corpus) -> Tally:
    members = int(run.config["train"]["members"])
    given = run.label_rule(part) != "none"
    labeled = int(run.summary["scores"][variant.name]["predictions"][part]["labeled"]) if given else 0
    return Tally(len(run.classnames), variant.labelers, run.target, members, labeled or corpus.images, labeled > 0)


def _joined(run: FinishedRun, variant: Variant, part: str, corpus: Corpus) -> Iterator[tuple[Shard, Rows]]:
    """Pseudo-labels and predictions of each shard, joined by image id."""
    rule, names = run.label_rule(part), run.classnames

    def read(shard: Shard) -> tuple[Shard, Rows]:
        pseudo, predicted = variant.pseudo.read_shard(shard.state), variant.predictions.read_shard(shard.state)
        return shard, join(pseudo, predicted, labels_of(corpus, shard, pseudo["image_id"].to_pylist(), rule, names))

    yield from read_ahead(variant.shards(corpus), read)


def join(pseudo: pa.Table, predicted: pa.Table, true: Any) -> Rows:
    """Rows of both tables by image id, in the order of the first; an image that only one of them has is left out.

    Args:
        pseudo: rows of `schema.PSEUDO_LABELS`.
        predicted: rows of `schema.PREDICTIONS`.
        true: class indices of the images of `pseudo` in order, or UNLABELED.
    """
    at = {image_id: i for i, image_id in enumerate(predicted["image_id"].to_pylist())}
    keep = [i for i, image_id in enumerate(pseudo["image_id"].to_pylist()) if image_id in at]
    pseudo = pseudo.take(keep)
    predicted = predicted.take([at[i] for i in pseudo["image_id"].to_pylist()])
    return Rows(
        image_ids=pseudo["image_id"].to_pylist(),
        true=np.asarray(true)[keep],
        fused=pseudo["pseudo_label"].to_numpy(),
        confidence=pseudo["confidence"].to_numpy(),
        own=_lists(pseudo, "backbone_labels"),
        own_confidence=_lists(pseudo, "backbone_confidences"),
        label=predicted["label"].to_numpy(),
        label_confidence=predicted["confidence"].to_numpy(),
        members=_lists(predicted, "member_labels"),
    )


def _lists(table: pa.Table, column: str) -> Any:
    """A list column as [rows, list length]."""
    flat = np.asarray(pc.list_flatten(table[column]).combine_chunks())
    return flat.reshape(len(table), -1) if len(table) else flat.reshape(0, 1)


def _details(rows: Rows, chosen: set[str]) -> dict[str, dict[str, Any]]:
    """What the selected images among these rows are known by."""
    return {
        image_id: {
            "backbone_labels": rows.own[i].tolist(),
            "labelers_agree": float((rows.own[i] == rows.fused[i]).mean()),
            "members_agree": float((rows.members[i] == rows.fused[i]).mean()),
            "label": int(rows.label[i]),
            "true_label": None if rows.true[i] == UNLABELED else int(rows.true[i]),
        }
        for i, image_id in enumerate(rows.image_ids)
        if image_id in chosen
    }


def _confusion_table(pairs: list[tuple[Any, ...]]) -> pa.Table:
    rows = [dict(zip(schema.CONFUSION.names, pair, strict=True)) for pair in pairs]
    return pa.Table.from_pylist(rows, schema=schema.CONFUSION)


def _selected_table(selection: pa.Table, known: dict[str, dict[str, Any]]) -> pa.Table:
    gone = [i for i in selection["image_id"].to_pylist() if i not in known]
    if gone:
        raise JobError(
            f"{len(gone)} selected images, {gone[0]!r} for example, are listed no more: this run was made by an older "
            f"version, and the corpus was listed anew since. Run the job again, which makes what is missing."
        )
    rows = [{**row, **known[row["image_id"]]} for row in selection.to_pylist()]
    return pa.Table.from_pylist(rows, schema=schema.SELECTED)
