"""Scores, where true labels exist: accuracy, intervals, calibration (pure). True labels never flow back into a step.

Shapes: N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray.config.classnames import NUMBERED, clean_classname

Labels = npt.NDArray[np.integer[Any]]
Confidences = npt.NDArray[np.floating[Any]]
UNLABELED = -1  # an image whose label is no class; it is not scored
BINS = 15  # of equal width, of a reliability diagram (Guo et al. 2017, arXiv 1706.04599, section 4)
Z_95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of labeled images that are classified right [0-1], from classes [N] and [N]; NaN if none is labeled."""
    known = true != UNLABELED
    return float((predicted[known] == true[known]).mean()) if known.any() else float("nan")


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share `right / n` [0-1]; it holds for small n and extreme shares.

    It answers for the choice of images only: not for another seed, another corpus, or images that are not independent.

    Raises:
        ValueError: there is no image.
    """
    from scipy.stats import binomtest  # takes a second to import, and only reports need it

    if n <= 0:
        raise ValueError(f"An interval needs at least one image; there are {n}.")
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(gained: int, lost: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of `(gained - lost) / n`, the difference of two accuracies on the same n images [-1, 1].

    Only images that the two judge differently tell something about the difference, so this is narrower than two
    separate intervals suggest. Agresti and Min (2005): half an image is added to each of the four cells.

    Args:
        gained: images that the first classifies right and the second wrong.
        lost: images that the second classifies right and the first wrong.
        n: all images.
        z: standard normal quantile of the coverage.

    Raises:
        ValueError: there is no image.
    """
    if n <= 0:
        raise ValueError(f"An interval needs at least one image; there are {n}.")
    total, up, down = n + 2, gained + 0.5, lost + 0.5
    middle = (up - down) / total
    half = z * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def reliability(confidence: Confidences, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Images, sum of confidences, and images classified right of each bin, [N] and [N] -> [BINS, 3].

    A bin holds confidences in (low, high], the first one also 0. Tables of several shards may be added.
    """
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS) - 1, 0, BINS - 1).astype(np.int64)
    columns = [np.bincount(bins, w, BINS) for w in (None, confidence.astype(np.float64), right.astype(np.float64))]
    return np.stack(columns, axis=1).astype(np.float64)


def calibration_error(bins: npt.NDArray[np.float64]) -> float:
    """Expected calibration error [0-1] of a table [BINS, 3] by `reliability`; NaN if it holds no image.

    The gap between mean confidence and accuracy of each bin is weighted by its images (Guo et al. 2017, equation 3).
    """
    images, confidence, right = bins.T  # each [BINS]
    return float(np.abs(confidence - right).sum() / images.sum()) if images.sum() else float("nan")


def class_numbers(classnames: tuple[str, ...]) -> dict[str, int]:
    """Texts that stand for a class' number from 0, as `3` or, in tables with gaps, `3.0`.

    There are none where a class is called by one of them: numbers are names then.
    """
    numbers = {text: i for i in range(len(classnames)) for text in (str(i), f"{i}.0")}
    return numbers if numbers.keys().isdisjoint(classnames) else {}


def true_labels(labels: Iterable[str | None], classnames: tuple[str, ...]) -> Labels:
    """Class index of each label [N]: a class name, or else a class' number from 0; UNLABELED where it is neither.

    A class name may stand behind a number, as in `001.Laysan_Albatross`.
    """
    floats = {f"{name}.0": i for i, name in enumerate(classnames) if name.isdecimal()}
    index = class_numbers(classnames) | floats | {name: i for i, name in enumerate(classnames)}

    def find(label: str) -> int:
        found = index.get(clean_classname(label))
        if found is None and (numbered := NUMBERED.fullmatch(label)):
            found = index.get(clean_classname(numbered[3]))
        return UNLABELED if found is None else found

    return np.array([find(x or "") for x in labels], np.int64)


def paired_interval(
    difference: npt.NDArray[np.float64], resamples: int, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences (Efron and Tibshirani 1993, section 13.3).

    Args:
        difference: [N] how much better the first method does on each image, averaged over seeds [-1 to 1].
        resamples: how many times N images are drawn with replacement.
        seed: seed of the draws.
        level: coverage [0-1].

    Returns:
        The interval's ends. Images are resampled, seeds are not: it says how sure the difference is for these runs.
    """
    values, counts = np.unique(difference, return_counts=True)
    n = int(counts.sum())
    # Differences take few values, and drawing N images amounts to drawing how many show each value.
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)  # [resamples, values]
    low, high = np.quantile(drawn @ values / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
