"""What is counted over all images of a corpus, shard by shard: sums only, so memory does not grow with images (pure).

Shapes: n images of a shard, C classes, B labelers, S members.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray import metrics

Labels = metrics.Labels
Counts = npt.NDArray[np.int64]

DENSE_CLASSES = 2000  # up to which changes are counted by pairs of classes: a table of 32 MB
PAIRS = 200  # most frequent changes that are kept
EXAMPLES = 48  # most confident images whose label has changed
VOTE_IMAGES = 20_000  # images on which votes of few members are counted; of more, a sample of about as many
ORDERS = 8  # random orders in which members are added


@dataclass(frozen=True)
class Rows:
    """What zero-shot and the ensemble say about the images of one shard."""

    image_ids: list[str]
    true: Labels  # [n], UNLABELED where nothing is known
    fused: Labels  # [n] pseudo-label: of the fused labelers
    confidence: metrics.Confidences  # [n] of the fused labelers
    own: Labels  # [n, B] what each labeler alone says
    own_confidence: metrics.Confidences  # [n, B]
    label: Labels  # [n] of the ensemble
    label_confidence: metrics.Confidences  # [n]
    members: Labels  # [n, S] what each member alone says


def votes(members: Labels, order: Labels) -> Labels:
    """Majority vote of the first 1, 2, ... S members in an order [n, S]; among equals, who was added first decides."""
    members = members[:, order]
    support = (members[:, :, None] == members[:, None, :]).cumsum(axis=1, dtype=np.int32)  # [n, voters, candidates]
    steps = range(members.shape[1])
    winners = [support[:, s, : s + 1].argmax(axis=1) for s in steps]
    return np.stack([np.take_along_axis(members, w[:, None], axis=1)[:, 0] for w in winners], axis=1)


class Tally:
    """Sums over the shards of one corpus for one variant.

    Args:
        n_classes: C.
        labelers: names of the B labelers, in the order of columns.
        target: which of them prompts were learned for.
        n_members: S.
        votable: how many images the sample for votes is drawn from: the labeled ones if `judged`, or else all.
        judged: whether votes are held against true labels, or else against the ensemble.
    """

    def __init__(
        self, n_classes: int, labelers: tuple[str, ...], target: str, n_members: int, votable: int, judged: bool
    ) -> None:
        self.c, self.labelers, self.target, self.judged = n_classes, labelers, labelers.index(target), judged
        predictors = ("fused", "ensemble", *(f"labeler {name}" for name in labelers))
        self.images = self.labeled = 0
        self.true = self._zeros()
        self.predicted = {p: self._zeros() for p in predictors}
        self.right = {p: self._zeros() for p in predictors}
        self.known = {p: self._zeros() for p in predictors}  # predicted images of a class that have a true label
        self.class_confidence = np.zeros(n_classes)  # sums over images by pseudo-label
        self.class_confidence_labeled = np.zeros(n_classes)  # of those that have a true label
        self.class_agreement = np.zeros(n_classes)
        self.class_kept = self._zeros()  # images by pseudo-label whose label the ensemble keeps
        self.bins = {p: np.zeros((metrics.BINS, 3)) for p in ("fused", "ensemble", "target")}
        self.bins_labeled = {p: np.zeros((metrics.BINS, 3)) for p in self.bins}
        self.members_right, self.members_agree = self._zeros(n_members), self._zeros(n_members)
        self.pairs_agree = np.zeros((len(labelers) + 1,) * 2, np.int64)  # labelers and, last, their fusion
        self.change = dict.fromkeys(("changed", "labeled", "corrected", "broken", "still wrong"), 0)
        self.confusion: Counter[int] = Counter()  # labeled images by C * true class + the ensemble's
        self.moves = np.zeros((n_classes, n_classes), np.int64) if n_classes <= DENSE_CLASSES else None
        self.examples: list[tuple[float, str, dict[str, Any]]] = []
        self.vote_share = min(1.0, VOTE_IMAGES / max(votable, 1))
        self.orders = [np.random.default_rng(seed).permutation(n_members) for seed in range(ORDERS)]
        self.vote_images, self.vote_ensemble = 0, 0
        self.vote_right = np.zeros((ORDERS, n_members), np.int64)

    def _zeros(self, n: int | None = None) -> Counts:
        return np.zeros(self.c if n is None else n, np.int64)

    def _count(self, labels: Labels) -> Counts:
        return np.bincount(labels, minlength=self.c)

    def add(self, rows: Rows, shard: str) -> None:
        """Count one shard."""
        if not rows.image_ids:
            return
        known = rows.true != metrics.UNLABELED
        self.images += len(known)
        self.labeled += int(known.sum())
        self.true += self._count(rows.true[known])
        own = {f"labeler {name}": rows.own[:, i] for i, name in enumerate(self.labelers)}
        for name, labels in {"fused": rows.fused, "ensemble": rows.label, **own}.items():
            self.predicted[name] += self._count(labels)
            self.known[name] += self._count(labels[known])
            self.right[name] += self._count(labels[labels == rows.true])
        self._add_confidence(rows, known)
        self._add_agreement(rows, known)
        self._add_change(rows, known, shard)
        self._add_votes(rows, known)

    def _add_confidence(self, rows: Rows, known: npt.NDArray[np.bool_]) -> None:
        agreement = (rows.own == rows.fused[:, None]).mean(axis=1)
        self.class_confidence += np.bincount(rows.fused, rows.confidence, self.c)
        self.class_confidence_labeled += np.bincount(rows.fused[known], rows.confidence[known], self.c)
        self.class_agreement += np.bincount(rows.fused, agreement, self.c)
        self.class_kept += self._count(rows.fused[rows.fused == rows.label])
        said = {
            "fused": (rows.fused, rows.confidence),
            "ensemble": (rows.label, rows.label_confidence),
            "target": (rows.own[:, self.target], rows.own_confidence[:, self.target]),
        }
        for name, (labels, confidence) in said.items():
            right = labels == rows.true
            self.bins[name] += metrics.reliability(confidence, right)
            self.bins_labeled[name] += metrics.reliability(confidence[known], right[known])

    def _add_agreement(self, rows: Rows, known: npt.NDArray[np.bool_]) -> None:
        self.members_right += (rows.members[known] == rows.true[known][:, None]).sum(axis=0)
        self.members_agree += (rows.members == rows.label[:, None]).sum(axis=0)
        everyone = np.concatenate([rows.own, rows.fused[:, None]], axis=1)
        self.pairs_agree += (everyone[:, :, None] == everyone[:, None, :]).sum(axis=0)
        pairs, counts = np.unique(rows.true[known] * self.c + rows.label[known], return_counts=True)
        for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True):
            self.confusion[pair] += n

    def _add_change(self, rows: Rows, known: npt.NDArray[np.bool_], shard: str) -> None:
        """Images that the target's zero-shot and the ensemble classify differently."""
        before, after = rows.own[:, self.target], rows.label
        changed = before != after
        judged = changed & known
        was, is_ = before[judged] == rows.true[judged], after[judged] == rows.true[judged]
        counts = (changed.sum(), judged.sum(), is_.sum(), was.sum(), (~was & ~is_).sum())
        for key, n in zip(self.change, counts, strict=True):
            self.change[key] += int(n)
        if self.moves is not None:
            np.add.at(self.moves, (before[changed], after[changed]), 1)
        candidates = np.flatnonzero(changed)
        ids = np.array([rows.image_ids[i] for i in candidates], dtype=str)
        for i in candidates[np.lexsort((ids, -rows.label_confidence[candidates]))][:EXAMPLES].tolist():
            example = {
                "image_id": rows.image_ids[i],
                "shard": shard,
                "before": int(before[i]),
                "before_confidence": float(rows.own_confidence[i, self.target]),
                "after": int(after[i]),
                "after_confidence": float(rows.label_confidence[i]),
                "true": int(rows.true[i]),
            }
            self.examples.append((-example["after_confidence"], rows.image_ids[i], example))
        self.examples = heapq.nsmallest(EXAMPLES, self.examples, key=lambda e: e[:2])

    def _add_votes(self, rows: Rows, known: npt.NDArray[np.bool_]) -> None:
        """Votes of few members on a sample of the images that depends on their ids only."""
        limit = self.vote_share * 2**32
        chosen = np.array([zlib.crc32(i.encode()) < limit for i in rows.image_ids])
        chosen &= known | (not self.judged)
        reference = rows.true if self.judged else rows.label
        self.vote_images += int(chosen.sum())
        self.vote_ensemble += int((rows.label[chosen] == reference[chosen]).sum())
        for order, right in zip(self.orders, self.vote_right, strict=True):
            right += (votes(rows.members[chosen], order) == reference[chosen][:, None]).sum(axis=0)

    def result(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "images": self.images,
            "labeled": self.labeled,
            "true": self.true.tolist(),
            **{
                field: {k: v.tolist() for k, v in getattr(self, field).items()}
                for field in ("predicted", "right", "known", "bins", "bins_labeled")
            },
            "class_confidence": self.class_confidence.tolist(),
            "class_confidence_labeled": self.class_confidence_labeled.tolist(),
            "class_agreement": self.class_agreement.tolist(),
            "class_kept": self.class_kept.tolist(),
            "members_right": self.members_right.tolist(),
            "members_agree": self.members_agree.tolist(),
            "pairs_agree": self.pairs_agree.tolist(),
            "change": self.change,
            "confusion": [[*divmod(pair, self.c), n] for pair, n in sorted(self.confusion.items())],
            "moves": _top_pairs(self.moves),
            "examples": [e for _, _, e in self.examples],
            "votes": {"images": self.vote_images, "ensemble": self.vote_ensemble, "right": self.vote_right.tolist()},
        }


def _top_pairs(table: Counts | None) -> list[list[int]] | None:
    """The most frequent pairs of different classes: rows of (first, second, images); None where none were counted."""
    if table is None:
        return None
    off = table - np.diag(np.diag(table))
    flat = off.ravel()
    order = np.argsort(-flat, kind="stable")[:PAIRS]
    pairs = [(*divmod(int(i), len(table)), int(flat[i])) for i in order if flat[i]]
    return [list(p) for p in pairs]
