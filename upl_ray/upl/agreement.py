"""How accurate is each labeler? Without true labels, how often pairs of them agree tells (pure)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MIN_LABELERS = 3  # two agree on one number, which says nothing about either


def estimated_accuracies(agreement: npt.NDArray[np.float64], n_classes: int) -> list[float] | None:
    """Accuracy of each labeler [0-1], without labels; None below three labelers.

    The one-coin model of Dawid and Skene (1979, Applied Statistics 28): labeler i is right with probability a_i, and
    wrong uniformly over the other C - 1 classes, independently of the others. Two labelers then agree on
    a_i a_j + (1 - a_i)(1 - a_j) / (C - 1) of the images; least squares over all pairs, every a_i within [1 / C, 1].

    Labelers are not independent: backbones of one family err on the same images. Those that err together seem better
    than they are, and one that errs otherwise seems worse beside them. Read the estimates as a ranking at most.

    Args:
        agreement: shares of images on which two labelers give the same label [B, B], symmetric [0-1].
        n_classes: C, at least 2.
    """
    from scipy.optimize import least_squares  # takes a second to import

    b, c = len(agreement), n_classes
    if b < MIN_LABELERS:
        return None
    first, second = np.triu_indices(b, k=1)
    # With u = (C a - 1) / (C - 1), 0 at chance and 1 if always right, the model is a product: agreement beyond chance
    # is u_i u_j.
    beyond = (c * np.asarray(agreement, np.float64)[first, second] - 1) / (c - 1)
    start = np.full(b, np.sqrt(np.clip(beyond.mean(), 0.01, 0.98)))
    fit = least_squares(
        lambda u: u[first] * u[second] - beyond, start, bounds=(0, 1), xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    return [float((1 + (c - 1) * u) / c) for u in fit.x]
