"""What predictions look like as a whole, and whether those of new images look otherwise than those of all before.

No true labels are needed, and none of these figures is an accuracy. Shapes: C classes, N images, S members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray.predict_config import Drift

Figures = dict[str, Any]  # images, rejected, classes {index: images}, and sums over images: confidence, agreement
MOST_CHANGED = 5  # classes that are named
SHIFTS = ("class_shift", "class_shift_by_chance", "class_shift_beyond_chance", "class_shift_visible")


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


def class_counts(figures: Figures, n_classes: int) -> npt.NDArray[np.int64]:
    """Images that each class got, [C]."""
    counts = np.zeros(n_classes, np.int64)
    for index, images in figures["classes"].items():
        counts[int(index)] = images
    return counts


def class_shift(new: npt.NDArray[np.float64], old: npt.NDArray[np.float64]) -> float:
    """Share of the images that would have to change class to turn one distribution [C] into the other.

    The total variation distance; 0: the same, 1: no class in common.
    """
    return float(np.abs(new - old).sum() / 2)


def shifts_by_chance(counts: npt.NDArray[np.int64], n_new: int, draws: int = 1000) -> npt.NDArray[np.float64]:
    """Class shifts if it were chance which images of all, [C] of each class, are the new ones: drawn, sorted, [draws].

    A permutation test. With many classes and few images these shifts are large: 100 images of 1,000 classes never look
    like 100 others.
    """
    while counts.sum() >= 10**9:  # NumPy's limit; the shares stay, and so many images hardly move by chance
        counts, n_new = counts // 2, min(n_new, int(counts.sum()) // 4)
    rng = np.random.default_rng(0)  # the same figures give the same alerts
    n_old = counts.sum() - n_new
    new = (rng.multivariate_hypergeometric(counts, n_new, method="marginals") for _ in range(draws))
    return np.sort([class_shift(drawn / n_new, (counts - drawn) / n_old) for drawn in new])


def compare(new: Figures, old: Figures, classnames: tuple[str, ...]) -> dict[str, Any]:
    """How the predictions of new images differ from those of all images before.

    `class_shift` is raw; `class_shift_beyond_chance` is the part of it that chance does not explain, 0 to 1 as Cohen's
    kappa scales it, and `class_shift_visible` what it has to exceed to be told from chance (1 in 1,000) at all. These
    and the rises of means are None where one of the two has no readable image.
    """
    now, before = means(new), means(old)
    rises: dict[str, float | None] = {f"{name}_rise": now[name] - before[name] for name in now}
    about: dict[str, Any] = {"images": new["images"], "rejected": new["rejected"], **rises}
    if not new["images"] or not old["images"]:
        unknown = dict.fromkeys((*SHIFTS, "confidence_rise", "agreement_rise"))
        return about | unknown | {"most_changed": []}
    counts, counts_before = (class_counts(f, len(classnames)) for f in (new, old))
    shares, shares_before = counts / counts.sum(), counts_before / counts_before.sum()
    chance = shifts_by_chance(counts + counts_before, new["images"])
    shift, expected = class_shift(shares, shares_before), float(chance.mean())
    room = max(1 - expected, 1e-9)
    order = np.argsort(-np.abs(shares - shares_before), kind="stable")[:MOST_CHANGED]
    return about | {
        "class_shift": shift,
        "class_shift_by_chance": expected,
        "class_shift_beyond_chance": max(0.0, shift - expected) / room,
        "class_shift_visible": float(np.quantile(chance, 0.999) - expected) / room,
        "most_changed": [
            {"classname": classnames[c], "share": shares[c], "share_before": shares_before[c]}
            for c in order
            if shares[c] != shares_before[c]
        ],
    }


def can_compare(new: Figures, limits: Drift) -> bool:
    """True if there are enough new images, or enough that could not be read; fewer wait for more to come."""
    return bool(max(new["images"], new["rejected"]) >= limits.min_images)


def blind(drift: dict[str, Any], limits: Drift) -> str | None:
    """A sentence where a class shift of the configured size could not be told from chance."""
    visible = drift["class_shift_visible"]
    if visible is None or visible <= limits.max_class_shift:
        return None
    return (
        f"Among {drift['images']} images, a class shift below {100 * visible:.0f} % cannot be told from chance, though "
        f"drift.max_class_shift is {limits.max_class_shift}; a larger drift.min_images waits for more."
    )


def alerts(drift: dict[str, Any] | None, removed: int, listed_before: int, limits: Drift) -> list[str]:
    """What is beyond the limits, a sentence each.

    Args:
        drift: the newest full comparison (`compare`), if there was one.
        removed: images that are gone or have changed since the run before.
        listed_before: how many images there were.
        limits: the configured ones.
    """
    found = []
    if removed > limits.max_removed * listed_before:
        found.append(
            f"{removed} of {listed_before} images are gone or have changed since the run before; "
            f"drift.max_removed is {limits.max_removed}."
        )
    return found + (_alerts(drift, limits) if drift else [])


def _alerts(drift: dict[str, Any], limits: Drift) -> list[str]:
    found = []
    if drift["rejected_rise"] > limits.max_rejected_rise:
        found.append(
            f"The share of unreadable images is {100 * drift['rejected_rise']:.1f} points higher than before; "
            f"drift.max_rejected_rise is {limits.max_rejected_rise}."
        )
    if drift["class_shift"] is None or drift["images"] < limits.min_images:
        return found
    beyond = drift["class_shift_beyond_chance"]
    if beyond > max(limits.max_class_shift, drift["class_shift_visible"]):
        found.append(
            f"{100 * beyond:.1f} % of the new images are in other classes than those before would have been, beyond "
            f"what chance explains; drift.max_class_shift is {limits.max_class_shift}."
        )
    if -drift["confidence_rise"] > limits.max_confidence_drop:
        found.append(
            f"The mean confidence of the new images is {-drift['confidence_rise']:.3f} lower than before; "
            f"drift.max_confidence_drop is {limits.max_confidence_drop}."
        )
    return found
