"""Scores of a finished run: what can be said without labels, and accuracies where true labels exist.

True labels are read here and nowhere else. Shapes: C classes, B labelers, S members.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from upl_ray import metrics
from upl_ray.artifacts import Artifact
from upl_ray.corpus import Corpus, Shard

THRESHOLD = 0.9  # confidence threshold of FixMatch-like methods, which top-K is compared with (paper, figure 3)


def labels_of(corpus: Corpus, shard: Shard, ids: list[str], rule: str, classnames: tuple[str, ...]) -> metrics.Labels:
    """True classes of images of a shard; UNLABELED where there are none, or none are to be used."""
    if rule == "none":
        return np.full(len(ids), metrics.UNLABELED)
    given = corpus.labels(shard)
    return metrics.true_labels([given[i] for i in ids], classnames)


class Tally:
    """Right and labeled images of some predictors, summed over shards."""

    def __init__(self) -> None:
        self.right: dict[str, int] = {}
        self.labeled = 0

    def add(self, true: metrics.Labels, predicted: dict[str, metrics.Labels]) -> None:
        """Count one shard."""
        known = true != metrics.UNLABELED
        self.labeled += int(known.sum())
        for name, labels in predicted.items():
            self.right[name] = self.right.get(name, 0) + int((labels[known] == true[known]).sum())

    def accuracies(self) -> dict[str, float] | None:
        """Accuracy of each predictor [0-1], or None where nothing is labeled."""
        return {n: r / self.labeled for n, r in self.right.items()} if self.labeled else None


def _lists(table: pa.Table, column: str) -> metrics.Labels:
    """A list column as [rows, list length]; the table has rows."""
    labels: metrics.Labels = np.asarray(table[column].combine_chunks().flatten()).reshape(len(table), -1)
    return labels


def score_zero_shot(
    corpus: Corpus, labels: str, pseudo: Artifact, labelers: list[str], classnames: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy of each labeler and of their fusion, and what a confidence threshold would have selected."""
    tally, above, judged, right = Tally(), np.zeros(len(classnames), np.int64), 0, 0
    shares = np.zeros(len(classnames), np.int64)
    for shard in corpus.shards:
        table = pseudo.read_shard(shard.state)
        if not len(table):
            continue
        true = labels_of(corpus, shard, table["image_id"].to_pylist(), labels, classnames)
        own, fused = _lists(table, "backbone_labels"), table["pseudo_label"].to_numpy()
        tally.add(true, {"fused": fused, **{name: own[:, i] for i, name in enumerate(labelers)}})
        high = table["confidence"].to_numpy() >= THRESHOLD
        above += np.bincount(fused[high], minlength=len(classnames))
        judged += int((high & (true != metrics.UNLABELED)).sum())
        right += int((high & (fused == true)).sum())
        shares += np.bincount(fused, minlength=len(classnames))
    return {
        "accuracy": tally.accuracies(),
        "labeled": tally.labeled,
        "images_per_class": shares.tolist(),
        "threshold": {
            "confidence": THRESHOLD,
            "images_per_class": above.tolist(),
            "precision": right / judged if judged else None,
        },
    }


def score_selection(corpus: Corpus, selection: pa.Table, labels: str, classnames: tuple[str, ...]) -> dict[str, Any]:
    """Images of each class in the top-K, starved classes, and the precision of the pseudo-labels."""
    counts = np.bincount(selection["pseudo_label"].to_numpy(), minlength=len(classnames)).tolist()
    shards = {s.id: s for s in corpus.shards}
    true = np.full(len(selection), metrics.UNLABELED)
    of_rows = np.array(selection["shard"].to_pylist(), dtype=object)
    for shard in set(of_rows):
        rows = np.flatnonzero(of_rows == shard)
        ids = selection["image_id"].take(rows).to_pylist()
        true[rows] = labels_of(corpus, shards[shard], ids, labels, classnames)
    known = int((true != metrics.UNLABELED).sum())
    return {
        "images_per_class": counts,
        "starved": [classnames[c] for c, n in enumerate(counts) if n == 0],
        "precision": metrics.accuracy(selection["pseudo_label"].to_numpy(), true) if known else None,
        "labeled": known,
    }


def score_predictions(
    corpus: Corpus, labels: str, predictions: Artifact, classnames: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy of the ensemble and of each member, their agreement, and the share of images each class gets."""
    tally, agreement, images = Tally(), 0.0, 0
    shares = np.zeros(len(classnames), np.int64)
    for shard in corpus.shards:
        table = predictions.read_shard(shard.state)
        if not len(table):
            continue
        true = labels_of(corpus, shard, table["image_id"].to_pylist(), labels, classnames)
        ensemble, members = table["label"].to_numpy(), _lists(table, "member_labels")
        tally.add(true, {"ensemble": ensemble, **{f"member-{m:02d}": members[:, m] for m in range(members.shape[1])}})
        agreement += float((members == ensemble[:, None]).mean(axis=1).sum())
        images += len(table)
        shares += np.bincount(ensemble, minlength=len(classnames))
    return {
        "images": images,
        "accuracy": tally.accuracies(),
        "labeled": tally.labeled,
        "member_agreement": agreement / max(images, 1),
        "images_per_class": shares.tolist(),
    }
