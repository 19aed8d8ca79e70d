"""Images that methods with labels learn from: drawn for each class, and their features gathered once for all methods.

Shapes: N labeled images, n drawn images, C classes, D feature width.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray.corpus.shards import Corpus
from upl_ray.corpus.true_labels import true_labels_of
from upl_ray.pipeline.features import feature_table, read_features
from upl_ray.pipeline.selection import read_selection, write_selection
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.metrics import UNLABELED, Labels
from upl_ray.upl.top_k import above_threshold

VALIDATION_SHOTS = 4  # most validation images of a class: min(shots, 4) (CoOp, section 4.1)
VALIDATION_SHARE = 0.2  # of the corpus, kept for validation where no validation images are given
_TRAIN, _VALIDATION = 0, 1  # separate streams of random numbers
SHARD_AND_ID = ("shard", "image_id")


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images of a corpus, in the order of their ids."""

    corpus: Corpus
    ids: list[str]
    shards: list[str]
    labels: Labels  # [N]

    def where(self, keep: Callable[[str], bool]) -> LabeledImages:
        """The images whose id passes `keep`."""
        rows = [i for i, image_id in enumerate(self.ids) if keep(image_id)]
        return LabeledImages(
            self.corpus, [self.ids[i] for i in rows], [self.shards[i] for i in rows], self.labels[rows]
        )


def read_labeled_images(
    corpus: Corpus, rule: str, classnames: tuple[str, ...], unreadable: Collection[str]
) -> LabeledImages:
    """Every readable image of a corpus whose true label, by a rule such as `folders`, is a class."""
    rows: list[tuple[str, str, int]] = []
    for shard in corpus.shards:
        ids = [i for i in corpus.labels(shard) if i not in shard.removed and i not in unreadable]
        labels = true_labels_of(corpus, shard, ids, rule, classnames)
        rows += [(i, shard.id, int(c)) for i, c in zip(ids, labels, strict=True) if c != UNLABELED]
    rows.sort()
    return LabeledImages(corpus, [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows], np.int64))


def kept_for_validation(image_id: str) -> bool:
    """True for the share of a corpus that validates where no validation images are given; depends on the id alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4], "big") < VALIDATION_SHARE * 2**32


def draw(labels: Labels, shots: int, seed: int, validation: bool = False) -> list[npt.NDArray[np.int64]]:
    """Rows of up to `shots` random images of each class [C lists]; fewer where a class has fewer (CoOp, section 4.1).

    Draws of one seed are nested: one shot is the first of two. Images without a label are never drawn.

    Args:
        labels: class of each row, in an order that does not depend on how images were read.
        shots: images of a class.
        seed: each seed draws others.
        validation: draws from a separate stream of random numbers.
    """
    rows = []
    for c in range(int(labels.max(initial=-1)) + 1):
        rng = np.random.default_rng([seed, _VALIDATION if validation else _TRAIN, c])
        rows.append(rng.permutation(np.flatnonzero(labels == c))[:shots])
    return rows


def write_samples(store: Store, images: LabeledImages, rows: list[npt.NDArray[np.int64]]) -> Step:
    """A selection of drawn images [C lists of rows] under their true labels; its identity is its content."""
    drawn = [
        (images.ids[i], int(images.labels[i]), rank, images.shards[i])
        for of_class in rows
        for rank, i in enumerate(sorted(of_class.tolist()))
    ]
    inputs = {"corpus": images.corpus.digest, "samples": [[i, c] for i, c, _, _ in drawn]}
    step = Step.of(store, "selection", version=5, inputs=inputs)
    if not step.finished:
        columns = {
            "image_id": [i for i, _, _, _ in drawn],
            "pseudo_label": [c for _, c, _, _ in drawn],  # the true one: samples take the place of pseudo-labels
            "confidence": [1.0] * len(drawn),
            "rank": [r for _, _, r, _ in drawn],
            "shard": [s for _, _, _, s in drawn],
        }
        write_selection(step, pa.table(columns, schema=schema.SELECTION), len(rows))
    return step


def write_above_threshold(store: Store, corpus: Corpus, pseudo: Step, threshold: float, n_classes: int) -> Step:
    """A selection of every image whose pseudo-label has at least this confidence."""
    inputs = {"corpus": corpus.digest, "threshold": threshold}
    step = Step.of(store, "selection", version=6, inputs=inputs, needs=[pseudo])
    if not step.finished:
        columns = ["image_id", "pseudo_label", "confidence"]
        parts = ((shard.id, pseudo.read_shard(shard.state, columns)) for shard in corpus.shards)
        tables = (t.append_column("shard", pa.array([shard] * len(t), pa.string())) for shard, t in parts)
        write_selection(step, above_threshold(tables, threshold), n_classes)
    return step


def read_samples(selection: Step) -> dict[str, int]:
    """Image id -> label of a selection, in the order of ids."""
    table = read_selection(selection, ["image_id", "pseudo_label"])
    return dict(sorted(zip(table["image_id"].to_pylist(), table["pseudo_label"].to_pylist(), strict=True)))


def gathered_step(features: Step, selections: Iterable[Step]) -> Step:
    """The features of all images of some selections, in one table."""
    inputs = {"of": sorted({s.folder for s in selections})}
    return Step.of(features.store, "gathered", version=3, inputs=inputs, needs=[features])


def gather_features(step: Step, features: Step, selections: list[Step], corpora: list[Corpus]) -> None:
    """Copy the features of the selections' images into one table, reading each shard that holds one of them once."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for selection in selections:
        for shard_id, image_id in _shards_and_ids(selection):
            wanted[shard_id].add(image_id)
    tables = []
    for shard in {s.id: s for c in corpora for s in c.shards if s.id in wanted}.values():
        ids, vectors = read_features(features, shard)
        rows = [i for i, image_id in enumerate(ids) if image_id in wanted[shard.id]]
        table = feature_table([ids[i] for i in rows], vectors[rows], set())
        tables.append(table.append_column("shard", pa.array([shard.id] * len(rows), pa.string())))
    files = step.write_file("features.parquet", pa.concat_tables(tables))
    step.finish(files=files, images=sum(map(len, wanted.values())))


def read_gathered(step: Step, selection: Step) -> npt.NDArray[np.float16]:
    """Gathered features [n, D] of a selection's images, in the order of `read_samples`."""
    table = step.read_table("features.parquet")
    row = {key: i for i, key in enumerate(zip(*(table[c].to_pylist() for c in SHARD_AND_ID), strict=True))}
    dim = table.schema.field("image_features").type.list_size
    vectors = np.asarray(table["image_features"].combine_chunks().flatten()).reshape(-1, dim)
    return vectors[[row[key] for key in sorted(_shards_and_ids(selection), key=lambda key: key[1])]]


def _shards_and_ids(selection: Step) -> list[tuple[str, str]]:
    """Shard and id of a selection's images: an id alone may be that of another image in another corpus."""
    table = read_selection(selection, list(SHARD_AND_ID))
    return list(zip(*(table[c].to_pylist() for c in SHARD_AND_ID), strict=True))
