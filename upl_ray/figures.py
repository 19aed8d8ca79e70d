"""What predictions look like as a whole: sums that add up over shards and nights, and what follows from them (pure).

No true labels are needed, and none of these figures is an accuracy. Shapes: C classes, N images, S members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Figures = dict[str, Any]  # images, rejected, classes {index: images}, and the sums over images that SUMS names
SUMS = ("confidence", "confidence_squares", "agreement")


def figures_of(predictions: pa.Table, listed: int) -> Figures:
    """Figures of the predictions of one shard, rows of `schema.PREDICTIONS`, of which so many images were listed."""
    label = predictions["label"].to_numpy()
    confidence = predictions["confidence"].to_numpy().astype(np.float64)
    members = np.asarray(predictions["member_labels"].combine_chunks().flatten())
    members = members.reshape(len(label), -1) if len(label) else np.zeros((0, 1))
    return {
        "images": len(label),
        "rejected": listed - len(label),
        "classes": {str(c): n for c, n in sorted(Counter(label.tolist()).items())},
        "confidence": float(confidence.sum()),
        "confidence_squares": float(np.square(confidence).sum()),
        "agreement": float((members == label[:, None]).mean(axis=1).sum()),
    }


def total(parts: Iterable[Figures]) -> Figures:
    """Figures of several image sets together."""
    whole: Figures = {"images": 0, "rejected": 0, "classes": {}, **dict.fromkeys(SUMS, 0.0)}
    classes: Counter[str] = Counter()
    for part in parts:
        classes.update(part["classes"])
        for name in ("images", "rejected", *SUMS):
            whole[name] += part[name]
    return whole | {"classes": dict(sorted(classes.items(), key=lambda item: int(item[0])))}


def listed(figures: Figures) -> int:
    """Images that there are, readable or not."""
    return int(figures["images"] + figures["rejected"])


def means(figures: Figures) -> dict[str, float]:
    """Mean confidence, mean agreement of the members with their ensemble, and the share of rejected images [0-1]."""
    images = max(figures["images"], 1)
    return {
        "confidence": figures["confidence"] / images,
        "agreement": figures["agreement"] / images,
        "rejected": figures["rejected"] / max(listed(figures), 1),
    }


def confidence_deviation(figures: Figures) -> float:
    """Standard deviation of the confidence of single images, estimated from at least two."""
    n, mean = figures["images"], means(figures)["confidence"]
    return float(np.sqrt(max(0.0, figures["confidence_squares"] - n * mean**2) / (n - 1)))


def class_counts(figures: Figures, n_classes: int) -> npt.NDArray[np.int64]:
    """Images that each class got, [C]."""
    counts = np.zeros(n_classes, np.int64)
    for index, images in figures["classes"].items():
        counts[int(index)] = images
    return counts
