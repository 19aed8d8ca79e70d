"""Fusion, top-K and threshold: pure functions with one total order (paper, section 3.2).

Shapes: N images, C classes, B labelers, K images a class.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from upl_ray import schema

Probabilities = npt.NDArray[np.float32]


def fuse(image_ids: list[list[str]], probabilities: list[Probabilities]) -> tuple[list[str], Probabilities]:
    """Average the labelers' probabilities, joined by image id.

    Args:
        image_ids: for each of B labelers its N ids, in any order.
        probabilities: for each labeler [N, C] float32.

    Returns:
        The ids in the first labeler's order and the mean probabilities [N, C] in float32.

    Raises:
        ValueError: an id stands twice, or the labelers have seen different images.
    """
    reference = image_ids[0]
    position = {image_id: i for i, image_id in enumerate(reference)}
    if len(position) != len(reference):
        raise ValueError(f"Image ids of one labeler repeat: {len(reference)} rows, {len(position)} ids.")
    total = np.zeros(probabilities[0].shape, np.float64)
    for labeler, (ids, p) in enumerate(zip(image_ids, probabilities, strict=True)):
        if len(ids) != len(reference) or set(ids) != position.keys():
            odd = sorted(set(ids) ^ position.keys())[:3]
            raise ValueError(
                f"Labeler {labeler} has {len(ids)} images and the first has {len(reference)}; "
                f"fusion needs the same ones. Examples of the difference: {odd}."
            )
        total[[position[i] for i in ids]] += p  # unique rows, so += adds each once
    return reference, (total / len(probabilities)).astype(np.float32)


def assign(probabilities: Probabilities) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Pseudo-label and confidence of each image: argmax (the lowest class among equals) and maximum of [N, C]."""
    return probabilities.argmax(axis=1).astype(np.int32), probabilities.max(axis=1)


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


def above_threshold(parts: Iterable[pa.Table], threshold: float) -> pa.Table:
    """Every image whose confidence is at least `threshold`, as `top_k` lists them (FixMatch, equation 4)."""
    columns = ["image_id", "pseudo_label", "confidence", "shard"]
    least = pa.scalar(threshold, pa.float32())  # as confidences are stored: 0.9 is not above itself in double precision
    chosen = [p.select(columns).filter(pc.greater_equal(p["confidence"], least)) for p in parts]
    if not chosen:
        return schema.SELECTION.empty_table()
    rows = pa.concat_tables(chosen).group_by(columns).aggregate([])
    return _ranked(rows, len(rows))


def _ranked(rows: pa.Table, k: int) -> pa.Table:
    rows = rows.sort_by([("pseudo_label", "ascending"), ("confidence", "descending"), ("image_id", "ascending")])
    labels = rows["pseudo_label"].to_numpy()
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # distance from the first row of the class
    rows = rows.append_column("rank", pa.array(rank, pa.int32())).filter(pa.array(rank < k))
    return rows.select(schema.SELECTION.names).cast(schema.SELECTION)


def samples_per_class(selection: pa.Table, n_classes: int) -> list[int]:
    """Number of selected images of each class [C]; a starved class has fewer than K, possibly none."""
    counts: list[int] = np.bincount(selection["pseudo_label"].to_numpy(), minlength=n_classes).tolist()
    return counts
