"""Images that methods with labels learn from: drawn per class, and their features gathered once for all methods.

Shapes: N images of a pool, n drawn images, D feature width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray import pseudo_labels, schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.corpus import Corpus
from upl_ray.features import feature_table, read_features
from upl_ray.metrics import UNLABELED, Labels
from upl_ray.score import labels_of

VERSION = 1  # raise when the same pool gives other samples
GATHERED_VERSION = 2  # raise when gathered features lie there otherwise
PLACE = ("shard", "image_id")


@dataclass(frozen=True)
class Pool:
    """Labeled images of a corpus, in the order of their ids."""

    corpus: Corpus
    ids: list[str]
    shards: list[str]
    labels: Labels  # [N]

    def where(self, keep: Callable[[str], bool]) -> Pool:
        """Those images whose id is to be kept."""
        rows = [i for i, image_id in enumerate(self.ids) if keep(image_id)]
        return Pool(self.corpus, [self.ids[i] for i in rows], [self.shards[i] for i in rows], self.labels[rows])


def read_pool(corpus: Corpus, rule: str, classnames: tuple[str, ...], without: Collection[str]) -> Pool:
    """Every image of a corpus that has a label and is not in `without` (those that could not be read)."""
    rows: list[tuple[str, str, int]] = []
    for shard in corpus.shards:
        ids = [i for i in corpus.labels(shard) if i not in shard.removed and i not in without]
        labels = labels_of(corpus, shard, ids, rule, classnames)
        rows += [(i, shard.id, int(c)) for i, c in zip(ids, labels, strict=True) if c != UNLABELED]
    rows.sort()
    return Pool(corpus, [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows], np.int64))


def write_samples(store: Store, pool: Pool, rows: list[npt.NDArray[np.int64]]) -> Artifact:
    """A selection of drawn images [C lists of rows] under their true labels; what it holds is what names it."""
    chosen = [
        (pool.ids[i], int(pool.labels[i]), rank, pool.shards[i])
        for c in rows
        for rank, i in enumerate(sorted(c.tolist()))
    ]
    identity = {"version": VERSION, "corpus": pool.corpus.digest, "samples": [[i, c] for i, c, _, _ in chosen]}
    artifact = Artifact(store, "selection", fingerprint(identity))
    if artifact.manifest() is None:
        columns = {
            "image_id": [i for i, _, _, _ in chosen],
            "pseudo_label": [c for _, c, _, _ in chosen],  # the true one: samples take the place of pseudo-labels
            "confidence": [1.0] * len(chosen),
            "rank": [r for _, _, r, _ in chosen],
            "shard": [s for _, _, _, s in chosen],
        }
        write_selection(artifact, pa.table(columns, schema=schema.SELECTION), len(rows))
    return artifact


def write_above_threshold(store: Store, corpus: Corpus, pseudo: Artifact, threshold: float, n_classes: int) -> Artifact:
    """A selection of every image whose pseudo-label has at least this confidence."""
    identity = {"version": VERSION, "labels": pseudo.fingerprint, "corpus": corpus.digest, "threshold": threshold}
    artifact = Artifact(store, "selection", fingerprint(identity))
    if artifact.manifest() is None:
        columns = ["image_id", "pseudo_label", "confidence"]
        parts = ((shard.id, pseudo.read_shard(shard.state, columns)) for shard in corpus.shards)
        tables = (t.append_column("shard", pa.array([shard] * len(t), pa.string())) for shard, t in parts)
        write_selection(artifact, pseudo_labels.above_threshold(tables, threshold), n_classes)
    return artifact


def write_selection(artifact: Artifact, chosen: pa.Table, n_classes: int) -> None:
    """Store rows of `schema.SELECTION`, and how many each class has."""
    files = artifact.write_file("selection.parquet", chosen)
    counts = pseudo_labels.samples_per_class(chosen, n_classes)
    artifact.finish(files=files, images=chosen.num_rows, samples_per_class=counts)


def read_samples(selection: Artifact) -> dict[str, int]:
    """Image id -> label of a selection, in the order of ids."""
    table = selection.read_table("selection.parquet", ["image_id", "pseudo_label"])
    return dict(sorted(zip(table["image_id"].to_pylist(), table["pseudo_label"].to_pylist(), strict=True)))


def gathered_artifact(features: Artifact, selections: Iterable[Artifact]) -> Artifact:
    """Where the features of some selections' images lie together."""
    identity = {
        "version": GATHERED_VERSION,
        "features": features.fingerprint,
        "of": sorted({s.folder for s in selections}),
    }
    return Artifact(features.store, "gathered", fingerprint(identity))


def gather_features(artifact: Artifact, features: Artifact, selections: list[Artifact], corpora: list[Corpus]) -> None:
    """Copy the features of the selections' images into one table, reading each shard that holds one of them once."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for selection in selections:
        for name, image_id in _places(selection):
            wanted[name].add(image_id)
    tables = []
    for shard in {s.id: s for c in corpora for s in c.shards if s.id in wanted}.values():
        ids, vectors = read_features(features, shard)
        rows = [i for i, image_id in enumerate(ids) if image_id in wanted[shard.id]]
        table = feature_table([ids[i] for i in rows], vectors[rows], set())
        tables.append(table.append_column("shard", pa.array([shard.id] * len(rows), pa.string())))
    files = artifact.write_file("features.parquet", pa.concat_tables(tables))
    artifact.finish(files=files, images=sum(map(len, wanted.values())))


def read_gathered(artifact: Artifact, selection: Artifact) -> npt.NDArray[np.float16]:
    """Gathered features [n, D] of a selection's images, in the order of `read_samples`."""
    table = artifact.read_table("features.parquet")
    row = {place: i for i, place in enumerate(zip(*(table[c].to_pylist() for c in PLACE), strict=True))}
    dim = table.schema.field("image_features").type.list_size
    vectors = np.asarray(table["image_features"].combine_chunks().flatten()).reshape(-1, dim)
    return vectors[[row[place] for place in sorted(_places(selection), key=lambda place: place[1])]]


def _places(selection: Artifact) -> list[tuple[str, str]]:
    """Shard and id of a selection's images: an id alone may be that of another image in another corpus."""
    table = selection.read_table("selection.parquet", list(PLACE))
    return list(zip(*(table[c].to_pylist() for c in PLACE), strict=True))
