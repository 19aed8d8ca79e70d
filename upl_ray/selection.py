"""The top-K of every class over the whole corpus, as a stream: the driver holds O(classes x K) rows.

    from_items             group                   one row for some shards
    map_batches (CPU)      selection rows          their top-K
    fold on the driver     selection rows          the top-K of all

The order is total, (-confidence, image_id), so the result does not depend on groups, arrival or retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray

from upl_ray import pseudo_labels
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.config import Compute
from upl_ray.corpus import Corpus, Shard
from upl_ray.pools import configure_data

VERSION = 2  # raise when the same labels give another selection
ROWS_OF_GROUP = 2**18  # images that one task reduces to at most classes x K


def selection_artifact(store: Store, corpus: Corpus, pseudo: Artifact, k: int) -> Artifact:
    """Where the selection from some pseudo-labels lies."""
    identity = {"version": VERSION, "labels": pseudo.fingerprint, "corpus": corpus.digest, "top_k": k}
    return Artifact(store, "selection", fingerprint(identity))


def select(artifact: Artifact, corpus: Corpus, pseudo: Artifact, k: int, n_classes: int, compute: Compute) -> None:
    """Select the top-K of every class from the pseudo-labels of all shards."""

    def read(group: list[Shard]) -> Iterator[pa.Table]:
        for shard in group:
            rows = pseudo.read_shard(shard.state, ["image_id", "pseudo_label", "confidence"])
            yield rows.append_column("shard", pa.array([shard.id] * len(rows), pa.string()))

    chosen = streaming_top_k(list(_groups(corpus.shards)), read, k, compute)
    files = artifact.write_file("selection.parquet", chosen)
    counts = pseudo_labels.samples_per_class(chosen, n_classes)
    artifact.finish(files=files, images=chosen.num_rows, top_k=k, samples_per_class=counts)


def streaming_top_k(groups: list[Any], read: Callable[[Any], Iterable[pa.Table]], k: int, compute: Compute) -> pa.Table:
    """The top-K over all tables that `read` makes of each group, in tasks; see `pseudo_labels.top_k`."""
    configure_data(compute)

    def reduce(batch: dict[str, Any]) -> pa.Table:
        (index,) = batch["index"]
        return pseudo_labels.top_k(read(groups[int(index)]), k)

    indices = ray.data.from_items([{"index": i} for i in range(len(groups))], override_num_blocks=len(groups))
    parts: Iterable[Any] = indices.map_batches(reduce, batch_size=1).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    return pseudo_labels.top_k((part for part in parts if part.num_rows), k)


def _groups(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(s.rows for s in group) >= ROWS_OF_GROUP:
            yield group
            group = []
    if group:
        yield group
