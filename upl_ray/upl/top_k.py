"""Selection: the top-K most confident images of each class, or all above a threshold (paper, section 3.2); pure.

One total order, (-confidence, image_id), so a result depends neither on the order of rows nor on how they are split.

Shapes: C classes, K images a class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray.storage import schema


def top_k(parts: Iterable[pa.Table], k: int) -> pa.Table:
    """The K most confident images of each pseudo-label, in the total order (-confidence, image_id).

    `parts` are tables with image_id, pseudo_label, confidence and shard, for example one a shard, in any order; only
    C * K rows are held between them. Rows that occur in several parts count once. The top-K of several top-Ks is that
    of all their rows, so parts may be such results themselves.

    Returns:
        A table of `schema.SELECTION`, ordered by pseudo-label and rank. A class without images has no rows.
    """
    columns = ["image_id", "pseudo_label", "confidence", "shard"]
    kept: pa.Table | None = None
    for part in parts:
        rows = part.select(columns)
        rows = rows if kept is None else pa.concat_tables([kept.select(columns), rows])
        kept = _ranked(rows.group_by(columns).aggregate([]), k)
    return schema.SELECTION.empty_table() if kept is None else kept


def with_pinned(selection: pa.Table, pinned: pa.Table, k: int) -> pa.Table:
    """The top-K of each class where some images are pinned: these come first, whatever K is, and others fill it up.

    Args:
        selection: the top-K of all other images.
        pinned: columns of `schema.SELECTION` but for `rank`.
        k: images of a class.
    """
    columns = ["image_id", "pseudo_label", "confidence", "shard"]
    first = _ranked(pinned.select(columns), len(pinned))
    taken = Counter(first["pseudo_label"].to_pylist())
    before = np.array([taken[c] for c in selection["pseudo_label"].to_pylist()], np.int32)
    rank = selection["rank"].to_numpy() + before
    rest = selection.set_column(selection.schema.get_field_index("rank"), "rank", pa.array(rank, pa.int32()))
    both = pa.concat_tables([first, rest.filter(pa.array(rank < k)).cast(schema.SELECTION)])
    return both.sort_by([("pseudo_label", "ascending"), ("rank", "ascending")])


def above_threshold(parts: Iterable[pa.Table], threshold: float) -> pa.Table:
    """Every image whose confidence is at least `threshold`, in a table as `top_k` returns (FixMatch, equation 4)."""
    columns = ["image_id", "pseudo_label", "confidence", "shard"]
    least = pa.scalar(threshold, pa.float32())  # as confidences are stored: 0.9 is not above itself in double precision
    chosen = [p.select(columns).filter(pc.greater_equal(p["confidence"], least)) for p in parts]
    if not chosen:
        return schema.SELECTION.empty_table()
    rows = pa.concat_tables(chosen).group_by(columns).aggregate([])
    return _ranked(rows, len(rows))


def _ranked(rows: pa.Table, k: int) -> pa.Table:
    """The first k rows of each class in the total order, as `schema.SELECTION`."""
    rows = rows.sort_by([("pseudo_label", "ascending"), ("confidence", "descending"), ("image_id", "ascending")])
    labels = rows["pseudo_label"].to_numpy()
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # distance from the first row of the class
    rows = rows.append_column("rank", pa.array(rank, pa.int32())).filter(pa.array(rank < k))
    return rows.select(schema.SELECTION.names).cast(schema.SELECTION)


def samples_per_class(selection: pa.Table, n_classes: int) -> list[int]:
    """Number of selected images of each class [C]; a starved class has fewer than K, possibly none."""
    counts: list[int] = np.bincount(selection["pseudo_label"].to_numpy(), minlength=n_classes).tolist()
    return counts
