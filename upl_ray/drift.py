"""What predictions look like as a whole, and whether those of new images look otherwise than those of all before.

No true labels are needed, and none of these figures is an accuracy. Shapes: C classes, N images, S members.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray.predict_config import Drift

Figures = dict[str, Any]  # images, rejected, classes {index: images}, and sums over images: confidence, agreement
MOST_CHANGED = 5  # classes that are named
ENOUGH = 100  # new images that are compared by themselves; fewer wait for more


def figures_of(predictions: pa.Table, listed: int) -> Figures:
    """Figures of the predictions of one shard, rows of `schema.PREDICTIONS`, of which so many images were listed."""
    label = predictions["label"].to_numpy()
    members = np.asarray(predictions["member_labels"].combine_chunks().flatten())
    members = members.reshape(len(label), -1) if len(label) else np.zeros((0, 1))
    return {
        "images": len(label),
        "rejected": listed - len(label),
        "classes": {str(c): n for c, n in sorted(Counter(label.tolist()).items())},
        "confidence": float(predictions["confidence"].to_numpy().sum(dtype=np.float64)),
        "agreement": float((members == label[:, None]).mean(axis=1).sum()),
    }


def total(parts: Iterable[Figures]) -> Figures:
    """Figures of several image sets together."""
    whole: Figures = {"images": 0, "rejected": 0, "classes": {}, "confidence": 0.0, "agreement": 0.0}
    classes: Counter[str] = Counter()
    for part in parts:
        classes.update(part["classes"])
        for name in ("images", "rejected", "confidence", "agreement"):
            whole[name] += part[name]
    return whole | {"classes": dict(sorted(classes.items(), key=lambda item: int(item[0])))}


def means(figures: Figures) -> dict[str, float]:
    """Mean confidence, mean agreement of the members with their ensemble, and the share of rejected images [0-1]."""
    images = max(figures["images"], 1)
    return {
        "confidence": figures["confidence"] / images,
        "agreement": figures["agreement"] / images,
        "rejected": figures["rejected"] / max(figures["images"] + figures["rejected"], 1),
    }


def class_shares(figures: Figures, n_classes: int) -> npt.NDArray[np.float64]:
    """Share of the images that each class got, [C]."""
    counts = np.zeros(n_classes)
    for index, images in figures["classes"].items():
        counts[int(index)] = images
    shares: npt.NDArray[np.float64] = counts / max(counts.sum(), 1)
    return shares


def class_shift(new: npt.NDArray[np.float64], old: npt.NDArray[np.float64]) -> float:
    """Share of the images that would have to change class to turn one distribution [C] into the other.

    The total variation distance; 0: the same, 1: no class in common.
    """
    return float(np.abs(new - old).sum() / 2)


def shift_by_chance(shares: npt.NDArray[np.float64], n_new: int, n_old: int) -> float:
    """The class shift that two samples of this size show on average though nothing has changed.

    A class' share differs by about normal noise of variance p (1 - p) (1 / n_new + 1 / n_old), of whose absolute value
    the mean is sqrt(2 / pi) standard deviations; where hardly an image is expected, it is at most 2 p (1 - p).
    """
    variance = shares * (1 - shares)
    noise = np.sqrt(variance * (1 / max(n_new, 1) + 1 / max(n_old, 1)) * 2 / math.pi)
    return float(np.minimum(noise, 2 * variance).sum() / 2)


def compare(new: Figures, old: Figures, classnames: tuple[str, ...]) -> dict[str, Any]:
    """How the predictions of new images differ from those of all images before."""
    now, before = (class_shares(f, len(classnames)) for f in (new, old))
    both = class_shares(total([new, old]), len(classnames))
    rise = {name: value - means(old)[name] for name, value in means(new).items()}
    order = np.argsort(-np.abs(now - before), kind="stable")[:MOST_CHANGED]
    return {
        "images": new["images"],
        "class_shift": class_shift(now, before),
        "class_shift_by_chance": shift_by_chance(both, new["images"], old["images"]),
        **{f"{name}_rise": value for name, value in rise.items()},
        "most_changed": [
            {"classname": classnames[c], "share": now[c], "share_before": before[c]}
            for c in order
            if now[c] != before[c]
        ],
    }


def alerts(drift: dict[str, Any], limits: Drift) -> list[str]:
    """What is beyond the limits, a sentence each; nothing where there are too few new images to tell."""
    if drift["images"] < limits.min_images:
        return []
    beyond = drift["class_shift"] - drift["class_shift_by_chance"]
    found = []
    if beyond > limits.max_class_shift:
        found.append(
            f"{100 * drift['class_shift']:.1f} % of the new images are in other classes than those before would have "
            f"been, {100 * drift['class_shift_by_chance']:.1f} % of it by chance; "
            f"drift.max_class_shift is {limits.max_class_shift}."
        )
    if -drift["confidence_rise"] > limits.max_confidence_drop:
        found.append(
            f"The mean confidence of the new images is {-drift['confidence_rise']:.3f} lower than before; "
            f"drift.max_confidence_drop is {limits.max_confidence_drop}."
        )
    if drift["rejected_rise"] > limits.max_rejected_rise:
        found.append(
            f"The share of unreadable images is {100 * drift['rejected_rise']:.1f} points higher than before; "
            f"drift.max_rejected_rise is {limits.max_rejected_rise}."
        )
    return found
