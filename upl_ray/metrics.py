"""Scores, where true labels exist: accuracy and pseudo-label precision (pure). Labels never flow back into a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray.classnames import clean_classname

Labels = npt.NDArray[np.integer[Any]]
UNLABELED = -1  # an image whose label is no class; it is not scored


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of labeled images that are classified right [0-1]; NaN if none is labeled."""
    known = true != UNLABELED
    return float((predicted[known] == true[known]).mean()) if known.any() else float("nan")


def true_labels(labels: Iterable[str | None], classnames: tuple[str, ...]) -> Labels:
    """Class index of each label: a class name, or else a class' number from 0; UNLABELED where it is neither."""
    index = {str(i): i for i in range(len(classnames))} | {name: i for i, name in enumerate(classnames)}
    return np.array([index.get(clean_classname(x or ""), UNLABELED) for x in labels], np.int64)


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
