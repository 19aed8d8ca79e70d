"""The selection step: the top-K of every class over the whole corpus (paper, section 3.1), as a stream.

The driver holds O(classes x K) rows.

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

from upl_ray.cluster.actors import configure_data
from upl_ray.config.settings import Compute
from upl_ray.corpus.corrections import NONE, ByShard, corrections_of
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.storage.store import read_ahead
from upl_ray.upl.known import is_known
from upl_ray.upl.top_k import samples_per_class, top_k, with_pinned

FILE = "selection.parquet"
ROWS_OF_GROUP = 2**18  # images that one task reduces to at most classes x K


def selection_step(
    corpus: Corpus, pseudo_labels: Step, k: int, min_known: float = 0.0, corrections: Step | None = None
) -> Step:
    """The top-K of every class of a corpus by some pseudo-labels, with what a person has corrected."""
    inputs = {"corpus": corpus.digest, "top_k": k, "min_known": min_known}
    needs = [pseudo_labels, *([corrections] if corrections else [])]
    return Step.of(pseudo_labels.store, "selection", version=4, inputs=inputs, needs=needs)


def make_selection(
    step: Step,
    corpus: Corpus,
    labels: Step,
    k: int,
    n_classes: int,
    compute: Compute,
    corrections: Step | None = None,
    min_known: float = 0.0,
) -> None:
    """Select the top-K of every class from the pseudo-labels of all shards; corrected images are pinned.

    Images that are less known than `min_known` are selected for no class.
    """
    corrected = corrections_of(corrections)

    def read(group: list[Shard]) -> Iterator[pa.Table]:
        for shard in group:
            columns = ["image_id", "pseudo_label", "confidence", *(["known"] if min_known else [])]
            rows = labels.read_shard(shard.state, columns)
            if min_known:
                rows = rows.filter(pa.array(is_known(rows["known"].to_numpy(), min_known)))
            if own := corrected.get(shard.id):
                rows = rows.filter(pa.array([i not in own for i in rows["image_id"].to_pylist()], pa.bool_()))
            yield rows.append_column("shard", pa.array([shard.id] * len(rows), pa.string()))

    chosen = streaming_top_k(list(_groups(corpus.shards)), read, k, compute)
    if corrected:
        chosen = with_pinned(chosen, _pinned(corpus, labels, corrected), k)
    write_selection(step, chosen, n_classes, top_k=k)


def _pinned(corpus: Corpus, labels: Step, corrected: ByShard) -> pa.Table:
    """Rows of `schema.SELECTION`, but for `rank`, of the corrected images that show a class and can be read."""
    shards = [s for s in corpus.shards if s.id in corrected]
    tables = read_ahead(shards, lambda shard: labels.read_shard(shard.state, ["image_id"]))
    rows = [
        {"image_id": i, "pseudo_label": corrected[shard.id][i], "confidence": 1.0, "shard": shard.id}
        for shard, table in zip(shards, tables, strict=True)
        for i in table["image_id"].to_pylist()
        if corrected[shard.id].get(i, NONE) != NONE
    ]
    fields = [f for f in schema.SELECTION if f.name != "rank"]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def write_selection(step: Step, chosen: pa.Table, n_classes: int, **facts: Any) -> None:
    """Store rows of `schema.SELECTION`, and how many each class has."""
    files = step.write_file(FILE, chosen)
    counts = samples_per_class(chosen, n_classes)
    step.finish(files=files, images=chosen.num_rows, samples_per_class=counts, **facts)


def read_selection(step: Step, columns: list[str] | None = None) -> pa.Table:
    """Rows of `schema.SELECTION`, or some of its columns."""
    return step.read_table(FILE, columns)


def streaming_top_k(groups: list[Any], read: Callable[[Any], Iterable[pa.Table]], k: int, compute: Compute) -> pa.Table:
    """The top-K over all tables that `read` makes of each group, in tasks; see `top_k`."""
    configure_data(compute)

    def reduce(batch: dict[str, Any]) -> pa.Table:
        (index,) = batch["index"]
        return top_k(read(groups[int(index)]), k)

    indices = ray.data.from_items([{"index": i} for i in range(len(groups))], override_num_blocks=len(groups))
    parts: Iterable[Any] = indices.map_batches(reduce, batch_size=1).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    return top_k((part for part in parts if part.num_rows), k)


def _groups(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(s.rows for s in group) >= ROWS_OF_GROUP:
            yield group
            group = []
    if group:
        yield group
