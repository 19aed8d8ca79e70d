"""Whether the predictions of new images look otherwise than those of all before, beyond what chance explains (pure).

Each comparison has a limit of its own (`predict_config.Drift`), and a test that the same kind of images exceeds with a
probability of `CHANCE` at most. Shapes: C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from upl_ray.figures import Figures, class_counts, confidence_deviation, listed, means
from upl_ray.predict_config import Drift

CHANCE = 0.001  # a difference that the same images show more often is none
MOST_CHANGED = 5  # classes that are named


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


def compare_unreadable(new: Figures, old: Figures) -> dict[str, Any]:
    """How much larger the share of unreadable images is among the new ones.

    `rejected_rise_p` is the probability of so many or more, if it were chance which images of all are the new ones
    (Fisher's exact test, one-sided).
    """
    both, rejected = listed(new) + listed(old), new["rejected"] + old["rejected"]
    return {
        "images": listed(new),
        "images_before": listed(old),
        "rejected": new["rejected"],
        "rejected_rise": means(new)["rejected"] - means(old)["rejected"],
        "rejected_rise_p": float(stats.hypergeom.sf(new["rejected"] - 1, both, rejected, listed(new))),
    }


def compare_classes(new: Figures, old: Figures, classnames: tuple[str, ...]) -> dict[str, Any]:
    """How the classes, confidence and agreement of readable images differ; both sides have some.

    `class_shift` is raw; `class_shift_beyond_chance` is the part of it that chance does not explain, 0 to 1 as Cohen's
    kappa scales it, and `class_shift_visible` what it has to exceed to be told from chance at all.
    `confidence_drop_p` is the probability of such a fall of the mean confidence, or of a larger one, by chance.
    """
    now, before = means(new), means(old)
    counts, counts_before = (class_counts(f, len(classnames)) for f in (new, old))
    shares, shares_before = counts / counts.sum(), counts_before / counts_before.sum()
    chance = shifts_by_chance(counts + counts_before, new["images"])
    shift, expected = class_shift(shares, shares_before), float(chance.mean())
    room = max(1 - expected, 1e-9)
    order = np.argsort(-np.abs(shares - shares_before), kind="stable")[:MOST_CHANGED]
    return {
        "images": new["images"],
        "images_before": old["images"],
        "confidence_rise": now["confidence"] - before["confidence"],
        "confidence_drop_p": confidence_drop_p(new, old),
        "agreement_rise": now["agreement"] - before["agreement"],
        "class_shift": shift,
        "class_shift_by_chance": expected,
        "class_shift_beyond_chance": max(0.0, shift - expected) / room,
        "class_shift_visible": float(np.quantile(chance, 1 - CHANCE) - expected) / room,
        "most_changed": [
            {"classname": classnames[c], "share": shares[c], "share_before": shares_before[c]}
            for c in order
            if shares[c] != shares_before[c]
        ],
    }


def confidence_drop_p(new: Figures, old: Figures) -> float:
    """Probability by chance of such a fall of the mean confidence: the larger one of two t-tests'.

    Student's takes both sides to vary alike: a small one that misses the rare low values by luck looks too sure to
    Welch's. Welch's takes them to differ: new images may vary more than those before without being worse on average.
    1 where the average of a single image would have to be judged.
    """
    if min(new["images"], old["images"]) < 2:
        return 1.0
    sides = [(means(f)["confidence"], confidence_deviation(f), f["images"]) for f in (new, old)]
    if not any(deviation for _, deviation, _ in sides):  # no image differs from those of its side: 0 / 0 in the tests
        return float(sides[0][0] >= sides[1][0])
    tests = (
        stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=equal, alternative="less") for equal in (True, False)
    )
    return max(float(test.pvalue) for test in tests)


def blind(drift: dict[str, Any], limits: Drift) -> str | None:
    """A sentence where a class shift of the configured size could not be told from chance."""
    found = drift.get("classes")
    if not found or found["class_shift_visible"] <= limits.max_class_shift:
        return None
    return (
        f"Among {found['images']} images beside {found['images_before']}, a class shift below "
        f"{100 * found['class_shift_visible']:.0f} % cannot be told from chance, though drift.max_class_shift is "
        f"{limits.max_class_shift}; a larger drift.min_images waits for more."
    )


def alerts(drift: dict[str, Any], removed: int, listed_before: int, limits: Drift) -> list[str]:
    """What is beyond the limits, a sentence each.

    Args:
        drift: the newest comparisons, `unreadable` (`compare_unreadable`) and `classes` (`compare_classes`), if there
            were any.
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
    found += _unreadable_alerts(drift["unreadable"], limits) if "unreadable" in drift else []
    return found + (_class_alerts(drift["classes"], limits) if "classes" in drift else [])


def _unreadable_alerts(found: dict[str, Any], limits: Drift) -> list[str]:
    if found["rejected_rise"] <= limits.max_rejected_rise or found["rejected_rise_p"] > CHANCE:
        return []
    return [
        f"The share of unreadable images is {100 * found['rejected_rise']:.1f} points higher than before; "
        f"drift.max_rejected_rise is {limits.max_rejected_rise}."
    ]


def _class_alerts(found: dict[str, Any], limits: Drift) -> list[str]:
    told = []
    beyond = found["class_shift_beyond_chance"]
    if beyond > max(limits.max_class_shift, found["class_shift_visible"]):
        told.append(
            f"{100 * beyond:.1f} % of the new images are in other classes than those before would have been, beyond "
            f"what chance explains; drift.max_class_shift is {limits.max_class_shift}."
        )
    if -found["confidence_rise"] > limits.max_confidence_drop and found["confidence_drop_p"] <= CHANCE:
        told.append(
            f"The mean confidence of the new images is {-found['confidence_rise']:.3f} lower than before; "
            f"drift.max_confidence_drop is {limits.max_confidence_drop}."
        )
    return told
