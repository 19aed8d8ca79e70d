"""Sums over the predictions of images: they add up over shards and nights, so memory does not grow with images (pure).

The first part needs no labels, and none of it is an accuracy; every commit of predictions holds it. The second part
joins pseudo-labels, predictions and true labels by image id; scores and the report are made from it.

Shapes: n images of a shard, C classes, B labelers, S members.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray.upl import metrics
from upl_ray.upl.known import count_shares, is_known

Labels = metrics.Labels
Counts = npt.NDArray[np.int64]
Sums = dict[str, Any]  # nested mappings of numbers, arrays and best-of lists

THRESHOLD = 0.9  # confidence threshold of FixMatch-like methods, which top-K is compared with (paper, figure 3)
DENSE_CLASSES = 2000  # up to which changes are counted by pairs of classes: 4 million pairs
PAIRS = 200  # most frequent changes that are kept
EXAMPLES = 48  # most confident images whose label has changed
DOUBTFUL = 48  # images that a person should look at first
LEAST_KNOWN = 48  # images that show the classes least
VOTE_IMAGES = 20_000  # images on which votes of few members are counted; of more, a sample of about as many
VOTERS = 21_500  # candidates that are kept for this sample; its size deviates by 141 images
ORDERS = 8  # random orders in which members are added


@dataclass
class Tally:
    """Sums over some images; `tally.add(other)` makes it that of both."""

    images: int = 0  # that have a prediction
    rejected: int = 0  # that were listed and could not be read
    classes: dict[str, int] = field(default_factory=dict)  # index of a class -> images that it got
    confidence: float = 0.0
    confidence_squares: float = 0.0
    agreement: float = 0.0  # shares of the members that say what the ensemble says
    joined: Sums = field(default_factory=dict)  # the second part, see `tally_shard`

    @property
    def listed(self) -> int:
        """Images that there are, readable or not."""
        return self.images + self.rejected

    def means(self) -> dict[str, float]:
        """Mean confidence, mean agreement of the members with their ensemble, share of rejected images [0-1]."""
        n = max(self.images, 1)
        rejected = self.rejected / max(self.listed, 1)
        return {"confidence": self.confidence / n, "agreement": self.agreement / n, "rejected": rejected}

    def confidence_deviation(self) -> float:
        """Standard deviation of the confidence of single images, estimated from at least two."""
        n, mean = self.images, self.confidence / self.images
        return float(np.sqrt(max(0.0, self.confidence_squares - n * mean**2) / (n - 1)))

    def class_counts(self, n_classes: int) -> Counts:
        """Images that each class got, [C]."""
        counts = np.zeros(n_classes, np.int64)
        for index, images in self.classes.items():
            counts[int(index)] = images
        return counts

    def add(self, other: Tally) -> None:
        """Add the sums of other images."""
        _add(vars(self), vars(other))

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `from_json` makes an equal tally, bit for bit."""
        return {name: _plain(value) for name, value in vars(self).items() if value != {}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """A tally from what `to_json` gave."""
        return cls(**{name: _arrays(v) if name == "joined" else v for name, v in value.items()})


def tally_predictions(predictions: pa.Table, listed: int) -> Tally:
    """The label-free sums of one shard: rows of `schema.PREDICTIONS` of so many listed images."""
    label = predictions["label"].to_numpy()
    confidence = predictions["confidence"].to_numpy().astype(np.float64)
    members = _lists(predictions, "member_labels")
    return Tally(
        images=len(label),
        rejected=listed - len(label),
        classes={str(c): n for c, n in sorted(Counter(label.tolist()).items())},
        confidence=float(confidence.sum()),
        confidence_squares=float(np.square(confidence).sum()),
        agreement=float((members == label[:, None]).mean(axis=1).sum()),
    )


def total(tallies: Iterable[Tally]) -> Tally:
    """The sums of several image sets together, added in their order."""
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole


# Lists of images, of which the first in the order of their rows are kept: how many.
_BEST = {"examples": EXAMPLES, "doubtful": DOUBTFUL, "least_known": LEAST_KNOWN, "voters": VOTERS}


def _add(sums: Sums, more: Mapping[str, Any]) -> None:
    """Add numbers, arrays and mappings in place; of lists the best rows of both stay."""
    for name, value in more.items():
        if name not in sums:
            sums[name] = copy.deepcopy(value)
        elif isinstance(value, dict):
            _add(sums[name], value)
        elif name in _BEST:
            sums[name] = sorted(sums[name] + value)[: _BEST[name]]
        else:
            sums[name] = sums[name] + value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _arrays(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {n: _arrays(v, n) for n, v in value.items()}
    return np.array(value) if isinstance(value, list) and name not in _BEST else value


# The second part.


@dataclass(frozen=True)
class Models:
    """The models whose labels are tallied."""

    n_classes: int  # C
    labelers: tuple[str, ...]  # names of the B labelers, in the order of columns
    target: str  # which of them prompts were learned for
    n_members: int  # S
    min_known: float = 0.0  # share of probability on the classes below which an image is selected for none


@dataclass(frozen=True)
class Rows:
    """Labels of zero-shot and of the ensemble for the images of one shard."""

    image_ids: list[str]
    true: Labels  # [n], UNLABELED where nothing is known
    fused: Labels  # [n] pseudo-label: of the fused labelers
    confidence: metrics.Confidences  # [n] of the fused labelers
    own: Labels  # [n, B] of each labeler alone
    own_confidence: metrics.Confidences  # [n, B]
    label: Labels  # [n] of the ensemble
    label_confidence: metrics.Confidences  # [n]
    members: Labels  # [n, S] of each member alone
    known: metrics.Confidences  # [n] share of probability on the classes; NaN where no words compete


def join(pseudo: pa.Table, predicted: pa.Table, true: Mapping[str, int]) -> Rows:
    """Rows of both tables by image id, in the order of the first; an image that only one of them has is left out.

    Args:
        pseudo: rows of `schema.PSEUDO_LABELS`.
        predicted: rows of `schema.PREDICTIONS`.
        true: image id -> class, or UNLABELED.
    """
    at = {image_id: i for i, image_id in enumerate(predicted["image_id"].to_pylist())}
    both = [i for i, image_id in enumerate(pseudo["image_id"].to_pylist()) if image_id in at]
    pseudo = pseudo.take(pa.array(both, pa.int64()))
    ids = pseudo["image_id"].to_pylist()
    predicted = predicted.take(pa.array([at[i] for i in ids], pa.int64()))
    return Rows(
        image_ids=ids,
        true=np.array([true[i] for i in ids], np.int64),
        fused=pseudo["pseudo_label"].to_numpy(),
        confidence=pseudo["confidence"].to_numpy(),
        own=_lists(pseudo, "backbone_labels"),
        own_confidence=_lists(pseudo, "backbone_confidences"),
        label=predicted["label"].to_numpy(),
        label_confidence=predicted["confidence"].to_numpy(),
        members=_lists(predicted, "member_labels"),
        known=pseudo["known"].to_numpy(),
    )


def _lists(table: pa.Table, column: str) -> Any:
    """A list column as [rows, list length]."""
    flat = np.asarray(pc.list_flatten(table[column]).combine_chunks())
    return flat.reshape(len(table), -1) if len(table) else flat.reshape(0, 1)


def tally_shard(
    predicted: pa.Table,
    rows: Rows,
    true: Mapping[str, int],
    models: Models,
    shard: str,
    listed: int,
    corrected: Set[str] = frozenset(),
) -> Tally:
    """Both parts of one shard, some of whose predictions may have no pseudo-label: another labeler could not read them.

    Args:
        predicted: rows of `schema.PREDICTIONS`.
        rows: those of them that have pseudo-labels, see `join`.
        true: image id -> class, or UNLABELED.
        models: the models whose labels these are.
        shard: its id, for the examples.
        listed: its images.
        corrected: those that a person has labeled, of which there is no doubt.
    """
    tally = tally_predictions(predicted, listed)
    tally.joined = {"judged": _judged(predicted, true, models.n_members), **tally_rows(rows, models, shard, corrected)}
    return tally


def _judged(predicted: pa.Table, true: Mapping[str, int], n_members: int) -> Sums:
    """Of all predictions: labeled images, and how many the ensemble [0] and each member [1 + m] has right.

    `right_even` counts the ensemble's where no class is taken to be more frequent.
    """
    labels = np.array([true[i] for i in predicted["image_id"].to_pylist()], np.int64)
    known = np.flatnonzero(labels != metrics.UNLABELED)
    said = np.zeros((len(predicted), 1 + n_members), np.int64)
    if len(predicted):
        said[:, 0], said[:, 1:] = predicted["label"].to_numpy(), _lists(predicted, "member_labels")
    even = predicted["even_label"].to_numpy()[known] if len(known) else labels[known]
    right = (said[known] == labels[known, None]).sum(axis=0)
    return {"labeled": len(known), "right": right, "right_even": int((even == labels[known]).sum())}


def tally_rows(rows: Rows, models: Models, shard: str, corrected: Set[str] = frozenset()) -> Sums:
    """The sums of joined rows; see `tally_shard`."""
    if not rows.image_ids:
        rows = _no_rows(models)
    known = rows.true != metrics.UNLABELED
    return {
        "images": len(known),
        "labeled": int(known.sum()),
        "true": _count(rows.true[known], models),
        **_predictors(rows, known, models),
        **_confidence(rows, known, models),
        **_threshold(rows, known, models),
        **_agreement(rows, known, models),
        **_change(rows, known, models, shard),
        **_to_look_at(rows, shard, corrected),
        **_known(rows, models, corrected),
        "voters": _voters(rows, known),
    }


def _no_rows(models: Models) -> Rows:
    none = np.zeros(0, np.int64)
    b, s = np.zeros((0, len(models.labelers)), np.int64), np.zeros((0, models.n_members), np.int64)
    shares = none.astype(np.float32)
    return Rows([], none, none, shares, b, b.astype(np.float32), none, shares, s, shares)


def _count(labels: Labels, models: Models) -> Counts:
    return np.bincount(labels, minlength=models.n_classes)


def _predictors(rows: Rows, known: npt.NDArray[np.bool_], models: Models) -> Sums:
    """Images of each class, [C] for each predictor: all that it names, those with a true label, the right ones."""
    own = {f"labeler {name}": rows.own[:, i] for i, name in enumerate(models.labelers)}
    predictors = {"fused": rows.fused, "ensemble": rows.label, **own}
    return {
        "predicted": {name: _count(labels, models) for name, labels in predictors.items()},
        "known": {name: _count(labels[known], models) for name, labels in predictors.items()},
        "right": {name: _count(labels[labels == rows.true], models) for name, labels in predictors.items()},
    }


def _confidence(rows: Rows, known: npt.NDArray[np.bool_], models: Models) -> Sums:
    """By pseudo-label [C]: sums of confidence and of agreement, images whose label the ensemble keeps. Calibration."""
    target = models.labelers.index(models.target)
    agreement = (rows.own == rows.fused[:, None]).mean(axis=1)
    predictors = {
        "fused": (rows.fused, rows.confidence),
        "ensemble": (rows.label, rows.label_confidence),
        "target": (rows.own[:, target], rows.own_confidence[:, target]),
    }
    bins, labeled = {}, {}
    for name, (labels, confidence) in predictors.items():
        right = labels == rows.true
        bins[name] = metrics.reliability(confidence, right)
        labeled[name] = metrics.reliability(confidence[known], right[known])
    return {
        "class_confidence": np.bincount(rows.fused, rows.confidence, models.n_classes),
        "class_confidence_labeled": np.bincount(rows.fused[known], rows.confidence[known], models.n_classes),
        "class_agreement": np.bincount(rows.fused, agreement, models.n_classes),
        "class_kept": _count(rows.fused[rows.fused == rows.label], models),
        "bins": bins,
        "bins_labeled": labeled,
    }


def _threshold(rows: Rows, known: npt.NDArray[np.bool_], models: Models) -> Sums:
    """Images above the threshold: of each pseudo-label [C], labeled ones, right ones."""
    high = rows.confidence >= THRESHOLD
    right = int((high & (rows.fused == rows.true)).sum())
    return {"above": {"images": _count(rows.fused[high], models), "labeled": int((high & known).sum()), "right": right}}


def _agreement(rows: Rows, known: npt.NDArray[np.bool_], models: Models) -> Sums:
    """Members that are right and that agree with the ensemble [S], pairs of labelers and their fusion [B + 1, B + 1].

    `confusion` counts labeled images by C * true class + the ensemble's.
    """
    everyone = np.concatenate([rows.own, rows.fused[:, None]], axis=1)
    return {
        "members_right": (rows.members[known] == rows.true[known][:, None]).sum(axis=0),
        "members_agree": (rows.members == rows.label[:, None]).sum(axis=0),
        "pairs_agree": (everyone[:, :, None] == everyone[:, None, :]).sum(axis=0),
        "confusion": _pairs(rows.true[known], rows.label[known], models.n_classes),
    }


def _pairs(first: Labels, second: Labels, n_classes: int) -> dict[str, int]:
    pairs, counts = np.unique(first.astype(np.int64) * n_classes + second, return_counts=True)
    return dict(zip(map(str, pairs.tolist()), counts.tolist(), strict=True))


def _change(rows: Rows, known: npt.NDArray[np.bool_], models: Models, shard: str) -> Sums:
    """Images that the target's zero-shot and the ensemble classify differently; `moves` counts pairs of classes."""
    target = models.labelers.index(models.target)
    before, after = rows.own[:, target], rows.label
    changed = before != after
    judged = changed & known
    was, is_ = before[judged] == rows.true[judged], after[judged] == rows.true[judged]
    candidates = np.flatnonzero(changed)
    ids = np.array([rows.image_ids[i] for i in candidates], dtype=str)
    best = candidates[np.lexsort((ids, -rows.label_confidence[candidates]))][:EXAMPLES]
    counted = models.n_classes <= DENSE_CLASSES
    return {
        "change": {
            "changed": int(changed.sum()),
            "labeled": int(judged.sum()),
            "corrected": int(is_.sum()),
            "broken": int(was.sum()),
            "still wrong": int((~was & ~is_).sum()),
        },
        "moves": _pairs(before[changed], after[changed], models.n_classes) if counted else {},
        "examples": [
            [
                -float(rows.label_confidence[i]),
                rows.image_ids[i],
                shard,
                int(before[i]),
                float(rows.own_confidence[i, target]),
                int(after[i]),
                int(rows.true[i]),
            ]
            for i in best.tolist()
        ],
    }


EXAMPLE = ("image_id", "shard", "before", "before_confidence", "after", "true")  # of a row of `examples`, after its key


LOOK = ("confidence", "image_id", "shard", "pseudo_label", "labelers_agree", "members_agree", "true_label")


def _to_look_at(rows: Rows, shard: str, corrected: Set[str]) -> Sums:
    """Images that a person should look at first, as rows of a key and the values of `LOOK`.

    `doubtful`: the pseudo-label that labelers and members support least. The support is the mean of two shares, that of
    labelers and that of members that say it by themselves. Refined labels that no labeler gave come early, too. An
    image that everyone agrees on is none. `least_known`: those that show a class least, see `known`.
    """
    labelers, members = ((x == rows.fused[:, None]).mean(axis=1) for x in (rows.own, rows.members))
    support = (labelers + members) / 2
    free = np.array([i not in corrected for i in rows.image_ids], np.bool_)

    def first(key: npt.NDArray[np.float64], wanted: npt.NDArray[np.bool_], n: int) -> list[list[Any]]:
        candidates = np.flatnonzero(free & wanted)
        ids = np.array([rows.image_ids[i] for i in candidates], dtype=str)
        best = candidates[np.lexsort((ids, rows.confidence[candidates], key[candidates]))][:n]
        return [
            [
                float(key[i]),
                float(rows.confidence[i]),
                rows.image_ids[i],
                shard,
                int(rows.fused[i]),
                float(labelers[i]),
                float(members[i]),
                int(rows.true[i]),
            ]
            for i in best.tolist()
        ]

    return {
        "doubtful": first(support, support < 1, DOUBTFUL),
        "least_known": first(rows.known.astype(np.float64), ~np.isnan(rows.known), LEAST_KNOWN),
    }


def _known(rows: Rows, models: Models, corrected: Set[str]) -> Sums:
    """Images beside which words competed, the sum of their shares, and how many the threshold keeps from selection."""
    measured = ~np.isnan(rows.known)
    below = measured & ~is_known(rows.known, models.min_known)
    return {
        "known_images": int(measured.sum()),
        "known_bins": count_shares(rows.known[measured]),
        "known_share": float(rows.known[measured].sum(dtype=np.float64)),
        "known_below": sum(rows.image_ids[i] not in corrected for i in np.flatnonzero(below)),
    }


# Votes of few members.


def _voters(rows: Rows, known: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The images of lowest checksum, labeled ones first: [unlabeled, checksum, reference, ensemble's, members' ...].

    Their ids alone choose them, and how many have a true label is only known when all shards are. The reference is the
    true class, or else the ensemble's.
    """
    checksums = np.array([zlib.crc32(i.encode()) for i in rows.image_ids], np.int64)
    reference = np.where(known, rows.true, rows.label)
    table = np.column_stack([~known, checksums, reference, rows.label, rows.members]).astype(np.int64)
    order = np.lexsort((checksums, ~known))[: _BEST["voters"]]
    return sorted(table[order].tolist())


def _votes(voters: list[list[int]], votable: int, judged: bool, models: Models) -> dict[str, Any]:
    """How often the first 1, 2, ... S members are right in each of some orders [ORDERS, S], on a sample of the images.

    Args:
        voters: see `_voters`.
        votable: how many images the sample is drawn from: the labeled ones if `judged`, or else all.
        judged: whether votes are held against true labels, or else against the ensemble.
        models: whose votes they are.
    """
    table = np.array(voters, np.int64).reshape(-1, 4 + models.n_members)
    limit = min(1.0, VOTE_IMAGES / max(votable, 1)) * 2**32
    table = table[(table[:, 1] < limit) & ((table[:, 0] == 0) | (not judged))]
    reference, ensemble, members = table[:, 2], table[:, 3], table[:, 4:]
    orders = [np.random.default_rng(seed).permutation(models.n_members) for seed in range(ORDERS)]
    right = [(votes(members, order) == reference[:, None]).sum(axis=0).tolist() for order in orders]
    return {"images": len(table), "ensemble": int((ensemble == reference).sum()), "right": right}


def votes(members: Labels, order: Labels) -> Labels:
    """Majority vote of the first 1, 2, ... S members in an order [n, S]; among equals, who was added first decides."""
    members = members[:, order]
    support = (members[:, :, None] == members[:, None, :]).cumsum(axis=1, dtype=np.int32)  # [n, voters, candidates]
    steps = range(members.shape[1])
    winners = [support[:, s, : s + 1].argmax(axis=1) for s in steps]
    return np.stack([np.take_along_axis(members, w[:, None], axis=1)[:, 0] for w in winners], axis=1)


# Results.


def numbers(tally: Tally, models: Models) -> dict[str, Any]:
    """The joined sums as the report shows them: JSON values, with the votes, without `judged` and `above`."""
    sums, c = tally.joined, models.n_classes
    labeled = sums["judged"]["labeled"]
    given = {k: _plain(v) for k, v in sums.items() if k not in ("judged", "above", "voters")}
    return given | {
        "confusion": [[*divmod(int(pair), c), n] for pair, n in sorted(sums["confusion"].items(), key=_index)],
        "moves": _most_moved(sums["moves"], c) if c <= DENSE_CLASSES else None,
        "examples": [dict(zip(EXAMPLE, e[1:], strict=True)) | {"after_confidence": -e[0]} for e in sums["examples"]],
        "doubtful": [_look(e) for e in sums["doubtful"]],
        "least_known": [_look(e) | {"known": e[0]} for e in sums["least_known"]],
        "votes": _votes(sums["voters"], labeled or tally.listed, labeled > 0, models),
    }


def _look(row: list[Any]) -> dict[str, Any]:
    """A row of `_to_look_at` by names, without its key."""
    return dict(zip(LOOK, row[1:], strict=True)) | ({"true_label": None} if row[-1] == metrics.UNLABELED else {})


def _index(item: tuple[str, int]) -> int:
    return int(item[0])


def _most_moved(moves: Mapping[str, int], n_classes: int) -> list[list[int]]:
    """The most frequent pairs of different classes: rows of (first, second, images)."""
    most = sorted(moves.items(), key=lambda item: (-item[1], int(item[0])))[:PAIRS]
    return [[*divmod(int(pair), n_classes), n] for pair, n in most]
