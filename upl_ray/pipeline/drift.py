"""Drift of a night: the predictions of its new images beside those of all images before, three comparisons (pure).

Each has a scipy test, which the same kind of images fails with a probability of `CHANCE` at most, and a configured
limit (`Drift`); an alert is a difference beyond both. No true labels are needed, and none of it is an accuracy.

Shapes: C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from upl_ray.config.settings import Drift
from upl_ray.upl.tally import Tally

CHANCE = 0.001  # a difference that the same images show more often is none
DRAWS = 1000  # of the permutation test: the smallest probability that it can find is 1 / 1,001
MOST_CHANGED = 5  # classes that are named


def compare(new: Tally, before: Tally, removed: int, limits: Drift, classnames: tuple[str, ...]) -> dict[str, Any]:
    """The comparison of a night as JSON values.

    Args:
        new: the images that the night has added or found changed.
        before: all images as they were published before.
        removed: images that are gone or changed since.
        limits: below `min_images` on either side a test is left out.
        classnames: names of the classes.
    """
    found: dict[str, Any] = {"new": new.listed, "before": before.listed, "removed": removed}
    if min(new.listed, before.listed) >= limits.min_images:
        found["unreadable"] = compare_unreadable(new, before)
    if min(new.images, before.images) >= limits.min_images:
        found["confidence"] = compare_confidence(new, before)
        found["classes"] = compare_classes(new, before, classnames)
    elif new.listed:
        found["note"] = (
            f"Classes and confidence are not compared: {new.images} new images and {before.images} before are "
            f"readable, and drift.min_images is {limits.min_images}. From the next night on the new ones count as "
            f"before."
        )
    return found


def compare_unreadable(new: Tally, before: Tally) -> dict[str, float]:
    """Share of unreadable images [0-1] on both sides.

    `p` is the probability of this number or more among the new ones, if it were chance which images of all these are
    (Fisher's exact test, one-sided).
    """
    listed, rejected = new.listed + before.listed, new.rejected + before.rejected
    return {
        "share": new.means()["rejected"],
        "share_before": before.means()["rejected"],
        "p": float(stats.hypergeom.sf(new.rejected - 1, listed, rejected, new.listed)),
    }


def compare_confidence(new: Tally, before: Tally) -> dict[str, float]:
    """Mean confidence [0-1] of readable images on both sides; `p` is the larger one of two one-sided t-tests'.

    Student's takes both sides to vary alike: a small one that misses the rare low values by luck looks too sure to
    Welch's. Welch's takes them to differ: new images may vary more than those before without being worse on average.
    """
    means = [t.means()["confidence"] for t in (new, before)]
    return {"mean": means[0], "mean_before": means[1], "p": _drop_by_chance(new, before)}


def _drop_by_chance(new: Tally, before: Tally) -> float:
    if min(new.images, before.images) < 2:  # the average of a single image cannot be judged
        return 1.0
    sides = [(t.means()["confidence"], t.confidence_deviation(), t.images) for t in (new, before)]
    if not any(deviation for _, deviation, _ in sides):  # no image differs from those of its side: 0 / 0 in the tests
        return float(sides[0][0] >= sides[1][0])
    tests = (
        stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=equal, alternative="less") for equal in (True, False)
    )
    return max(float(test.pvalue) for test in tests)


def compare_classes(new: Tally, before: Tally, classnames: tuple[str, ...]) -> dict[str, Any]:
    """Share of readable images in other classes than before, and the classes that changed most.

    `shift` is raw; `beyond_chance` is the part of it that chance does not explain, 0 to 1 as Cohen's kappa scales it.
    `p` is the probability of such a shift or a larger one, if it were chance which images of all are the new ones.
    """
    counts, counts_before = (t.class_counts(len(classnames)) for t in (new, before))
    shares, shares_before = counts / counts.sum(), counts_before / counts_before.sum()
    chance, shift = shifts_by_chance(counts + counts_before, new.images), class_shift(shares, shares_before)
    expected = float(chance.mean())
    order = np.argsort(-np.abs(shares - shares_before), kind="stable")[:MOST_CHANGED]
    return {
        "shift": shift,
        "beyond_chance": max(0.0, shift - expected) / max(1 - expected, 1e-9),
        "p": float((1 + (chance >= shift - 1e-12).sum()) / (1 + len(chance))),
        "most_changed": [
            {"classname": classnames[c], "share": float(shares[c]), "share_before": float(shares_before[c])}
            for c in order
            if shares[c] != shares_before[c]
        ],
    }


def class_shift(new: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> float:
    """Share of the images that would have to change class to turn one distribution [C] into the other.

    The total variation distance; 0: the same, 1: no class in common.
    """
    return float(np.abs(new - before).sum() / 2)


def shifts_by_chance(counts: npt.NDArray[np.int64], n_new: int, draws: int = DRAWS) -> npt.NDArray[np.float64]:
    """Class shifts [draws] if it were chance which images of all, [C] of each class, are the new ones.

    A permutation test. With many classes and few images these shifts are large: 100 images of 1,000 classes never look
    like 100 others.
    """
    # NumPy's limit is 10^9. The shares stay, and shares of this number of images hardly move by chance.
    while counts.sum() >= 10**9:
        counts, n_new = counts // 2, min(n_new, int(counts.sum()) // 4)
    rng = np.random.default_rng(0)  # the same sums give the same alerts
    n_before = counts.sum() - n_new
    new = (rng.multivariate_hypergeometric(counts, n_new, method="marginals") for _ in range(draws))
    return np.array([class_shift(drawn / n_new, (counts - drawn) / n_before) for drawn in new])


def alerts(found: dict[str, Any], limits: Drift) -> list[str]:
    """A sentence for each limit that a comparison exceeds."""
    sentences = []
    if found["removed"] > limits.max_removed * found["before"]:
        sentences.append(
            f"{found['removed']} of {found['before']} images are gone or have changed since the run before; "
            f"drift.max_removed is {limits.max_removed}."
        )
    unreadable, confidence, classes = (found.get(test) for test in ("unreadable", "confidence", "classes"))
    if unreadable and unreadable["p"] <= CHANCE:
        rise = unreadable["share"] - unreadable["share_before"]
        if rise > limits.max_rejected_rise:
            sentences.append(
                f"The share of unreadable images is {100 * rise:.1f} points higher than before; "
                f"drift.max_rejected_rise is {limits.max_rejected_rise}."
            )
    if classes and classes["p"] <= CHANCE and classes["beyond_chance"] > limits.max_class_shift:
        sentences.append(
            f"{100 * classes['beyond_chance']:.1f} % of the new images are in other classes than those before, beyond "
            f"chance; drift.max_class_shift is {limits.max_class_shift}."
        )
    if confidence and confidence["p"] <= CHANCE:
        drop = confidence["mean_before"] - confidence["mean"]
        if drop > limits.max_confidence_drop:
            sentences.append(
                f"The mean confidence of the new images is {drop:.3f} lower than before; "
                f"drift.max_confidence_drop is {limits.max_confidence_drop}."
            )
    return sentences
